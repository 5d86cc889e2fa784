"""Every registered task, by walking the registry, on the real simulator."""

import math

import mujoco
import pytest
import torch
from torch import Generator, Tensor

from torch_crl.envs.registry import TASKS, UnknownTaskError, _index, make_task, task_spec
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Task
from torch_crl.envs.tasks.layouts import LAYOUTS, cells
from torch_crl.envs.vector_env import VectorEnv

MAZES = [name for name in TASKS if "maze" in name]
SIZES = {"reacher": (10, 3, 2), "ant": (29, 2, 8), "point": (4, 2, 2), "humanoid": (246, 3, 17)}


def make_env(task: Task, *, num_envs: int, seed: int = 0, **options: object) -> VectorEnv:
    simulator = CpuSimulator(task.model, num_envs=num_envs, fields=task.fields)
    return VectorEnv(
        task,
        simulator,
        generator=Generator().manual_seed(seed),
        **{"episode_length": 1000, **options},
    )


def goals_of(name: str, draws: int = 512) -> Tensor:
    return make_task(name).sample_start(draws, Generator().manual_seed(0)).goal_NG


@pytest.mark.parametrize("name", TASKS)
def test_sizes_and_200_random_steps(name: str) -> None:
    task = make_task(name)
    spec = task.spec
    assert (spec.state_size, spec.goal_size, spec.action_size) == SIZES[name.partition("_")[0]]
    env = make_env(task, num_envs=8)
    assert env.state_NS.shape == (8, spec.state_size) and env.state_NS.dtype == torch.float32
    assert env.goal_NG.shape == (8, spec.goal_size) and env.goal_NG.dtype == torch.float32
    generator = Generator().manual_seed(1)
    for _ in range(200):
        result = env.step(torch.rand(8, spec.action_size, generator=generator) * 2 - 1)
        assert env.state_NS.isfinite().all() and result.final_state_NS.isfinite().all()
        assert env.state_NS.abs().max() < 1e3
    assert isinstance(env.simulator, CpuSimulator)
    assert env.simulator.num_warnings == 0


@pytest.mark.parametrize("name", TASKS)
def test_thresholds_and_goal_slice(name: str) -> None:
    spec = task_spec(name)
    expected = {"success": 0.05} if name == "reacher" else {"success": 0.5, "success_easy": 2.0}
    assert spec.success_radius == expected
    task = make_task(name)
    first = {"reacher": 4}.get(name, 0)
    state = torch.arange(spec.state_size).float()
    assert task.achieved_goal(state).tolist() == list(range(first, first + spec.goal_size))
    goal = torch.zeros(2, spec.goal_size)
    for level, radius in spec.success_radius.items():
        achieved = torch.zeros(2, spec.goal_size)
        achieved[:, 0] = torch.tensor([0.99 * radius, 1.01 * radius])
        assert task.success(achieved, goal)[level].tolist() == [True, False]


# (free, goal) cells; every start cell is free and none is a goal.
CELLS = {
    "u": (7, 6),
    "u2": (9, 8),
    "u3": (11, 10),
    "u4": (11, 10),
    "u5": (17, 16),
    "u6": (15, 14),
    "u7": (13, 12),
    "big": (26, 25),
    "hardest": (46, 45),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    grid = LAYOUTS[layout]
    assert len({len(row) for row in grid}) == 1
    plain = LAYOUTS[layout.partition("_maze")[0] + "_maze"]
    for kinds in ("#", "R"):
        assert cells(grid, kinds) == cells(plain, kinds)
    assert len(cells(grid, "R")) == 1
    free, goals = CELLS[layout.partition("_maze")[0]]
    assert len(cells(grid, ".RG")) == free
    if grid == plain:
        assert len(cells(grid, "G")) == goals
    else:
        assert set(cells(grid, "G")) < set(cells(plain, "G"))


def test_big_maze_eval_has_nine_goals_for_ants_and_ten_for_points() -> None:
    assert len(cells(LAYOUTS["big_maze_eval"], "G")) == 9
    assert len(goals_of("ant_big_maze_eval").unique(dim=0)) == 9
    assert len(goals_of("point_big_maze_eval").unique(dim=0)) == 10
    assert [8.0, 20.0] in goals_of("point_big_maze_eval").tolist()


@pytest.mark.parametrize("name", MAZES)
def test_maze_goals_are_the_centres_of_goal_cells(name: str) -> None:
    layout = {"point_big_maze_eval": "big_maze_eval_10_goals"}.get(name, name.partition("_")[2])
    grid = LAYOUTS[layout]
    expected = sorted([4.0 * i, 4.0 * j] for i, j in cells(grid, "G"))
    assert sorted(goals_of(name, 2000).unique(dim=0).tolist()) == expected
    task = make_task(name)
    start = task.sample_start(64, Generator().manual_seed(0)).qpos_NQ[:, :2]
    centre = torch.tensor(cells(grid, "R"), dtype=torch.float64) * 4.0
    noise = 0.1 if name.startswith("ant") else 0.0
    assert (start - centre).abs().max() <= noise + 1e-6
    walls = [
        geom for geom in range(task.model.ngeom) if task.model.geom(geom).name.startswith("wall")
    ]
    assert len(walls) == len(cells(grid, "#"))
    assert (task.model.geom_size[walls] == [2.0, 2.0, 1.0]).all()


def test_ant_goals_lie_on_a_circle_of_ten_metres() -> None:
    goals = goals_of("ant")
    torch.testing.assert_close(goals.norm(dim=-1), torch.full((512,), 10.0))
    assert goals.mean(0).abs().max() < 2.0


def test_humanoid_goals_are_uniform_in_radius() -> None:
    goals = goals_of("humanoid", 4000)
    radius = goals[:, :2].norm(dim=-1)
    assert radius.min() >= 1.0 and radius.max() <= 5.0
    assert float(radius.mean()) == pytest.approx(3.0, abs=0.1)
    assert (goals[:, 2] == 1.25).all()


def test_reacher_goals_are_uniform_in_radius() -> None:
    goals = goals_of("reacher", 4000)
    radius = goals[:, :2].norm(dim=-1)
    assert radius.max() <= 0.2
    assert float(radius.mean()) == pytest.approx(0.1, abs=0.005)
    assert torch.allclose(goals[:, 2], torch.tensor(0.01))


ACTION_ORDER = {
    "reacher": ["joint0", "joint1"],
    "ant": ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"],
    "humanoid": [
        *("abdomen_y", "abdomen_z", "abdomen_x"),
        *("right_hip_x", "right_hip_z", "right_hip_y", "right_knee"),
        *("left_hip_x", "left_hip_z", "left_hip_y", "left_knee"),
        *("right_shoulder1", "right_shoulder2", "right_elbow"),
        *("left_shoulder1", "left_shoulder2", "left_elbow"),
    ],
    "point": ["x", "y"],
}
GEAR = {
    "reacher": [25.0] * 2,
    "ant": [150.0] * 8,
    "humanoid": [100, 100, 100] + [100, 100, 300, 200] * 2 + [25] * 6,
    "point": [5.0] * 2,
}
CONTROL_STEP = {"reacher": 0.02, "ant": 0.05, "humanoid": 0.015, "point": 0.05}


@pytest.mark.parametrize("name", TASKS)
def test_action_order_gear_and_physics(name: str) -> None:
    task = make_task(name)
    model, family = task.model, name.partition("_")[0]
    joints = [model.joint(joint).name for joint in model.actuator_trnid[:, 0]]
    assert joints == ACTION_ORDER[family]
    assert model.actuator_gear[:, 0].tolist() == GEAR[family]
    assert model.opt.timestep * task.substeps == pytest.approx(CONTROL_STEP[family])
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL


def _contact_pairs(model: mujoco.MjModel) -> set[frozenset[str]]:
    """Kinds of geoms that may touch: names without their numbers."""

    def kind(geom: int) -> str:
        name = model.geom(geom).name
        for part in ("wall", "foot", "aux", "torso", "floor", "ankle", "leg"):
            if part in name:
                return part
        return name

    pairs = set()
    for a in range(model.ngeom):
        for b in range(a):
            bits = (model.geom_contype[a] & model.geom_conaffinity[b]) | (
                model.geom_contype[b] & model.geom_conaffinity[a]
            )
            if bits and model.geom_bodyid[a] != model.geom_bodyid[b]:
                pairs.add(frozenset((kind(a), kind(b))))
    return pairs


def test_ant_contacts() -> None:
    assert _contact_pairs(make_task("ant").model) == {frozenset(("foot", "floor"))}
    assert _contact_pairs(make_task("ant_u_maze").model) == {
        frozenset(pair)
        for pair in (
            ("foot", "floor"),
            ("foot", "wall"),
            ("torso", "wall"),
            ("aux", "wall"),
            ("foot",),
            ("foot", "torso"),
            ("foot", "aux"),
        )
    }
    model = make_task("ant").model
    assert model.body_mass.sum() == pytest.approx(0.911, abs=5e-4)


def test_humanoid_touches_the_floor_and_not_itself() -> None:
    model = make_task("humanoid").model
    assert all("floor" in pair for pair in _contact_pairs(model))
    assert model.body_mass.sum() == pytest.approx(42.116, abs=5e-4)
    masses = [8.908, 2.262, 6.616, 4.752, 4.523, 4.752, 4.523, 1.661, 1.230, 1.661, 1.230]
    assert model.body_mass[1:].tolist() == pytest.approx(masses, abs=1e-3)


def test_humanoid_state_against_mujoco_in_fp64() -> None:
    task = make_task("humanoid")
    env = make_env(task, num_envs=4)
    generator = Generator().manual_seed(2)
    for _ in range(20):
        action = torch.rand(4, 17, generator=generator) * 2 - 1
        env.step(action)
    assert isinstance(env.simulator, CpuSimulator)
    model = task.model
    for n in range(4):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = (
            env.simulator.data[name][n].numpy() for name in ("qpos", "qvel")
        )
        data.ctrl[:] = 0.4 * action[n].numpy()
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


def test_reacher_state_against_finite_differences() -> None:
    task = make_task("reacher")
    env = make_env(task, num_envs=16)
    for _ in range(30):
        env.step(torch.rand(16, 2, generator=Generator().manual_seed(3)) * 2 - 1)
    state, simulator = env.state_NS.double(), env.simulator
    angles, rates = simulator.data["qpos"], simulator.data["qvel"]
    torch.testing.assert_close(state[:, :2], angles.cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(state[:, 2:4], angles.sin(), atol=1e-6, rtol=0)

    def tip(q: Tensor) -> Tensor:
        total = q[:, :1] + q[:, 1:]
        arm = [0.1 * q[:, :1].cos() + 0.11 * total.cos(), 0.1 * q[:, :1].sin() + 0.11 * total.sin()]
        return torch.cat(arm, dim=-1)

    torch.testing.assert_close(state[:, 4:6], tip(angles), atol=1e-6, rtol=0)
    step = 1e-6
    velocity = (tip(angles + step * rates) - tip(angles - step * rates)) / (2 * step)
    torch.testing.assert_close(state[:, 7:9], velocity, atol=1e-5, rtol=1e-5)
    assert not state[:, 9].any()


def test_control_of_humanoid_is_scaled_and_others_are_not() -> None:
    for name, scale in (("humanoid", 0.4), ("ant", 1.0), ("point_u_maze", 1.0), ("reacher", 1.0)):
        task = make_task(name)
        env = make_env(task, num_envs=2)
        action = torch.full((2, task.spec.action_size), 0.5)
        # Read what arrived before a reset can clear it.
        torch.testing.assert_close(task.control(action, env.simulator), scale * action)


def test_point_moves_as_newton_says() -> None:
    task = make_task("point_u_maze")
    env = make_env(task, num_envs=1)
    x0, v0 = env.state_NS[0, 1].item(), env.state_NS[0, 3].item()
    for _ in range(4):
        env.step(torch.tensor([[0.0, 1.0]]))
    # 5 N on 0.327 kg and 1 kg of armature, for 0.2 s; implicit Euler with steps of 0.01 s.
    mass = 1.0 + 5.0 * 4 / 3 * math.pi * 0.25**3
    assert env.state_NS[0, 3].item() == pytest.approx(v0 + 5.0 / mass * 0.2, rel=1e-5)
    expected = x0 + v0 * 0.2 + 5.0 / mass * 0.01**2 * (20 * 21 / 2)
    assert env.state_NS[0, 1].item() == pytest.approx(expected, rel=1e-5)


def test_walls_hold_the_point() -> None:
    env = make_env(make_task("point_u_maze"), num_envs=4)
    push = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [-1.0, -1.0]])
    for _ in range(200):
        env.step(push)
    # The start cell spans 2..6 m; the sphere of 0.25 m stays inside within a soft contact's give.
    assert env.state_NS[:, 0].min() > 2.15 and env.state_NS[0, 0] < 5.85
    assert env.state_NS[:, 1].min() > 2.15


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UnknownTaskError, match="nearest: ant_big_maze"):
        task_spec("ant_bigmaze")
    with pytest.raises(UnknownTaskError, match="no_such_module"):
        task_spec("no_such_module:make")


def test_registering_a_name_twice_is_an_error() -> None:
    spec = TaskSpec(name="twice", state_size=1, goal_slice=(0, 1), action_size=1, success_radius={})
    with pytest.raises(ValueError, match="'twice' is registered twice"):
        _index([spec, spec])
