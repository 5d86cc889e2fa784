"""The arm's model against published numbers, and which goals it can reach."""

import math

import mujoco
import numpy as np
import pytest
import torch
from torch import Generator

from torch_crl.envs.registry import TASKS, make_task, task_spec
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.task import Task
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.tasks import arm

ARMS = [name for name in TASKS if name.startswith("arm")]
BINS = ["arm_binpick_easy", "arm_binpick_hard", "arm_binpick_easy_eef"]
START_POSE = [1.571, 0.742, 0.0, -1.571, 0.0, 3.054, 1.449]


@pytest.mark.parametrize("name", ARMS)
def test_flange_and_hand_at_the_start_are_where_the_reference_has_them(name: str) -> None:
    task = make_task(name)
    data = mujoco.MjData(task.model)
    data.qpos[:] = task.sample_start(1, Generator().manual_seed(0)).qpos_NQ[0].numpy()
    mujoco.mj_forward(task.model, data)
    hand_axis = data.body("hand").xmat.reshape(3, 3)[:, 2]
    if name == "arm_binpick_easy_eef":
        assert data.body("hand").xpos == pytest.approx([0.0, 0.6, 0.2])
        assert hand_axis == pytest.approx([0.0, 0.0, -1.0])
        return
    assert data.qpos[:7].tolist() == START_POSE
    assert data.body("link7").xpos == pytest.approx([0.0, 0.678, 0.371], abs=6e-4)
    assert hand_axis == pytest.approx([0.0, 0.675, -0.738], abs=6e-4)
    if name != "arm_reach":
        # 5.84 cm from the hand to a finger, then 0.5 cm along its slide and 7 cm along the hand.
        centre = data.body("hand").xpos + 0.1284 * hand_axis
        slide = data.body("hand").xmat.reshape(3, 3)[:, 1]
        for finger, sign in (("left_finger", 1.0), ("right_finger", -1.0)):
            tip = data.site(f"{finger}_tip").xpos
            assert tip == pytest.approx(centre + sign * 0.045 * slide, abs=1e-9)
        assert slide[0] > 0.0


@pytest.mark.parametrize("name", ARMS)
def test_masses(name: str) -> None:
    model = make_task(name).model
    # Franka's links, and the hand's capsule: a cylinder and a ball of water.
    links = 4.970684 + 0.646926 + 3.228604 + 3.587895 + 1.225946 + 1.666555 + 0.735522
    hand = 1000.0 * math.pi * (0.04**2 * 0.12 + 4 / 3 * 0.04**3)
    assert hand == pytest.approx(0.871, abs=5e-4)
    expected = hand if name.endswith("eef") else links + hand
    if name != "arm_reach":
        expected += 2 * 0.015 + 1000.0 * 0.06**3
    assert model.body_mass.sum() == pytest.approx(expected, rel=1e-9)


def touching(name: str) -> set[frozenset[str]]:
    """Pairs of geoms that may touch, the walls of a kind under one name."""
    model = make_task(name).model
    assert not model.geom_contype.any() and not model.geom_conaffinity.any()
    assert (model.pair_dim == 3).all() and (model.pair_friction[:, :2] == 1.0).all()

    def kind(geom: int) -> str:
        return str(model.geom(geom).name).partition("_x_")[0].partition("_y_")[0]

    pairs = zip(model.pair_geom1, model.pair_geom2, strict=True)
    return {frozenset((kind(a), kind(b))) for a, b in pairs}


@pytest.mark.parametrize("name", ARMS)
def test_what_touches(name: str) -> None:
    hand = ["hand", "left_finger", "right_finger"]
    expected = {frozenset(("table", "hand"))}
    if name != "arm_reach":
        expected |= {frozenset((other, "cube")) for other in ["table", *hand]}
        expected |= {frozenset(("table", part)) for part in hand}
        expected |= {frozenset(hand[1:])}
    if name in BINS:
        walls = ("bin_start", "bin_goal")
        expected |= {frozenset((wall, other)) for wall in walls for other in ["cube", *hand]}
    if name.endswith("eef"):
        expected |= {frozenset(("fence", "cube"))}
    assert touching(name) == expected
    walls = 8 * (name in BINS)
    pairs = 1 if name == "arm_reach" else 8 + 4 * walls + 4 * name.endswith("eef")
    assert make_task(name).model.npair == pairs
    assert make_task(name).model.opt.impratio == (10.0 if name in BINS else 1.0)


@pytest.mark.parametrize("name", ARMS)
def test_servos(name: str) -> None:
    """Force = stiffness (target - q) - 0.1 s stiffness qd, up to a limit."""
    model = make_task(name).model
    stiffness = np.array([4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0, 500.0, 500.0])
    force = np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0, 500.0, 500.0])
    if name == "arm_reach":
        stiffness, force = stiffness[:7], force[:7]
    if name.endswith("eef"):
        stiffness = np.array([1000.0, 1000.0, 1000.0, 500.0, 500.0])
        force = np.array([87.0, 87.0, 87.0, 500.0, 500.0])
    assert model.actuator_gainprm[:, 0] == pytest.approx(stiffness)
    assert model.actuator_biasprm[:, 1] == pytest.approx(-stiffness)
    assert model.actuator_biasprm[:, 2] == pytest.approx(-0.1 * stiffness)
    assert model.actuator_forcerange[:, 1] == pytest.approx(force)
    assert model.actuator_forcerange[:, 0] == pytest.approx(-force)
    for joint in (model.joint(joint) for joint in range(model.njnt)):
        free = joint.name in ("cube", "x", "y", "z")
        assert (joint.damping == (0.0 if free else 5.0)).all()
        assert (joint.armature == (0.0 if free else 0.1)).all()


# What the servos settle at with action 0, by hand: (gain / stiffness) x target.
SETTLED = {
    "exact": [1.5708, 0.7418, 0.0, -1.5708, 0.0, 3.0543, 1.4487],
    "reference": [1.5708, 0.7418, 0.0, -1.5708 * 4 / 7, 0.0, 3.0543 / 2, 1.4487 / 2],
}


def env_of(task: Task) -> TaskVectorEnv:
    simulator = CpuSimulator(task.model, num_envs=1, fields=task.fields)
    generator = Generator().manual_seed(0)
    return TaskVectorEnv(task, simulator, episode_length=10_000, generator=generator)


@pytest.mark.parametrize("servo", SETTLED)
def test_settling_angles(servo: str) -> None:
    env = env_of(arm.make_reach(task_spec("arm_reach"), servo=servo))
    for _ in range(100):
        env.step(torch.zeros(1, 4))
    # Gravity bends the servos by a hundredth of a radian.
    assert env.state_NS[0, :7].tolist() == pytest.approx(SETTLED[servo], abs=0.02)
    if servo == "reference":
        # Measured on the reference, whose hand weighs nothing.
        assert env.state_NS[0, 7:10].tolist() == pytest.approx([0.0, 0.753, 0.545], abs=0.01)


def test_a_servo_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match="one of exact, reference, not 'soft'"):
        arm.make_reach(task_spec("arm_reach"), servo="soft")


def reachable(name: str, *, body: str, tolerance: float, poses: int, goals: int) -> float:
    """The share of a task's goals that some static pose brings the flange or the fingertips to.

    `poses` random actions give joint angles (those the exact servos settle at); a pose counts if
    nothing of the hand is below the table and, for fingertips, if these are within 6 cm of it;
    there only the horizontal distance counts. Joint 1 turns all of them about the vertical.
    """
    task = make_task(name)
    model, data = task.model, mujoco.MjData(task.model)
    generator = Generator().manual_seed(0)
    action = torch.rand(poses, task.spec.action_size, generator=generator) * 2 - 1
    action[:, 0] = 0.0
    simulator = CpuSimulator(model, num_envs=1)
    angles = task.control(action, simulator)[:, :7].numpy()
    hand = [
        g
        for g in range(model.ngeom)
        if model.geom(g).name in ("hand", "left_finger", "right_finger")
    ]
    found = []
    for angle in angles:
        data.qpos[:7] = angle
        mujoco.mj_kinematics(model, data)
        if body == "flange":
            point = data.body("link7").xpos
        else:
            point = 0.5 * (data.site("left_finger_tip").xpos + data.site("right_finger_tip").xpos)
        if point[2] < 0.0 or (body == "fingertips" and point[2] > 0.06):
            continue
        if min(lowest_point(model, data, geom) for geom in hand) >= 0.0:
            found.append(point[1:].copy())
    pose_P2 = torch.from_numpy(np.array(found))
    goal = task.sample_start(goals, generator).goal_NG.double()
    azimuth = torch.atan2(goal[:, 1], goal[:, 0]).clamp(math.pi / 2 - 1.2217, math.pi / 2 + 1.2217)
    along = goal[:, 0] * azimuth.cos() + goal[:, 1] * azimuth.sin()
    across = goal[:, 0] * azimuth.sin() - goal[:, 1] * azimuth.cos()
    if body == "fingertips":
        in_plane = torch.cdist(along[:, None], pose_P2[:, :1]).amin(-1)
    else:
        in_plane = torch.cdist(torch.stack([along, goal[:, 2]], -1), pose_P2).amin(-1)
    return float((torch.hypot(in_plane, across) < tolerance).double().mean())


def lowest_point(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> float:
    """Height of the lowest point of a box or a capsule."""
    upwards, size = data.geom_xmat[geom, 6:], model.geom_size[geom]
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX:
        return float(data.geom_xpos[geom, 2] - np.abs(upwards) @ size)
    return float(data.geom_xpos[geom, 2] - abs(upwards[2]) * size[1] - size[0])


@pytest.mark.parametrize(
    ("name", "body", "tolerance", "share"),
    [
        ("arm_push_easy", "fingertips", 0.03, 0.99),
        ("arm_binpick_easy", "fingertips", 0.03, 0.99),
        ("arm_binpick_hard", "fingertips", 0.03, 0.99),
        ("arm_push_hard", "fingertips", 0.03, 0.9),
        ("arm_reach", "flange", 0.1, 0.99),
        ("arm_reach", "flange", 0.03, 0.85),
    ],
)
def test_goals_are_within_reach(name: str, body: str, tolerance: float, share: float) -> None:
    found = reachable(name, body=body, tolerance=tolerance, poses=4000, goals=500)
    assert found >= share
