"""`humanoid` and its mazes: what the robot touches, and its state against MuJoCo."""

import mujoco
import pytest
import torch
from torch import Generator

from tests.helpers.tasks import (
    contact_pairs,
    env_after_random_steps,
    goals_of,
    mujoco_data,
    starts_of,
)
from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators.cpu import CpuSimulator


def test_goals_on_open_floor_are_uniform_in_radius() -> None:
    goals = goals_of("humanoid", 4000)
    radius = goals[:, :2].norm(dim=-1)
    assert radius.min() >= 1.0 and radius.max() <= 5.0
    assert float(radius.mean()) == pytest.approx(3.0, abs=0.1)
    assert (goals[:, 2] == 1.25).all()


def test_starts_are_upright_and_at_rest() -> None:
    for name, cell in (("humanoid", [0.0, 0.0]), ("humanoid_u_maze", [2.0, 2.0])):
        start = starts_of(name, 8)
        pose = torch.tensor([*cell, 1.4, 1.0] + [0.0] * 20, dtype=torch.float64)
        assert (start.qpos_NQ == pose).all() and not start.qvel_NV.any()
        assert (start.goal_NG[:, 2] == 1.25).all()


def test_touches_floor_and_walls_and_not_itself() -> None:
    model = make_task("humanoid").model
    assert all("floor" in pair for pair in contact_pairs(model))
    pairs = contact_pairs(make_task("humanoid_u_maze").model)
    parts = {frozenset((part,)) for pair in pairs for part in pair} - {frozenset(("floor",))}
    parts -= {frozenset(("wall",))}
    assert pairs == {part | {other} for part in parts for other in ("floor", "wall")}
    assert model.body_mass.sum() == pytest.approx(42.116, abs=5e-4)
    masses = [8.908, 2.262, 6.616, 4.752, 4.523, 4.752, 4.523, 1.661, 1.230, 1.661, 1.230]
    assert model.body_mass[1:].tolist() == pytest.approx(masses, abs=1e-3)


def test_walls_hold_it() -> None:
    task = make_task("humanoid_u_maze")
    simulator = CpuSimulator(task.model, num_envs=1)
    start = task.sample_start(1, Generator().manual_seed(0))
    simulator.reset(torch.ones(1, dtype=torch.bool), start.qpos_NQ, start.qvel_NV)
    # Thrown at the wall, whose face is 1 m away, at 3 m/s.
    simulator.data["qvel"][0, 0] = -3.0
    lowest = 9.0
    for _ in range(80):
        simulator.step(task.substeps)
        lowest = min(lowest, simulator.data["qpos"][0, 0].item())
    # It leans over the wall, which is lower than its torso; without one it would get to -1.6.
    assert 0.5 < lowest < 1.5


@pytest.mark.parametrize("name", ["humanoid", "humanoid_u_maze"])
def test_state_against_mujoco_in_fp64(name: str) -> None:
    env = env_after_random_steps(name)
    model = env.task.model
    for n in range(4):
        data = mujoco_data(env, n)
        data.ctrl[:] = env.simulator.data["ctrl"][n].numpy()
        mujoco.mj_forward(model, data)
        state = env.state_NS[n].double()
        torch.testing.assert_close(
            state[:24], torch.from_numpy(data.qpos.copy()), atol=1e-6, rtol=1e-6
        )
        # Momentum is mass-weighted velocity: their sum is the velocity of the whole body's centre.
        links = state[157:223].reshape(11, 6)
        mujoco.mj_subtreeVel(model, data)
        centre_velocity = torch.from_numpy(data.subtree_linvel[1].copy())
        torch.testing.assert_close(links[:, :3].sum(0), centre_velocity, atol=1e-5, rtol=1e-5)
        # The links' inertias about the common centre add up to the composite inertia.
        inertias = state[47:157].reshape(11, 10)
        torch.testing.assert_close(
            inertias[:, 9], torch.from_numpy(model.body_mass[1:].copy()), atol=1e-5, rtol=1e-5
        )
        total = inertias[:, :9].sum(0).reshape(3, 3)
        crb = torch.from_numpy(data.crb[1].copy())
        xx, yy, zz, xy, xz, yz = crb[:6]
        composite = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz]).reshape(3, 3)
        torch.testing.assert_close(total, composite, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(
            state[223:], torch.from_numpy(data.qfrc_actuator.copy()), atol=1e-3, rtol=1e-5
        )
