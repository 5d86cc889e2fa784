"""What of a control step gets into the replay, whoever collects and however the episode ends."""

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.recipes import tiny
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import StepResult
from torch_crl.training.building import build_run


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_row_is_a_state_and_the_goal_achieved_after_it(
    overlap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MuJoCo logs into the present folder that physics diverged.
    monkeypatch.chdir(tmp_path)
    run = build_run(tiny("ant", task={"episode_length": 3}, system={"overlap": overlap}))
    env, step = run.env, run.env.step
    assert isinstance(env, TaskVectorEnv)
    seen: list[tuple[Tensor, Tensor, StepResult]] = []

    def watched(action: Tensor) -> StepResult:
        before = env.state_NS.clone(), env.trajectory_N.clone()
        if len(seen) == 4:
            env.simulator.data["qvel"][1, 0] = 1e12
        seen.append((*before, step(action)))
        return seen[-1][-1]

    env.step = watched  # type: ignore[method-assign]
    while run.replay.filled < 7:
        run.collect()
    stored = run.replay.storage
    for row, (state, trajectory, result) in enumerate(seen):
        assert torch.equal(stored["state"][row], state)
        assert torch.equal(stored["trajectory"][row], trajectory.int())
        assert torch.equal(stored["achieved"][row], result.final_state_NS[:, :2])
        assert result.unstable_N.tolist() == [False, row == 4, False, False]
    # Env 1 was in the second step of its second episode; all others run for three steps.
    assert stored["last_row"][1].tolist() == [2, 2, 2, 2]
    assert stored["last_row"][2].tolist() == [5, 3, 5, 5]


def test_the_last_state_of_an_episode_is_a_goal() -> None:
    run = build_run(tiny("own_task:make", task={"episode_length": 1}))
    run.collect()
    batch = run.replay.sample(200, discount=0.9, generator=Generator().manual_seed(0))
    # The puck starts at rest in the middle, and nothing is later than the first step.
    assert not batch["state"].any()
    assert (batch["goal"] != 0).all()
    moved = batch["goal"][:, :, None] * batch["action"][:, None, :]
    assert (moved.diagonal(dim1=1, dim2=2) > 0).all()
