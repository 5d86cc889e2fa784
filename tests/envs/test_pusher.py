"""The pusher's tasks: regions, separation, contacts, state, and what counts as success."""

import mujoco
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.tasks import (
    contact_pairs,
    env_after_random_steps,
    mujoco_data,
    starts_of,
)
from torch_crl.envs.registry import TASKS, make_task
from torch_crl.envs.simulators.cpu import CpuSimulator

PUSHERS = [name for name in TASKS if name.startswith("pusher")]
# (x, y) ranges of each object and of each goal.
OBJECT = ((0.25, 0.65), (-0.35, -0.05))
REGIONS = {
    "pusher_easy": [(OBJECT, ((0.25, 0.65), (-0.6, -0.3)))],
    "pusher_hard": [(OBJECT, ((-0.1, 0.9), (-0.7, 0.3)))],
    "pusher2": [
        (((0.25, 0.45), (-0.35, -0.05)), ((-0.15, 0.375), (-0.7, 0.3))),
        (((0.45, 0.65), (-0.35, -0.05)), ((0.375, 0.9), (-0.7, 0.3))),
    ],
}


def assert_fills(points_N2: Tensor, region: tuple[tuple[float, float], ...]) -> None:
    for axis, (low, high) in enumerate(region):
        values = points_N2[:, axis]
        margin = 0.02 * (high - low)
        assert low - 1e-6 <= values.min() < low + margin, (axis, region)
        assert high - margin < values.max() <= high + 1e-6, (axis, region)


@pytest.mark.parametrize("name", REGIONS)
def test_starts_and_goals_fill_their_regions_and_are_separated(name: str) -> None:
    start = starts_of(name, 4000)
    assert not start.qpos_NQ[:, :7].any()
    assert 0.0049 < start.qvel_NV[:, :7].abs().max() <= 0.005
    assert not start.qvel_NV[:, 7:].any()
    goals = start.goal_NG.unflatten(-1, (-1, 3)).double()
    assert (goals[..., 2] == torch.tensor(-0.275)).all()
    for number, (region, goal_region) in enumerate(REGIONS[name]):
        object_N2 = start.qpos_NQ[:, 7 + 2 * number : 9 + 2 * number]
        goal_N2 = goals[:, number, :2]
        assert_fills(object_N2, region)
        assert_fills(goal_N2, goal_region)
        assert (object_N2 - goal_N2).norm(dim=-1).min() >= 0.17 - 1e-6


def test_goals_of_pusher2_are_independent() -> None:
    goals = starts_of("pusher2", 2000).goal_NG
    correlation = torch.corrcoef(goals[:, [1, 4]].T)[0, 1]
    assert abs(float(correlation)) < 0.1


def test_goals_of_pusher_reacher() -> None:
    start = starts_of("pusher_reacher", 2000)
    assert start.qpos_NQ.shape == (2000, 7) and not start.qpos_NQ.any()
    assert_fills(start.goal_NG[:, :2], OBJECT)
    assert (start.goal_NG[:, 2] == -0.275).all()


@pytest.mark.parametrize("name", PUSHERS)
def test_only_the_fork_touches_anything(name: str) -> None:
    model = make_task(name).model
    fork = "r_wrist_roll_link"
    objects = set() if name == "pusher_reacher" else {frozenset((fork, "object"))}
    assert contact_pairs(model) == {frozenset((fork, "table"))} | objects
    on_fork = [
        geom for geom in range(model.ngeom) if model.geom_bodyid[geom] == model.body(fork).id
    ]
    assert (model.geom_conaffinity[on_fork] == 1).all() and len(on_fork) == 3
    assert (model.opt.gravity == 0.0).all() and model.opt.iterations == 20
    assert (model.geom_condim == 3).all()
    assert (model.actuator_ctrlrange == [-2.0, 2.0]).all()
    for number in range(1, model.nbody):
        if model.body(number).name.startswith("object"):
            assert model.body_mass[number] == pytest.approx(0.0018, abs=5e-5)
            dofs = range(model.body_dofadr[number], model.body_dofadr[number] + 2)
            assert (model.dof_armature[dofs] == 0.04).all()
            assert (model.dof_damping[dofs] == 0.5).all()


@pytest.mark.parametrize("name", PUSHERS)
def test_state_against_mujoco(name: str) -> None:
    env = env_after_random_steps(name, steps=60)
    for n in range(4):
        data = mujoco_data(env, n)
        wrist = data.body("r_wrist_flex_link").xipos
        objects = [
            data.body(f"object{number}").xpos for number in range(1, len(REGIONS.get(name, ())) + 1)
        ]
        parts = [data.qpos[:7], wrist, *objects, data.qvel[:7]]
        if name == "pusher_reacher":
            parts = [data.qpos[:7], data.qvel[:7], wrist]
        expected = torch.cat([torch.from_numpy(part.copy()) for part in parts])
        torch.testing.assert_close(env.state_NS[n].double(), expected, atol=1e-5, rtol=1e-5)
        for point in objects:
            assert point[2] == pytest.approx(-0.275)


def test_the_slides_move_objects_along_x_then_y() -> None:
    model = make_task("pusher2").model
    data = mujoco.MjData(model)
    data.qpos[7:] = 0.3, -0.2, 0.6, -0.1
    mujoco.mj_kinematics(model, data)
    assert data.body("object1").xpos.tolist() == pytest.approx([0.3, -0.2, -0.275])
    assert data.body("object2").xpos.tolist() == pytest.approx([0.6, -0.1, -0.275])


def test_the_fork_pushes_the_object() -> None:
    task = make_task("pusher_easy")
    simulator = CpuSimulator(task.model, num_envs=1, fields=task.fields)
    start = task.sample_start(1, Generator().manual_seed(0))
    qpos_NQ = start.qpos_NQ.clone()
    # The arm lowered so that the fork is at the object's height, and the object in its way.
    qpos_NQ[0, 1], qpos_NQ[0, 3], qpos_NQ[0, 5] = 0.8, -0.9, 0.0
    simulator.reset(torch.ones(1, dtype=torch.bool), qpos_NQ, torch.zeros(1, task.model.nv))
    wrist = task.state(simulator)[0, 7:10]
    assert -0.3 < wrist[2] < -0.2
    simulator.data["qpos"][0, 7] = wrist[0].double() + 0.05
    simulator.data["qpos"][0, 8] = wrist[1].double() + 0.25
    before = simulator.data["qpos"][0, 8].item()
    for _ in range(60):
        simulator.data["ctrl"][0, 0] = 1.0
        simulator.step(5)
    assert simulator.data["qpos"][0, 8].item() > before + 0.1
    assert simulator.num_warnings == 0


def test_success_of_two_objects() -> None:
    task = make_task("pusher2")
    # Distances of the two objects from their goals.
    distances = torch.tensor([[0.02, 0.03], [0.02, 0.07], [0.02, 0.5], [0.3, 0.2]])
    achieved_NG = torch.zeros(4, 6)
    achieved_NG[:, [2, 4]] = distances
    goal_NG = torch.zeros(4, 6)
    reached = task.success(achieved_NG, goal_NG)
    assert reached["success"].tolist() == [True, True, False, False]
    assert reached["success_easy"].tolist() == [True, True, True, False]
    assert reached["success_hard"].tolist() == [True, False, False, False]
    torch.testing.assert_close(task.distance(achieved_NG, goal_NG), distances.amax(-1))
    assert task.goal_points(torch.arange(6.0)).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
