"""`arm_*`: a Franka-Panda-like arm at a table brings its flange, its grip or a cube to a goal.

| task | start | goal |
|---|---|---|
| `arm_reach` | no cube | link7's origin in (0, 0.5, 0.3) +- 0.2 m |
| `arm_grasp` | cube at (0, 0.6) +- 0.3 | fingertips 3.75 cm beside the cube in x, 7.5 cm apart |
| `arm_push_easy` | cube at (-0.1, 0.6) +- 0.1 | cube at (0.1, 0.6) +- 0.1 |
| `arm_push_hard` | cube at (-0.25, 0.65) +- 0.25 | cube at (0.25, 0.65) +- 0.25 |
| `arm_binpick_easy` | cube in bin (-0.17, 0.6) +- 0.07 | cube in bin (0.17, 0.6) +- 0.09 |
| `arm_binpick_hard` | cube in bin (-0.3, 0.6) +- 0.15 | cube in bin (0.3, 0.6) +- 0.15 |
| `arm_binpick_easy_eef` | as `arm_binpick_easy`, with the hand alone on slides | the same |

All ranges are uniform, in x and y (for reach also in z). The cube starts at z = 0.07 and falls; its
goals have z = 0.03, where it rests. The arm always starts in one pose, at rest. No state is a
failure. A control step is 0.05 s. Episodes have 1000 steps, as in the published runs; the
reference's classes suggest 50 to 150.

State, with positions in m and world axes; "flange" is link7's origin:

- reach (13): 0:7 joint angles, 7:10 flange, 10:13 its velocity.
- push, binpick (17): 0:3 cube, 3:10 joint angles, 10:13 flange, 13:16 its velocity, 16 distance of
  the finger bodies.
- grasp (23): 0:16 as in push, 16:19 left fingertip, 19:22 right fingertip, 22 their distance.
- eef (11): 0:3 cube, 3:6 hand, 6:9 its velocity, 9 distance of the finger bodies, 10 a tenth of the
  mean force of the two finger servos (N; -2 at a start, where no target is set yet).

The goal is compared with state 7:10 in reach, 16:23 in grasp, and 0:3 in the other tasks.

Action: targets of joints 1, 2, 4 and 6, held for the control step; joints 3, 5 and 7 stand still.
The last entry (not in reach) closes the fingers where positive and opens them otherwise. In eef
the target is the hand's position plus 0.2 m times the first three entries.

Success: distance below 0.1 m, easy 0.3, hard 0.03. In grasp the midpoint of the fingertips has to
be within 0.05 / 0.15 / 0.02 m of the cube, and their distance within 0.02 / 0.05 / 0.005 m of
0.075. While the cube is held their distance is 0.068, so `success_hard` lasts only while the
fingers close or open.

Differences from the reference (scaling-crl; it runs the same equations on MuJoCo's JAX port):

- Servos: in the reference they have less gain than stiffness, so joint 4 settles at 0.571 of its
  target, joints 6 and 7 at 0.5, and half of the reach goals cannot be held. Here gain = stiffness;
  the argument `servo="reference"` of the make functions gives the reference's servos.
- Mass of the hand: in the reference it is lost when bodies are fused. Here the hand has 0.871 kg,
  as in the reference's file and in its eef task.
- Goal: in the reference it is a body in qpos and is drawn. Here it is not part of the model, and
  qpos is arm, fingers, cube.
- Goal of grasp: in the reference it is a step late and, after a reset, that of the previous
  episode; the opening is read at index 9 of 7 numbers. Here the goal follows from the state of the
  same step.
- Fingers of grasp: in the reference the right one starts at 0, and fingertips are hinges. Here both
  start at 0.04, and fingertips are sites.
- Positions of bodies: in the reference they are one physics step older than the joint angles. Here
  both are current.
- Finger force: in the reference it averages the wrong joints, here the fingers. Only eef has it;
  the other tasks have the state of scaling-crl, not that of JaxGCRL.
- Opening: each finger opens by 0.08 m in the reference, by 0.05 m here and in JaxGCRL.
- Cube of binpick_easy: in the reference it starts around x = -0.15, up to the inner wall. Here it
  starts around the bin's centre, with JaxGCRL's spread of 0.07, and goals have scaling-crl's spread
  of 0.09. The same holds in eef, where the reference has 0.005 and one goal for all.
- Solver: at most 6 iterations in the reference, 8 here with bins: with 6, a cube in a bin is thrown
  now and then.
- Kept: reach is about the flange, 0.24 m before the fingertips; z of a cube's goal never varies; a
  push may start at its goal; no pose brings the flange within 0.03 m of 11 % of the reach goals
  (nor within 0.1 m of 0.04 %), or the fingertips to 3 % of the goals of `arm_push_hard`.

N envs, S state, G goal, A action, Q positions, R coordinates of the robot.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.places import named_places
from torch_crl.envs.simulators import Capacity, Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks import panda, place_names
from torch_crl.envs.tasks.panda_control import (
    FLANGE_FIELDS,
    finger_distance,
    finger_force,
    flange_reader,
    gantry_control,
    joint_control,
)
from torch_crl.envs.tasks.sampling import Constant, at_height, uniform

_SUBSTEPS = 25
# The pose at the start of an episode, rad and m.
_ARM_START = (1.571, 0.742, 0.0, -1.571, 0.0, 3.054, 1.449)
_FINGERS_START = (0.04, 0.04)
_HAND_START = (0.0, 0.6, 0.2)
_CUBE_START_HEIGHT = 0.07
# Distance of the fingertips that a grasp requires, and the error allowed at each level, m.
_OPENING = 0.075
_OPENING_ERROR = {"success": 0.02, "success_easy": 0.05, "success_hard": 0.005}
# Random actions need 24 contacts and 99 constraints, with bins 36 and 146; a policy that grips may
# need more.
_TABLE_CAPACITY = Capacity(contacts=48, constraints=160)
_BIN_CAPACITY = Capacity(contacts=64, constraints=256)


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """The cube starts around (-x, y), and its goal lies around (x, y), in metres."""

    x: float
    y: float = 0.6
    start: float
    """Half the side of the square in which the cube starts; `goal` is the same for goals."""
    goal: float
    bin: float = 0.0
    """Half the inner side of the bins around both points; 0 for squares painted on the table."""


_SCENES = {
    "push_easy": _Scene(x=0.1, start=0.1, goal=0.1),
    "push_hard": _Scene(x=0.25, y=0.65, start=0.25, goal=0.25),
    "binpick_easy": _Scene(x=0.17, start=0.07, goal=0.09, bin=0.135),
    "binpick_hard": _Scene(x=0.3, start=0.15, goal=0.15, bin=0.185),
}


def make_reach(spec: TaskSpec, *, servo: str = "exact") -> Task:
    """The arm with a hand but no fingers brings its flange to a point in the air."""
    model_spec = panda.new_scene(bins=False)
    panda.add_arm(model_spec, fingers=False, servo=servo)
    model = model_spec.compile()
    flange = flange_reader(model)
    pose = Constant(torch.tensor(_ARM_START, dtype=torch.float64))
    middle = Constant(torch.tensor([0.0, 0.5, 0.3], dtype=torch.float64))

    def sample_start(num_envs: int, generator: Generator) -> Start:
        goal_NG = uniform(-0.2, 0.2, (num_envs, 3), generator)
        goal_NG += middle.like(goal_NG)
        qpos_NQ = pose.like(goal_NG).repeat(num_envs, 1)
        return Start(qpos_NQ=qpos_NQ, qvel_NV=torch.zeros_like(qpos_NQ), goal_NG=goal_NG.float())

    def state(simulator: Simulator) -> Tensor:
        return torch.cat([simulator.data["qpos"], *flange(simulator)], dim=-1).float()

    return Task(
        spec=spec,
        model=model,
        substeps=_SUBSTEPS,
        sample_start=sample_start,
        state=state,
        fields=FLANGE_FIELDS,
        control=joint_control(fingers=False),
        places=named_places(place_names.corners((0.0, 0.5, 0.3), 0.13), radius=0.1),
    )


def make_grasp(spec: TaskSpec, *, spread: float = 0.3, servo: str = "exact") -> Task:
    """The arm closes its fingers around a cube that starts within `spread` m of (0, 0.6)."""
    model_spec = panda.new_scene(bins=False)
    panda.add_arm(model_spec, fingers=True, servo=servo)
    panda.add_cube(model_spec)
    model = model_spec.compile()
    sample_qpos = _qpos_sampler((*_ARM_START, *_FINGERS_START), (0.0, 0.6), spread)
    flange = flange_reader(model)
    left, right = (model.site(f"{finger}_tip").id for finger in panda.FINGER_JOINTS)

    def sample_start(num_envs: int, generator: Generator) -> Start:
        qpos_NQ = sample_qpos(num_envs, generator)
        return Start(
            qpos_NQ=qpos_NQ,
            qvel_NV=qpos_NQ.new_zeros(num_envs, model.nv),
            goal_NG=_grasp_of(qpos_NQ[:, 9:12].float()),
        )

    def state(simulator: Simulator) -> Tensor:
        qpos_NQ = simulator.data["qpos"]
        left_N3, right_N3 = (simulator.data["site_xpos"][:, tip] for tip in (left, right))
        opening_N1 = (left_N3 - right_N3).square().sum(-1, keepdim=True).sqrt()
        parts = [qpos_NQ[:, 9:12], qpos_NQ[:, :7], *flange(simulator)]
        return torch.cat([*parts, left_N3, right_N3, opening_N1], dim=-1).float()

    def reached(achieved_NG: Tensor, goal_NG: Tensor) -> dict[str, Tensor]:
        """Whether the fingertips' midpoint is near the cube and their distance is as required."""
        achieved_N3, cube_N3 = (
            0.5 * (tips[:, :3] + tips[:, 3:6]) for tips in (achieved_NG, goal_NG)
        )
        distance_N = (achieved_N3 - cube_N3).square().sum(-1).sqrt()
        error_N = (achieved_NG[:, 6] - goal_NG[:, 6]).abs()
        return {
            level: (distance_N < radius) & (error_N < _OPENING_ERROR[level])
            for level, radius in spec.success_radius.items()
        }

    return Task(
        spec=spec,
        model=model,
        substeps=_SUBSTEPS,
        sample_start=sample_start,
        state=state,
        fields=(*FLANGE_FIELDS, "site_xpos"),
        control=joint_control(fingers=True),
        reached=reached,
        capacity=_TABLE_CAPACITY,
        moved_goal=lambda _goal_NG, state_NS: _grasp_of(state_NS[:, :3]),
        goal_points=lambda goal_G: goal_G[:6].reshape(2, 3),
    )


def make_move(spec: TaskSpec, *, scene: str, servo: str = "exact") -> Task:
    """The arm brings the cube of one of the scenes to its goal."""
    place = _SCENES[scene]
    model_spec = panda.new_scene(bins=place.bin > 0.0)
    panda.add_arm(model_spec, fingers=True, servo=servo)
    _furnish(model_spec, place)
    model = model_spec.compile()
    flange = flange_reader(model)

    def state(simulator: Simulator) -> Tensor:
        qpos_NQ = simulator.data["qpos"]
        parts = [qpos_NQ[:, 9:12], qpos_NQ[:, :7], *flange(simulator)]
        return torch.cat([*parts, finger_distance(qpos_NQ[:, 7:9])], dim=-1).float()

    return Task(
        spec=spec,
        model=model,
        substeps=_SUBSTEPS,
        sample_start=_move_sampler(place, (*_ARM_START, *_FINGERS_START)),
        state=state,
        fields=FLANGE_FIELDS,
        control=joint_control(fingers=True),
        capacity=_BIN_CAPACITY if place.bin else _TABLE_CAPACITY,
    )


def make_gantry(spec: TaskSpec) -> Task:
    """The hand alone, on slides along x, y and z, brings the cube from bin to bin."""
    place = _SCENES["binpick_easy"]
    model_spec = panda.new_scene(bins=True)
    panda.add_gantry(model_spec)
    _furnish(model_spec, place)
    panda.add_fence(model_spec)
    return Task(
        spec=spec,
        model=model_spec.compile(),
        substeps=_SUBSTEPS,
        sample_start=_move_sampler(place, (*_HAND_START, *_FINGERS_START)),
        state=_gantry_state,
        control=gantry_control,
        capacity=_BIN_CAPACITY,
    )


def _gantry_state(simulator: Simulator) -> Tensor:
    qpos_NQ, qvel_NV, ctrl_NA = (simulator.data[name] for name in ("qpos", "qvel", "ctrl"))
    fingers_N2 = qpos_NQ[:, 3:5]
    force_N2 = finger_force(ctrl_NA[:, 3:], fingers_N2, qvel_NV[:, 3:5])
    parts = [
        qpos_NQ[:, 5:8],
        qpos_NQ[:, :3],
        qvel_NV[:, :3],
        finger_distance(fingers_N2),
        0.1 * force_N2.mean(-1, keepdim=True),
    ]
    return torch.cat(parts, dim=-1).float()


def _grasp_of(cube_N3: Tensor) -> Tensor:
    """The goal of grasping a cube there: left and right fingertip, their distance, [N, 7]."""
    opening_N1 = torch.full_like(cube_N3[:, :1], _OPENING)
    side_N3 = torch.nn.functional.pad(0.5 * opening_N1, (0, 2))
    return torch.cat([cube_N3 + side_N3, cube_N3 - side_N3, opening_N1], dim=-1)


def _qpos_sampler(
    robot_R: tuple[float, ...], cube_xy: tuple[float, float], spread: float
) -> Callable[[int, Generator], Tensor]:
    """Sampler of qpos: the robot in its pose, the cube upright above a random point of a square."""
    cube = (*cube_xy, _CUBE_START_HEIGHT, 1.0, 0.0, 0.0, 0.0)
    pose = Constant(torch.tensor([*robot_R, *cube], dtype=torch.float64))
    first = len(robot_R)

    def sample_qpos(num_envs: int, generator: Generator) -> Tensor:
        offset_N2 = uniform(-spread, spread, (num_envs, 2), generator)
        qpos_NQ = pose.like(offset_N2).repeat(num_envs, 1)
        qpos_NQ[:, first : first + 2] += offset_N2
        return qpos_NQ

    return sample_qpos


def _move_sampler(place: _Scene, robot_R: tuple[float, ...]) -> Callable[[int, Generator], Start]:
    sample_qpos = _qpos_sampler(robot_R, (-place.x, place.y), place.start)
    middle = Constant(torch.tensor([place.x, place.y], dtype=torch.float64))

    def sample_start(num_envs: int, generator: Generator) -> Start:
        qpos_NQ = sample_qpos(num_envs, generator)
        goal_N2 = uniform(-place.goal, place.goal, (num_envs, 2), generator)
        return Start(
            qpos_NQ=qpos_NQ,
            # The cube has one velocity fewer than positions.
            qvel_NV=torch.zeros_like(qpos_NQ[:, 1:]),
            goal_NG=at_height(goal_N2 + middle.like(goal_N2), panda.HALF_CUBE),
        )

    return sample_start


def _furnish(model_spec: mujoco.MjSpec, place: _Scene) -> None:
    """Add the cube, and bins or painted squares around its start (blue) and its goal (red)."""
    panda.add_cube(model_spec)
    for name, x, spread, rgba in (
        ("start", -place.x, place.start, panda.BLUE),
        ("goal", place.x, place.goal, panda.RED),
    ):
        xy = (x, place.y)
        if place.bin:
            panda.add_bin(model_spec, f"bin_{name}", xy=xy, inner=place.bin, rgba=rgba)
        else:
            panda.paint_square(model_spec, f"square_{name}", xy=xy, half=spread, rgba=rgba)
