"""The ant's tasks: where it starts, what it is asked for, what it and its objects touch."""

import dataclasses
import math

import mujoco
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.tasks import (
    contact_pairs,
    env_after_random_steps,
    goals_of,
    mujoco_data,
    pairs_of,
    starts_of,
)
from torch_crl.envs.registry import UnknownTaskError, make_task, task_spec
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.tasks import ant, ant_objects
from torch_crl.envs.tasks.ant_robot import body_points
from torch_crl.envs.tasks.layouts import LAYOUTS, corridor
from torch_crl.recipe.presets import preset


def simulation(name: str) -> CpuSimulator:
    """One simulation at a start."""
    task = make_task(name)
    simulator = CpuSimulator(task.model, num_envs=1)
    start = task.sample_start(1, Generator().manual_seed(0))
    simulator.reset(torch.ones(1, dtype=torch.bool), start.qpos_NQ, start.qvel_NV)
    return simulator


def test_goals_on_open_floor_lie_on_a_circle_of_ten_metres() -> None:
    goals = goals_of("ant")
    torch.testing.assert_close(goals.norm(dim=-1), torch.full((512,), 10.0))
    assert goals.mean(0).abs().max() < 2.0


def test_random_start_is_ten_metres_from_its_goal() -> None:
    start = starts_of("ant_random_start")
    offset = start.qpos_NQ[:, :2] - start.goal_NG
    ten = torch.full((512,), 10.0)
    torch.testing.assert_close(offset.norm(dim=-1).float(), ten)
    torch.testing.assert_close(start.goal_NG.norm(dim=-1), ten)
    # Their directions are independent.
    assert abs(float((offset * start.goal_NG).sum(-1).mean())) < 10.0


U4_PATH = [(2, 1), (1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (4, 3), (5, 3), (5, 2), (5, 1), (4, 1)]


def test_corridors_by_hand() -> None:
    assert corridor(LAYOUTS["u4_maze"]) == U4_PATH
    lengths = {"u_maze": 7, "u2_maze": 9, "u3_maze": 11, "u4_maze": 11, "u5_maze": 17}
    assert {name: len(corridor(LAYOUTS[name])) for name in lengths} == lengths
    with pytest.raises(ValueError, match="forks at row"):
        corridor(LAYOUTS["big_maze"])


def test_generalization_starts_and_goals() -> None:
    start = starts_of("ant_u4_maze_gen_2f5f", 4000)
    pairs = torch.cat([start.qpos_NQ[:, :2].float(), start.goal_NG], dim=-1) / 4.0
    found, counts = pairs.unique(dim=0, return_counts=True)
    chance = {
        (*U4_PATH[i], *U4_PATH[i + ahead]): 0.5 / (11 - ahead)
        for ahead in (2, 5)
        for i in range(11 - ahead)
    }
    assert {tuple(pair) for pair in found.int().tolist()} == set(chance)
    assert (found == found.int()).all()
    for pair, count in zip(found.int().tolist(), counts.tolist(), strict=True):
        assert count == pytest.approx(4000 * chance[tuple(pair)], abs=90)


def test_generalization_names() -> None:
    assert task_spec("ant_u_maze_gen_6f").options["cells_ahead"] == (6,)
    assert preset("ant_u4_maze_gen_2f5f").networks.width == preset("ant").networks.width
    for impossible in ("ant_u_maze_gen_7f", "ant_u_maze_gen_0f", "ant_u_maze_gen_1f7f"):
        with pytest.raises(UnknownTaskError, match=r"u_maze has 7 cells.*1f to 6f"):
            task_spec(impossible)
    for unknown in ("ant_big_maze_gen_1f", "ant_u_maze_gen_1", "ant_u_maze_gen_"):
        with pytest.raises(UnknownTaskError, match="as in ant_u4_maze_gen_2f5f"):
            task_spec(unknown)


def test_contacts() -> None:
    assert contact_pairs(make_task("ant").model) == pairs_of("foot floor")
    assert contact_pairs(make_task("ant_u_maze").model) == pairs_of(
        *("foot floor", "foot wall", "torso wall", "aux wall", "foot", "foot torso", "foot aux")
    )
    ball = pairs_of("foot floor", "ball floor", "ball torso", "ball foot", "foot", "foot torso")
    assert contact_pairs(make_task("ant_ball").model) == ball
    in_maze = pairs_of("ball wall", "torso wall", "foot wall")
    assert contact_pairs(make_task("ant_ball_u_maze").model) == ball | in_maze
    assert contact_pairs(make_task("ant_push").model) == pairs_of(
        *("foot floor", "torso floor", "block floor", "foot wall", "torso wall", "block wall"),
        *("foot block", "torso block"),
    )


def test_contacts_of_the_whole_body() -> None:
    spec = task_spec("ant_ball_u_maze")
    body = ("torso", "aux", "leg", "ankle")
    things = ("floor", "wall", "ball")
    model = ant_objects.make_ball_maze(spec, layout="u_maze", contacts="body").model
    assert contact_pairs(model) == pairs_of(
        *(f"{part} {thing}" for part in body for thing in things), "ball wall", "ball floor"
    )
    open_floor = ant.make(dataclasses.replace(spec, name="mine:make"), contacts="body").model
    assert contact_pairs(open_floor) == pairs_of(*(f"{part} floor" for part in body))
    with pytest.raises(ValueError, match="'shins'; allowed are 'feet' and 'body'"):
        ant.make(spec, contacts="shins")


def test_masses() -> None:
    assert make_task("ant").model.body_mass.sum() == pytest.approx(0.911, abs=5e-4)
    model = make_task("ant_ball").model
    assert model.body("ball").mass[0] == pytest.approx(0.576, abs=5e-4)
    model = make_task("ant_push").model
    assert model.body("block").mass[0] == 0.0002
    ant_mass = model.body_mass.sum() - model.body("block").mass[0]
    assert ant_mass == pytest.approx(7.29, abs=5e-3)
    assert not model.dof_armature[14:].any() and not model.dof_damping[14:].any()


def test_body_points_against_mujoco() -> None:
    model = make_task("ant").model
    qpos_NQ = starts_of("ant", 20).qpos_NQ
    points_NP3 = body_points(qpos_NQ)
    data = mujoco.MjData(model)
    shins = [model.geom_bodyid[model.geom(f"{leg}_foot").id] for leg in LEGS]
    for n in range(20):
        data.qpos[:] = qpos_NQ[n].numpy()
        mujoco.mj_kinematics(model, data)
        knees = torch.from_numpy(data.xpos[shins])
        feet = torch.stack([torch.from_numpy(data.geom(f"{leg}_foot").xpos) for leg in LEGS])
        expected = torch.cat([qpos_NQ[n : n + 1, :3], knees, (knees + feet) / 2, feet])
        torch.testing.assert_close(points_NP3[n], expected, atol=1e-12, rtol=0)


LEGS = ("left", "right", "third", "fourth")


def test_ball_starts_on_its_ring_clear_of_the_ant() -> None:
    start = starts_of("ant_ball", 300)
    goal_N2, ball_N2 = start.goal_NG.double(), start.qpos_NQ[:, 15:]
    torch.testing.assert_close(start.goal_NG.norm(dim=-1), torch.full((300,), 5.0))
    offset_N2 = ball_N2 - 0.2 * goal_N2
    one = torch.ones(300, dtype=torch.float64)
    torch.testing.assert_close(offset_N2.norm(dim=-1), one, atol=1e-6, rtol=0)
    assert not start.qvel_NV[:, 14:].any()
    # Both sides of the way to the goal, and farther or nearer than the ring's centre.
    side_N = goal_N2[:, 0] * offset_N2[:, 1] - goal_N2[:, 1] * offset_N2[:, 0]
    assert abs(float(side_N.mean())) < 1.0
    assert 0.1 < float(((goal_N2 * offset_N2).sum(-1) < 0).double().mean()) < 0.5
    model = make_task("ant_ball").model
    data = mujoco.MjData(model)
    ball = model.geom("ball").id
    parts = [geom for geom in range(model.ngeom) if geom != ball and model.geom_bodyid[geom]]
    for qpos_Q in start.qpos_NQ:
        data.qpos[:] = qpos_Q.numpy()
        mujoco.mj_kinematics(model, data)
        gaps = [mujoco.mj_geomDistance(model, data, ball, part, 9.0, None) for part in parts]
        assert min(gaps) > 0.0


def test_ball_and_goal_of_a_maze_are_independent() -> None:
    start = starts_of("ant_ball_big_maze", 2000)
    assert (start.qpos_NQ[:, :2] == 4.0).all()
    ball = start.qpos_NQ[:, 15:].float()
    assert sorted(ball.unique(dim=0).tolist()) == [[12.0, 8.0], [12.0, 16.0]]
    goals = start.goal_NG.unique(dim=0)
    assert len(goals) == 20
    assert [12.0, 12.0] in goals.tolist() and [12.0, 8.0] not in goals.tolist()
    assert len(torch.cat([ball, start.goal_NG], dim=-1).unique(dim=0)) == 2 * 20
    u_ball = starts_of("ant_ball_u_maze", 50)
    assert (u_ball.qpos_NQ[:, 15:] == torch.tensor([4.0, 12.0])).all()
    assert sorted(u_ball.goal_NG.unique(dim=0).tolist()) == [
        *([4.0, 8.0], [8.0, 12.0], [12.0, 4.0], [12.0, 8.0], [12.0, 12.0])
    ]


@pytest.mark.parametrize("name", ["ant_big_maze", "ant_ball", "ant_ball_u_maze", "ant_push"])
def test_state_against_mujoco(name: str) -> None:
    env = env_after_random_steps(name)
    for n in range(4):
        data, state = mujoco_data(env, n), env.state_NS[n].double()
        torso = data.body("torso")
        joints = [data.joint(f"{part}_{leg}") for leg in range(1, 5) for part in ("hip", "ankle")]
        # MuJoCo's own velocity of the torso: angular in its frame, linear in the world's.
        own, world = torch.zeros(2, 6, dtype=torch.float64).numpy()
        kind = mujoco.mjtObj.mjOBJ_XBODY
        body = env.task.model.body("torso").id
        mujoco.mj_objectVelocity(env.task.model, data, kind, body, own, 1)
        mujoco.mj_objectVelocity(env.task.model, data, kind, body, world, 0)
        expected = [*torso.xpos, *torso.xquat, *(joint.qpos[0] for joint in joints)]
        expected += [*world[3:], *own[:3], *(joint.qvel[0] for joint in joints)]
        if name != "ant_big_maze":
            expected += data.body("block" if "push" in name else "ball").xpos[:2].tolist()
        expected_S = torch.tensor([float(number) for number in expected], dtype=torch.float64)
        torch.testing.assert_close(state, expected_S, atol=1e-5, rtol=1e-5)


def test_ball_glides_without_loss_and_stays_within_its_range() -> None:
    simulator = simulation("ant_ball")
    # Away from the ant, at 2 m/s along x and at 0.5 m/s along y.
    simulator.data["qpos"][0, 15:] = torch.tensor([3.0, 3.0], dtype=torch.float64)
    simulator.data["qvel"][0, 14:] = torch.tensor([2.0, 0.5], dtype=torch.float64)
    simulator.step(200)
    torch.testing.assert_close(simulator.data["qpos"][0, 15:].tolist(), [7.0, 4.0])
    for _ in range(50):
        simulator.step(20)
        assert simulator.data["qpos"][0, 15] < 10.5


def test_walls_hold_the_ball() -> None:
    simulator = simulation("ant_ball_u_maze")
    # The ball of 0.5 m is in a corner of the maze, with walls at x = 2 and y = 14.
    simulator.data["qvel"][0, 14:] = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    farthest = torch.zeros(2, dtype=torch.float64)
    for _ in range(60):
        simulator.step(5)
        travel = (simulator.data["qpos"][0, 15:] - torch.tensor([4.0, 12.0])).abs()
        farthest = torch.maximum(farthest, travel)
    assert ((farthest > 1.4) & (farthest < 1.75)).all()


def test_push_scene() -> None:
    start = starts_of("ant_push", 1000)
    assert start.qpos_NQ[:, :2].abs().max() <= 0.1
    assert (start.qpos_NQ[:, 2] - 0.75).abs().max() <= 0.1
    block = torch.tensor([8.0, 8.0, 2.0], dtype=torch.float64)
    noise = start.qpos_NQ[:, 15:] - block
    assert 0.09 < noise.abs().max() <= 0.1
    assert not start.qvel_NV[:, 14:].any()
    right = start.goal_NG[:, 0] >= 16.0
    assert float(right.float().mean()) == pytest.approx(0.5, abs=0.06)
    corner = torch.where(right[:, None], torch.tensor([16.0, 8.0]), torch.tensor([8.0, 16.0]))
    inside = start.goal_NG - corner
    assert inside.min() >= 0.0 and inside.max() <= 2.0
    assert float(inside.mean()) == pytest.approx(1.0, abs=0.06)
    # Rooms of 8 m, rows from y = 24 down to -8, columns from x = -8 on: walls fill exactly the `#`.
    rooms = ("#####", "##.##", "#.M.#", "#R.##", "#####")
    model = make_task("ant_push").model
    walls = [geom for geom in range(model.ngeom) if model.geom(geom).name.startswith("wall")]
    assert len(walls) == 7
    for i, row in enumerate(rooms):
        for j, letter in enumerate(row):
            room = torch.tensor([8.0 * j - 8.0, 24.0 - 8.0 * i])
            offset = (room - torch.from_numpy(model.geom_pos[walls, :2])).abs()
            filled = (offset < torch.from_numpy(model.geom_size[walls, :2])).all(-1).any()
            assert filled == (letter == "#"), (i, j)


def _push_block(axis: int) -> Tensor:
    """The block after an ant ran against it along x or y at 2 m/s for a second."""
    simulator = simulation("ant_push")
    simulator.step(50)
    settled = simulator.data["qpos"][0, 15:].clone()
    # It fell on the floor, where its centre is at 1.8 m.
    assert settled[2].item() == pytest.approx(1.8, abs=0.01)
    simulator.data["qpos"][0, 1 - axis] = 8.0
    simulator.data["qpos"][0, axis] = 3.3
    for _ in range(100):
        simulator.data["qvel"][0, axis] = 2.0
        simulator.step(1)
    assert simulator.num_warnings == 0
    return simulator.data["qpos"][0, 15:] - settled


@pytest.mark.parametrize("axis", [0, 1])
def test_block_can_be_pushed(axis: int) -> None:
    moved = _push_block(axis)
    assert 0.5 < moved[axis] < 4.0
    assert abs(moved[1 - axis]) < 1.0


def test_walls_hold_the_block() -> None:
    simulator = simulation("ant_push")
    for _ in range(100):
        # Its face is at 4.4; the wall's at -4, and a block 3.6 wide stops at -0.4.
        simulator.data["qvel"][0, 14] = -3.0
        simulator.step(5)
        simulator.data["qpos"][0, 1] = -3.0  # out of the way
    assert -0.6 < simulator.data["qpos"][0, 15] < -0.3


def test_noise_of_the_start() -> None:
    qpos = starts_of("ant", 2000).qpos_NQ
    assert 0.09 < qpos[:, :2].abs().max() <= 0.1
    assert (qpos[:, 3:7].norm(dim=-1) - 1.0).abs().max() < 1e-12
    ankles = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    assert (qpos[:, 8:15:2] - ankles).abs().max() <= 0.1
    exact = starts_of("ant_u_maze_gen_1f", 200).qpos_NQ
    assert (exact[:, :2] % 4.0 == 0.0).all()
    assert 0.08 < (exact[:, 2] - 0.55).abs().max() <= 0.1
    assert math.isclose(float(starts_of("ant", 2000).qvel_NV.std()), 0.1, rel_tol=0.03)


def test_too_high_and_too_low_are_failures() -> None:
    for name in ("ant_random_start", "ant_u_maze_gen_1f", "ant_ball", "ant_push"):
        state = torch.zeros(4, task_spec(name).state_size)
        state[:, 2] = torch.tensor([0.19, 0.21, 0.99, 1.01])
        assert make_task(name).failed(state).tolist() == [True, False, False, True]
