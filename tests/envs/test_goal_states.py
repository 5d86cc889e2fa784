"""Positions in which goals are achieved, judged by MuJoCo itself."""

import mujoco
import numpy as np
import pytest
import torch
from torch import Generator

from torch_crl.envs.goal_states import GoalStateError, goal_states
from torch_crl.envs.registry import make_task


def test_a_fingertip_is_at_its_goal() -> None:
    task = make_task("reacher")
    goal_NG = task.sample_start(40, Generator().manual_seed(3)).goal_NG
    data, missed = mujoco.MjData(task.model), []
    for goal, qpos in zip(goal_NG.numpy(), goal_states(task, goal_NG).numpy(), strict=True):
        data.qpos[:] = qpos
        mujoco.mj_forward(task.model, data)
        missed.append(np.linalg.norm(data.body("fingertip").xpos - goal))
    # The links, of 0.1 and 0.11 m, fold by 3 rad at most: they do not reach the middle.
    assert np.median(missed) < 1e-6
    assert max(missed) < 0.0181


def test_a_body_on_slides_is_moved_there() -> None:
    task = make_task("point_u_maze")
    goal_NG = torch.tensor([[4.0, 8.5], [12.0, 4.0]])
    qpos_NQ = goal_states(task, goal_NG)
    torch.testing.assert_close(qpos_NQ[:, :2].float(), goal_NG, atol=1e-3, rtol=0)
    assert torch.equal(qpos_NQ, goal_states(task, goal_NG))


def test_limits_of_joints_are_kept() -> None:
    task = make_task("arm_reach")
    goal_NG = task.sample_start(8, Generator().manual_seed(1)).goal_NG
    qpos_NQ = goal_states(task, goal_NG)
    low, high = task.model.jnt_range[:7].T
    assert (qpos_NQ[:, :7].numpy() >= low - 1e-9).all()
    assert (qpos_NQ[:, :7].numpy() <= high + 1e-9).all()


@pytest.mark.parametrize(
    "name", ["ant_u_maze", "humanoid", "pusher_hard", "arm_push_easy", "half_cheetah"]
)
def test_goals_of_other_robots_are_achieved(name: str) -> None:
    task = make_task(name)
    goal_NG = task.sample_start(8, Generator().manual_seed(2)).goal_NG
    # It raises an error for a goal that is missed.
    assert goal_states(task, goal_NG).shape == (8, task.model.nq)


def test_a_goal_out_of_reach_is_told() -> None:
    with pytest.raises(GoalStateError, match=r"no position of reacher .* \[3.0, 0.0, 0.01\]"):
        goal_states(make_task("reacher"), torch.tensor([[3.0, 0.0, 0.01]]))
