"""Every registered task, by walking the registry, on the real simulator."""

import itertools
import math
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.tasks import entry, goals_of, make_env
from torch_crl.envs.registry import TASKS, UnknownTaskError, _index, make_task, task_spec
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.simulators.fields import Fields
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.tasks.layouts import LAYOUTS, cells

MAZES = [name for name, spec in TASKS.items() if spec.build.endswith(":make_maze")]
# Whatever a name begins with is its family; the longest beginning counts.
SIZES = {
    "reacher": (10, 3, 2),
    "ant": (29, 2, 8),
    "ant_ball": (31, 2, 8),
    "ant_push": (31, 2, 8),
    "point": (4, 2, 2),
    "humanoid": (246, 3, 17),
    "half_cheetah": (18, 1, 6),
    "pusher": (20, 3, 7),
    "pusher_reacher": (17, 3, 7),
    "pusher2": (23, 6, 7),
    "arm": (17, 3, 5),
    "arm_reach": (13, 3, 4),
    "arm_grasp": (23, 7, 5),
    "arm_binpick_easy_eef": (11, 3, 4),
}
GOAL_START = {
    "": 0,
    "reacher": 4,
    "ant_ball": 29,
    "pusher": 10,
    "pusher_reacher": 14,
    "arm_reach": 7,
    "arm_grasp": 16,
}
THRESHOLDS = {
    "": {"success": 0.5, "success_easy": 2.0},
    "reacher": {"success": 0.05},
    "pusher": {"success": 0.1, "success_hard": 0.05},
    "pusher2": {"success": 0.1, "success_easy": 0.1, "success_hard": 0.05},
    "arm": {"success": 0.1, "success_easy": 0.3, "success_hard": 0.03},
    "arm_grasp": {"success": 0.05, "success_easy": 0.15, "success_hard": 0.02},
}


@pytest.mark.parametrize("name", TASKS)
def test_sizes_and_100_random_steps(name: str) -> None:
    task = make_task(name)
    spec = task.spec
    assert (spec.state_size, spec.goal_size, spec.action_size) == entry(SIZES, name)
    env = make_env(task, num_envs=8)
    assert env.state_NS.shape == (8, spec.state_size) and env.state_NS.dtype == torch.float32
    assert env.goal_NG.shape == (8, spec.goal_size) and env.goal_NG.dtype == torch.float32
    generator = Generator().manual_seed(1)
    for _ in range(100):
        result = env.step(torch.rand(8, spec.action_size, generator=generator) * 2 - 1)
        assert env.state_NS.isfinite().all() and result.final_state_NS.isfinite().all()
        assert env.state_NS.abs().max() < 1e3
    assert isinstance(env.simulator, CpuSimulator)
    assert env.simulator.num_warnings == 0


class Products(TorchDispatchMode):
    """Remembers the dtypes of matrices that are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"}:
            self.dtypes |= {arg.dtype for arg in args if isinstance(arg, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*SIZES, "ant_u_maze"])
def test_states_are_exact_where_torch_may_round_products_to_tf32(name: str) -> None:
    name = {"pusher": "pusher_easy", "point": "point_u_maze", "arm": "arm_push_easy"}.get(
        name, name
    )
    task = make_task(name)
    env = make_env(task, num_envs=3)
    simulator = env.simulator
    # As MuJoCo Warp keeps them.
    simulator.data = Fields({name: data.float() for name, data in simulator.data.items()})
    with Products() as products:
        state_NS = task.state(simulator)
        task.control(torch.ones(3, task.spec.action_size), simulator)
        task.outcome(task.achieved_goal(state_NS), env.goal_NG)
    assert state_NS.dtype == torch.float32
    assert products.dtypes <= {torch.float64}


@pytest.mark.parametrize("name", TASKS)
def test_thresholds_and_goal_slice(name: str) -> None:
    spec = task_spec(name)
    assert spec.success_radius == entry(THRESHOLDS, name)
    task = make_task(name)
    first = entry(GOAL_START, name)
    state = torch.arange(spec.state_size).float()
    assert task.achieved_goal(state).tolist() == list(range(first, first + spec.goal_size))
    if name == "arm_grasp":
        return  # Asks for more than a distance.
    goal = torch.zeros(2, spec.goal_size)
    for level, radius in spec.success_radius.items():
        # x of every point of the goal, where it has several.
        achieved = torch.zeros(2, spec.goal_size)
        achieved[:, ::3] = torch.tensor([[0.99 * radius], [1.01 * radius]])
        assert task.success(achieved, goal)[level].tolist() == [True, False]
        torch.testing.assert_close(task.distance(achieved, goal), achieved[:, 0])


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


def test_big_maze_eval_has_nine_goals_for_ants_and_ten_for_others() -> None:
    assert len(cells(LAYOUTS["big_maze_eval"], "G")) == 9
    assert len(goals_of("ant_big_maze_eval").unique(dim=0)) == 9
    assert len(goals_of("point_big_maze_eval").unique(dim=0)) == 10
    assert len(goals_of("humanoid_big_maze_eval").unique(dim=0)) == 10
    assert [8.0, 20.0] in goals_of("point_big_maze_eval").tolist()


@pytest.mark.parametrize("name", MAZES)
def test_maze_goals_are_the_centres_of_goal_cells(name: str) -> None:
    layout = name.partition("_")[2]
    if name in ("point_big_maze_eval", "humanoid_big_maze_eval"):
        layout = "big_maze_eval_10_goals"
    grid = LAYOUTS[layout]
    scale, height = (2.0, 0.5) if name.startswith("humanoid") else (4.0, 1.0)
    expected = sorted([scale * i, scale * j] for i, j in cells(grid, "G"))
    assert sorted(goals_of(name, 2000)[:, :2].unique(dim=0).tolist()) == expected
    task = make_task(name)
    start = task.sample_start(64, Generator().manual_seed(0)).qpos_NQ[:, :2]
    centre = torch.tensor(cells(grid, "R"), dtype=torch.float64) * scale
    noise = 0.1 if name.startswith("ant") else 0.0
    assert (start - centre).abs().max() <= noise + 1e-6
    walls = [
        geom for geom in range(task.model.ngeom) if task.model.geom(geom).name.startswith("wall")
    ]
    assert len(walls) == len(cells(grid, "#"))
    assert (task.model.geom_size[walls] == [scale / 2, scale / 2, height]).all()
    assert (task.model.geom_pos[walls, 2] == height).all()


def test_the_state_of_reacher_is_what_mujoco_computes() -> None:
    task = make_task("reacher")
    simulator = CpuSimulator(task.model, num_envs=3)
    qpos, qvel = 9 * torch.rand(2, 3, 2, generator=Generator().manual_seed(0)).double() - 4
    simulator.reset(torch.ones(3, dtype=torch.bool), qpos, qvel)
    data, velocity = mujoco.MjData(task.model), np.zeros(6)
    tip = task.model.body("fingertip").id
    for env, row in enumerate(task.state(simulator).numpy()):
        data.qpos[:], data.qvel[:] = qpos[env], qvel[env]
        mujoco.mj_forward(task.model, data)
        kind = mujoco.mjtObj.mjOBJ_XBODY
        mujoco.mj_objectVelocity(task.model, data, kind, tip, velocity, 0)
        angles = [*np.cos(data.qpos), *np.sin(data.qpos)]
        expected = [*angles, *data.xpos[tip], *velocity[3:]]
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-7)


def test_reacher_goals_are_uniform_in_radius() -> None:
    goals = goals_of("reacher", 4000)
    radius = goals[:, :2].norm(dim=-1)
    assert radius.max() <= 0.2
    assert float(radius.mean()) == pytest.approx(0.1, abs=0.005)
    assert torch.allclose(goals[:, 2], torch.tensor(0.01))


_ARM_JOINTS = [f"joint{number}" for number in range(1, 8)]
_FINGERS = ["left_finger", "right_finger"]
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
    "half_cheetah": ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"],
    "pusher": [
        *("r_shoulder_pan_joint", "r_shoulder_lift_joint", "r_upper_arm_roll_joint"),
        *("r_elbow_flex_joint", "r_forearm_roll_joint"),
        *("r_wrist_flex_joint", "r_wrist_roll_joint"),
    ],
    "arm": [*_ARM_JOINTS, *_FINGERS],
    "arm_reach": _ARM_JOINTS,
    "arm_binpick_easy_eef": ["x", "y", "z", *_FINGERS],
}
GEAR = {
    "reacher": [25.0] * 2,
    "ant": [150.0] * 8,
    "humanoid": [100, 100, 100] + [100, 100, 300, 200] * 2 + [25] * 6,
    "point": [5.0] * 2,
    "half_cheetah": [120.0, 90.0, 60.0, 120.0, 60.0, 30.0],
    "pusher": [1.0] * 7,
    "arm": [1.0] * 9,
    "arm_reach": [1.0] * 7,
    "arm_binpick_easy_eef": [1.0] * 5,
}
CONTROL_STEP = {"": 0.05, "reacher": 0.02, "humanoid": 0.015}


@pytest.mark.parametrize("name", TASKS)
def test_action_order_gear_and_physics(name: str) -> None:
    task = make_task(name)
    model = task.model
    joints = [model.joint(joint).name for joint in model.actuator_trnid[:, 0]]
    assert joints == entry(ACTION_ORDER, name)
    assert model.actuator_gear[:, 0].tolist() == entry(GEAR, name)
    assert model.opt.timestep * task.substeps == pytest.approx(entry(CONTROL_STEP, name))
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL


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
    for name in ("humanoid", "ant_push", "point_u_maze", "reacher", "half_cheetah", "pusher2"):
        scale = 0.4 if name == "humanoid" else 1.0
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


def test_pusher_is_no_name_and_its_variants_are_near() -> None:
    with pytest.raises(UnknownTaskError, match=r"nearest: pusher2, pusher_\w+, pusher_\w+"):
        task_spec("pusher")


def test_tasks_are_listed_robot_by_robot() -> None:
    robots = [
        spec.build.rpartition(".")[2].partition(":")[0].split("_")[0] for spec in TASKS.values()
    ]
    assert len(list(itertools.groupby(robots))) == len(set(robots))


def test_registering_a_name_twice_is_an_error() -> None:
    spec = TaskSpec(name="twice", state_size=1, goal_slice=(0, 1), action_size=1, success_radius={})
    with pytest.raises(ValueError, match="'twice' is registered twice"):
        _index([spec, spec])
