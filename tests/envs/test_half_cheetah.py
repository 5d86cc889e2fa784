"""`half_cheetah`: mass, contacts, start, state, and its goal on a line."""

import pytest
import torch

from tests.helpers.tasks import (
    contact_pairs,
    env_after_random_steps,
    mujoco_data,
    pairs_of,
    starts_of,
)
from torch_crl.envs.registry import make_task


def test_it_weighs_14_kg_and_five_parts_touch_the_floor() -> None:
    model = make_task("half_cheetah").model
    assert model.body_mass.sum() == pytest.approx(14.0)
    # Inverse weights, which contacts use, are those of the scaled masses: lifting it takes most
    # of the 14 kg, its legs hanging behind.
    assert 10.0 < 1.0 / model.dof_invweight0[1] < 14.0
    assert contact_pairs(model) == pairs_of(
        "head floor", "bthigh floor", "fthigh floor", "foot floor"
    )
    assert model.opt.gravity[2] == -9.81


def test_starts_and_goals() -> None:
    start = starts_of("half_cheetah", 500)
    assert 0.09 < start.qpos_NQ.abs().max() <= 0.1
    assert float(start.qvel_NV.std()) == pytest.approx(0.1, rel=0.05)
    assert (start.goal_NG == 5.0).all()
    points = make_task("half_cheetah").goal_points(start.goal_NG[0])
    assert points.tolist() == [[5.0, 0.0, 0.0]]


def test_state_against_mujoco() -> None:
    env = env_after_random_steps("half_cheetah")
    names = ("rootx", "rootz", "rooty", "bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
    for n in range(4):
        data = mujoco_data(env, n)
        expected = [data.joint(name).qpos[0] for name in names]
        expected += [data.joint(name).qvel[0] for name in names]
        assert env.state_NS[n].tolist() == pytest.approx(expected, abs=1e-5, rel=1e-5)
        torso = data.body("torso").xpos
        assert env.state_NS[n, 0].item() == pytest.approx(torso[0], abs=1e-5)
        assert env.state_NS[n, 1].item() == pytest.approx(torso[2] - 0.7, abs=1e-5)


def test_it_never_fails() -> None:
    state = torch.full((3, 18), 1e3)
    assert not make_task("half_cheetah").failed(state).any()
