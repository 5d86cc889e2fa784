"""Simulations that blow up are told, counted and tolerated while rare."""

from pathlib import Path

import pytest
import torch

from tests.helpers.recipes import tiny
from tests.helpers.tasks import ant_env
from torch_crl.envs.simulators import SimulatorError
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.training.stability import MOST_UNSTABLE, DivergenceMonitor
from torch_crl.training.trainer import train


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo logs the warning into the present folder."""
    monkeypatch.chdir(tmp_path)


def blow_up(env: TaskVectorEnv, *indices: int) -> None:
    for index in indices:
        env.simulator.data["qvel"][index, 0] = 1e12
    env.step(torch.zeros(env.num_envs, 8))


def test_names_env_step_and_task_and_each_only_once() -> None:
    env = ant_env(6, episode_length=100)
    watch = DivergenceMonitor(env)
    assert watch.report(100) == []
    env.step(torch.zeros(6, 8))
    blow_up(env, 4)
    assert watch.report(100) == [
        "physics of env 4 diverged at step 2 of its episode of ant; it was reset"
    ]
    assert watch.report(100) == []
    blow_up(env, 0, 1, 2, 3)
    lines = watch.report(100)
    assert len(lines) == 4 and lines[-1] == "and 1 more; 5 in all"


def test_stops_above_the_stated_rate_and_not_below() -> None:
    env = ant_env(12, episode_length=100)
    watch = DivergenceMonitor(env)
    blow_up(env, *range(11))
    enough = int(11 / MOST_UNSTABLE)
    assert DivergenceMonitor(env).report(1) == []
    assert watch.report(enough)
    blow_up(env, 0)
    with pytest.raises(SimulatorError, match=r"12 in 110,000 .* one in 10,000 is too many"):
        watch.report(enough)


def test_training_goes_on_and_tells(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    step, calls = TaskVectorEnv.step, 0

    def broken_once(self: TaskVectorEnv, action: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            self.simulator.data["qvel"][1, 0] = 1e12
        return step(self, action)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskVectorEnv, "step", broken_once)
        train(tiny("ant"), tmp_path / "run")
    assert "physics of env 1 diverged at step 3 of its episode of ant" in capsys.readouterr().err
