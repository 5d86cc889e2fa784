"""Simulations that blow up are told, counted and tolerated while rare; bad numbers never."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.test_recipe import tiny
from tests.test_vector_env import ant_env
from torch_crl.envs.simulators import SimulatorError
from torch_crl.envs.vector_env import StepResult, VectorEnv
from torch_crl.native_run import NativeRun, build_run
from torch_crl.replay import Replay, Transition
from torch_crl.stability import MOST_UNSTABLE, BadNumberError, StabilityWatch, check_numbers
from torch_crl.trainer import train


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo logs the warning into the present folder."""
    monkeypatch.chdir(tmp_path)


def blow_up(env: VectorEnv, *indices: int) -> None:
    for index in indices:
        env.simulator.data["qvel"][index, 0] = 1e12
    env.step(torch.zeros(env.num_envs, 8))


def test_names_env_step_and_task_and_each_only_once() -> None:
    env = ant_env(6, episode_length=100)
    watch = StabilityWatch(env)
    assert watch.look(100) == []
    env.step(torch.zeros(6, 8))
    blow_up(env, 4)
    assert watch.look(100) == [
        "physics of env 4 diverged at step 2 of its episode of ant; it was reset"
    ]
    assert watch.look(100) == []
    blow_up(env, 0, 1, 2, 3)
    lines = watch.look(100)
    assert len(lines) == 4 and lines[-1] == "and 1 more; 5 in all"


def test_stops_above_the_stated_rate_and_not_below() -> None:
    env = ant_env(12, episode_length=100)
    watch = StabilityWatch(env)
    blow_up(env, *range(11))
    enough = int(11 / MOST_UNSTABLE)
    assert StabilityWatch(env).look(1) == []
    assert watch.look(enough)
    blow_up(env, 0)
    with pytest.raises(SimulatorError, match=r"12 in 110,000 .* one in 10,000 is too many"):
        watch.look(enough)


def test_training_goes_on_and_tells(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    step, calls = VectorEnv.step, 0

    def broken_once(self: VectorEnv, action: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            self.simulator.data["qvel"][1, 0] = 1e12
        return step(self, action)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VectorEnv, "step", broken_once)
        train(tiny("ant"), tmp_path / "run")
    assert "physics of env 1 diverged at step 3 of its episode of ant" in capsys.readouterr().err


Fault = Callable[[NativeRun, StepResult], object]


def bad_actor(run: NativeRun, _: StepResult) -> None:
    with torch.no_grad():
        run.learner.actor.output_bias[..., 1] = torch.nan


@pytest.mark.parametrize(
    ("at", "fault", "told"),
    [
        (
            3,
            lambda run, _: run.env.state_NS[1, 3].fill_(torch.nan),
            "reacher: state[3] of env 1 is nan before step 4 of its episode; the env gave it, and "
            "numbers must be finite and below 1e+10",
        ),
        # The end of an episode, which only the goal achieved there can tell.
        (
            10,
            lambda _, result: result.final_state_NS[2].fill_(torch.inf),
            "reacher: achieved goal[0] of env 2 is inf after step 10 of its episode; the env gave",
        ),
        (
            12,
            lambda run, _: run.env.state_NS[0, 2].fill_(-1e30),
            "reacher: state[2] of env 0 is -1e+30 before step 3 of its episode; the env gave it",
        ),
        (
            20,
            bad_actor,
            "reacher: action[1] of env 0 is nan at step 1 of its episode; the network, for a state "
            "without fault, gave it",
        ),
        (
            20,
            lambda run, _: run.env.goal_NG[3, 1].fill_(torch.nan),
            "reacher: goal[1] of env 3 is nan; the env commanded it",
        ),
    ],
)
def test_bad_numbers_are_told_before_they_are_learned(at: int, fault: Fault, told: str) -> None:
    run = build_run(tiny("reacher"))
    step, calls = run.env.step, 0

    def faulty(action: torch.Tensor) -> StepResult:
        nonlocal calls
        result = step(action)
        calls += 1
        if calls == at:
            fault(run, result)
        return result

    run.env.step = faulty  # type: ignore[method-assign]
    with pytest.raises(BadNumberError, match="^" + re.escape(told)):
        for _ in range(10):
            run.collect()


def test_only_the_newest_rows_are_looked_at_and_an_unknown_beginning_is_not_guessed() -> None:
    env = ant_env(2, episode_length=100)
    replay = Replay(rows=4, num_envs=2, state_size=3, action_size=2, goal_slice=(0, 1))
    for row in range(9):
        # Env 0 is in one episode for ever, env 1 in its last since row 7.
        state, trajectory = torch.zeros(2, 3), torch.tensor([1, 2 + (row >= 7)])
        state[:, 2] = torch.nan if row == 7 else 0.0
        state[0, 2] = torch.nan if row == 6 else state[0, 2]
        unstable = torch.zeros(2, dtype=torch.bool)
        replay.add(Transition(state, state[:, :2], state[:, :1], trajectory, unstable))
    check_numbers(replay, env, newest=1)
    with pytest.raises(BadNumberError, match="of env 0 is nan before step 7 of the run"):
        check_numbers(replay, env, newest=3)
    replay.storage["state"][:, 0] = 0.0
    with pytest.raises(BadNumberError, match="of env 1 is nan before step 1 of its episode"):
        check_numbers(replay, env, newest=2)
