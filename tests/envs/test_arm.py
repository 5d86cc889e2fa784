"""The arm tasks on the simulator: starts, goals, state, control, success, what a cube does."""

import math

import mujoco
import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from torch_crl.envs.make import make_vector_env
from torch_crl.envs.registry import TASKS, make_task, task_spec
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.tasks import arm

ARMS = [name for name in TASKS if name.startswith("arm")]
BINS = ["arm_binpick_easy", "arm_binpick_hard", "arm_binpick_easy_eef"]
CUBES = [name for name in ARMS if name != "arm_reach"]


def make_env(name: str, *, num_envs: int, seed: int = 0) -> TaskVectorEnv:
    return make_vector_env(name, num_envs=num_envs, episode_length=10_000, seed=seed)


def cube_address(name: str) -> int:
    return int(make_task(name).model.joint("cube").qposadr[0])


def test_action_to_joint_targets() -> None:
    middle = [1.5708, 0.7418, 0.0, -1.5708, 0.0, 3.0543, 1.4487]
    env = make_env("arm_push_easy", num_envs=3)
    action = torch.tensor([[0.0] * 5, [1.0] * 5, [-1.0] * 5])
    target = env.task.control(action, env.simulator)
    assert target[0, :7].tolist() == pytest.approx(middle)
    moved = [1.2217, 0.7418, 0.0, 1.5010, 0.0, 0.6982, 0.0]
    assert (target[1] - target[0])[:7].tolist() == pytest.approx(moved, abs=1e-6)
    assert (target[2] - target[0])[:7].tolist() == pytest.approx([-x for x in moved], abs=1e-6)
    # Closed at 0, since only more than 0 closes.
    assert target[:, 7:].tolist() == pytest.approx(
        torch.tensor([0.05, 0.0, 0.05])[:, None].expand(3, 2)
    )
    # No target lies outside its actuator's range, which would cut it off.
    low, high = torch.from_numpy(env.task.model.actuator_ctrlrange).unbind(-1)
    assert (target >= low - 1e-6).all() and (target <= high + 1e-6).all()


def test_the_gantrys_target_is_relative_to_where_the_hand_is() -> None:
    env = make_env("arm_binpick_easy_eef", num_envs=2)
    env.step(torch.tensor([[1.0, -0.5, 0.2, 1.0], [0.0, 0.0, 0.0, -1.0]]))
    hand = env.state_NS[:, 3:6]
    action = torch.tensor([[0.5, -2.0, 1.0, 1.0], [-1.0, 0.0, 0.25, -1.0]])
    target = env.task.control(action, env.simulator)
    offset = torch.tensor([[0.1, -0.2, 0.2], [-0.2, 0.0, 0.05]])
    torch.testing.assert_close(target[:, :3].float(), hand + offset)
    assert target[:, 3:].tolist() == [[0.0, 0.0], pytest.approx([0.05, 0.05])]


def mujoco_state(name: str, data: mujoco.MjData) -> list[np.ndarray]:
    """The state by its definition, out of MuJoCo's own functions."""
    model = data.model

    def velocity(body: str) -> np.ndarray:
        found = np.zeros(6)
        body_id = model.body(body).id
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, body_id, found, 0)
        return found[3:]

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([np.linalg.norm(a - b)])

    joints = np.array(
        [data.joint(f"joint{i}").qpos[0] for i in range(1, 8)] if name[-3:] != "eef" else []
    )
    if name == "arm_reach":
        return [joints, data.body("link7").xpos, velocity("link7")]
    fingers = [data.body(f"{side}_finger").xpos for side in ("left", "right")]
    cube = data.body("cube").xpos
    if name == "arm_binpick_easy_eef":
        force = [data.actuator(f"{side}_finger").force[0] for side in ("left", "right")]
        hand = data.body("hand").xpos
        return [cube, hand, velocity("hand"), apart(*fingers), np.array([0.1 * np.mean(force)])]
    parts = [cube, joints, data.body("link7").xpos, velocity("link7")]
    if name == "arm_grasp":
        tips = [data.site(f"{side}_finger_tip").xpos for side in ("left", "right")]
        return [*parts, *tips, apart(*tips)]
    return [*parts, apart(*fingers)]


@pytest.mark.parametrize("name", ARMS)
def test_state_against_mujoco_in_fp64(name: str) -> None:
    env = make_env(name, num_envs=3)
    task, generator = env.task, Generator().manual_seed(2)
    for _ in range(6):
        env.step(torch.rand(3, task.spec.action_size, generator=generator) * 2 - 1)
    for n in range(3):
        data = mujoco.MjData(task.model)
        for field in ("qpos", "qvel", "ctrl"):
            getattr(data, field)[:] = env.simulator.data[field][n].numpy()
        mujoco.mj_forward(task.model, data)
        assert np.abs(data.qvel).max() > 0.1
        expected = np.concatenate(mujoco_state(name, data))
        torch.testing.assert_close(
            env.state_NS[n].double(), torch.from_numpy(expected), atol=1e-6, rtol=1e-6
        )


def test_finger_force_at_the_start_is_of_this_episode() -> None:
    env = make_env("arm_binpick_easy_eef", num_envs=2)
    # No target yet: both servos pull from 0.04 to 0 with 500 N / m.
    assert env.state_NS[:, 10].tolist() == pytest.approx([-2.0, -2.0])
    env.step(torch.ones(2, 4))
    env.reset()
    assert env.state_NS[:, 10].tolist() == pytest.approx([-2.0, -2.0])


def square(low: tuple[float, float], high: tuple[float, float]) -> Tensor:
    return torch.tensor([low, high])


# Corners of the squares in which cubes start and goals lie.
STARTS = {
    "arm_grasp": square((-0.3, 0.3), (0.3, 0.9)),
    "arm_push_easy": square((-0.2, 0.5), (0.0, 0.7)),
    "arm_push_hard": square((-0.5, 0.4), (0.0, 0.9)),
    "arm_binpick_easy": square((-0.24, 0.53), (-0.1, 0.67)),
    "arm_binpick_hard": square((-0.45, 0.45), (-0.15, 0.75)),
    "arm_binpick_easy_eef": square((-0.24, 0.53), (-0.1, 0.67)),
}
GOALS = {
    "arm_push_easy": square((0.0, 0.5), (0.2, 0.7)),
    "arm_push_hard": square((0.0, 0.4), (0.5, 0.9)),
    "arm_binpick_easy": square((0.08, 0.51), (0.26, 0.69)),
    "arm_binpick_hard": square((0.15, 0.45), (0.45, 0.75)),
    "arm_binpick_easy_eef": square((0.08, 0.51), (0.26, 0.69)),
}


def assert_fills(points: Tensor, box: Tensor) -> None:
    """All inside the box, and 2000 of them come within 1 % of every side."""
    low, high = box.to(points.dtype)
    slack = 0.01 * (high - low)
    assert ((points >= low - 1e-6) & (points <= high + 1e-6)).all()
    assert (points.amin(0) < low + slack).all() and (points.amax(0) > high - slack).all()


@pytest.mark.parametrize("name", ARMS)
def test_starts_and_goals_lie_where_the_table_says(name: str) -> None:
    task = make_task(name)
    start = task.sample_start(2000, Generator().manual_seed(0))
    assert not start.qvel_NV.any() and start.qvel_NV.shape == (2000, task.model.nv)
    assert start.goal_NG.dtype == torch.float32
    if name == "arm_reach":
        assert_fills(start.goal_NG, torch.tensor([[-0.2, 0.3, 0.1], [0.2, 0.7, 0.5]]))
        return
    first = cube_address(name)
    assert_fills(start.qpos_NQ[:, first : first + 2], STARTS[name])
    assert (
        start.qpos_NQ[:, first + 2 :]
        == torch.tensor([0.07, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    ).all()
    assert (start.qpos_NQ[:, first - 2 : first] == 0.04).all()
    if name in GOALS:
        assert_fills(start.goal_NG[:, :2], GOALS[name])
        assert (start.goal_NG[:, 2] == 0.03).all()


def test_grasp_cubes_start_within_the_spread_asked_for() -> None:
    task = arm.make_grasp(task_spec("arm_grasp"), spread=0.05)
    cube = task.sample_start(2000, Generator().manual_seed(0)).qpos_NQ[:, 9:11]
    assert_fills(cube, square((-0.05, 0.55), (0.05, 0.65)))


def test_success_of_a_grasp_asks_for_place_and_opening() -> None:
    task = make_task("arm_grasp")
    goal = torch.tensor([0.1375, 0.6, 0.03, 0.0625, 0.6, 0.03, 0.075])
    # (middle of the fingertips away from the cube, opening) and the levels that allow it.
    cases = [
        (0.0, 0.075, {"success", "success_easy", "success_hard"}),
        (0.019, 0.0799, {"success", "success_easy", "success_hard"}),
        (0.019, 0.0801, {"success", "success_easy"}),
        (0.021, 0.0749, {"success", "success_easy"}),
        (0.049, 0.0551, {"success", "success_easy"}),
        (0.049, 0.0549, {"success_easy"}),
        (0.051, 0.0749, {"success_easy"}),
        (0.149, 0.1249, {"success_easy"}),
        (0.149, 0.1251, set()),
        (0.151, 0.0749, set()),
    ]
    achieved = goal.repeat(len(cases), 1)
    for row, (away, opening, _) in zip(achieved, cases, strict=True):
        # Fingertips that lie across the targets' line: only their middle counts.
        row[:6] = torch.tensor([0.1, 0.6 + opening / 2, 0.03, 0.1, 0.6 - opening / 2, 0.03])
        row[[2, 5]] += away
        row[6] = opening
    success = task.success(achieved, goal.expand(len(cases), -1))
    for n, (_, _, levels) in enumerate(cases):
        assert {level for level, reached in success.items() if reached[n]} == levels, cases[n]


def test_the_goal_of_a_grasp_follows_the_cube_without_lag() -> None:
    env = make_env("arm_grasp", num_envs=4)
    side = torch.tensor([0.0375, 0.0, 0.0])

    def asked(cube: Tensor) -> Tensor:
        return torch.cat([cube + side, cube - side, torch.full((4, 1), 0.075)], dim=-1)

    torch.testing.assert_close(env.goal_NG, asked(env.state_NS[:, :3]))
    assert (env.state_NS[:, 2] == 0.07).all()
    env.simulator.data["qvel"][:, 9] = 1.0
    before = env.state_NS[:, :3].clone()
    env.step(torch.zeros(4, 5))
    assert (env.state_NS[:, 0] - before[:, 0] > 0.02).all()
    torch.testing.assert_close(env.goal_NG, asked(env.state_NS[:, :3]))
    points = env.task.goal_points(env.goal_NG[0])
    torch.testing.assert_close(points, torch.stack([env.goal_NG[0, :3], env.goal_NG[0, 3:6]]))


@pytest.mark.parametrize("name", CUBES)
def test_fingers_open_and_close_and_the_cube_comes_to_rest(name: str) -> None:
    env = make_env(name, num_envs=2)
    action = torch.zeros(2, env.spec.action_size)
    # Away from a cube that may lie below.
    action[:, -2 if name.endswith("eef") else 2] = 0.3
    for grip, distance in ((-1.0, 0.1), (1.0, 0.0)):
        action[:, -1] = grip
        for _ in range(40):
            env.step(action)
        left, right = env.simulator.data["qpos"][:, cube_address(name) - 2 : cube_address(name)].T
        torch.testing.assert_close(
            left + right, torch.full((2,), distance).double(), atol=2e-3, rtol=0
        )
        torch.testing.assert_close(left, right, atol=1e-4, rtol=0)
    assert env.state_NS[:, 2].tolist() == pytest.approx([0.03, 0.03], abs=1e-3)
    first = env.task.model.joint("cube").dofadr[0]
    assert env.simulator.data["qvel"][:, first : first + 6].abs().max() < 1e-3


@pytest.mark.parametrize(("name", "half"), [*zip(BINS, (0.135, 0.185, 0.135), strict=True)])
def test_bins_hold_the_cube(name: str, half: float) -> None:
    env = make_env(name, num_envs=8)
    first = env.task.model.joint("cube").dofadr[0]
    x = 0.3 if name == "arm_binpick_hard" else 0.17
    centre = torch.tensor([[-x, 0.6]] * 4 + [[x, 0.6]] * 4)
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).repeat(2, 1)
    qpos, qvel = env.simulator.data["qpos"], env.simulator.data["qvel"]
    qpos[:, cube_address(name) : cube_address(name) + 2] = centre.double()
    qpos[:, cube_address(name) + 2] = 0.03
    # Friction alone would stop it after `half`.
    qvel[:, first : first + 2] = math.sqrt(2.0 * 9.81 * half) * directions.double()
    farthest = torch.zeros(8)
    for _ in range(20):
        env.step(torch.zeros(8, env.spec.action_size))
        farthest = torch.maximum(farthest, ((env.state_NS[:, :2] - centre) * directions).sum(-1))
    # It slides to the wall, which its face touches 3 cm before its centre.
    assert farthest.tolist() == pytest.approx([half - 0.03] * 8, abs=5e-3)
    assert env.state_NS[:, 2].tolist() == pytest.approx([0.03] * 8, abs=2e-3)


def test_the_fence_holds_the_cube() -> None:
    env = make_env("arm_binpick_easy_eef", num_envs=4)
    corner = torch.tensor([[0.34, 0.78], [0.34, 0.42], [-0.34, 0.78], [-0.34, 0.42]])
    outwards = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    first = cube_address("arm_binpick_easy_eef")
    env.simulator.data["qpos"][:, first : first + 2] = corner.double()
    env.simulator.data["qvel"][:, 5:7] = outwards.double()
    for _ in range(20):
        env.step(torch.zeros(4, 4))
    # Inner faces at 0.39 in x, 0.36 and 0.84 in y.
    limit = torch.tensor([0.36, 0.21]).expand(4, 2)
    offset = (env.state_NS[:, :2] - torch.tensor([0.0, 0.6])).abs()
    assert (offset <= limit + 2e-3).all() and (env.state_NS[:, 2] - 0.03).abs().max() < 2e-3


def test_the_gantry_carries_cubes_from_bin_to_bin() -> None:
    env = make_env("arm_binpick_easy_eef", num_envs=4)
    cube, goal = env.state_NS[:, :2].clone(), env.goal_NG[:, :2].clone()
    grip = {"open": -1.0, "closed": 1.0}
    for xy, height, fingers, steps in (
        (cube, 0.25, "open", 25),
        (cube, 0.15, "open", 15),
        (cube, 0.15, "closed", 12),
        (cube, 0.28, "closed", 20),
        (goal, 0.28, "closed", 40),
        (goal, 0.16, "closed", 15),
        (goal, 0.16, "open", 15),
    ):
        for _ in range(steps):
            hand = env.state_NS[:, 3:6]
            target = torch.nn.functional.pad(xy, (0, 1), value=height)
            moved = ((target - hand) / 0.2).clamp(-1.0, 1.0)
            result = env.step(torch.nn.functional.pad(moved, (0, 1), value=grip[fingers]))
        if (height, fingers) == (0.28, "closed"):
            assert (env.state_NS[:, 2] > 0.1).all()
    assert result.success["success_hard"].all()
