"""`arm_*`: a Franka-Panda-like arm at a table brings its flange, its grip or a cube to a goal.

| task | start | goal |
|---|---|---|
| `arm_reach` | no cube | link7's origin in (0, 0.5, 0.3) +- 0.2 m |
| `arm_grasp` | cube at (0, 0.6) +- 0.3 | fingertips 3.75 cm beside the cube in x, 7.5 cm apart |
| `arm_push_easy` | cube at (-0.1, 0.6) +- 0.1 | cube at (0.1, 0.6) +- 0.1 |
| `arm_push_hard` | cube at (-0.25, 0.65) +- 0.25 | cube at (0.25, 0.65) +- 0.25 |
| `arm_binpick_easy` | cube in bin (-0.17, 0.6) +- 0.07 | cube in bin (0.17, 0.6) +- 0.09 |
| `arm_binpick_hard` | cube in bin (-0.3, 0.6) +- 0.15 | cube in bin (0.3, 0.6) +- 0.15 |
| `arm_binpick_easy_eef` | as `arm_binpick_easy`, by the hand alone on three slides | the same |

Ranges are of x and y (reach: also z), uniform; the cube falls from z = 0.07, its goals have
z = 0.03, where it rests. The arm always starts in one pose, at rest. No state is a failure; a
control step is 0.05 s. Episodes are 1000 steps as in the published runs; the reference's classes
suggest 50 to 150.

State, positions in m and world axes, "flange" = link7's origin:
reach (13): 0:7 joint angles, 7:10 flange, 10:13 its velocity.
push, binpick (17): 0:3 cube, 3:10 joint angles, 10:13 flange, 13:16 its velocity, 16 distance of
the finger bodies. grasp (23): the same 0:16, then 16:19 left and 19:22 right fingertip, 22 their
distance. eef (11): 0:3 cube, 3:6 hand, 6:9 its velocity, 9 distance of the finger bodies, 10 a
tenth of the mean force of the two finger servos (N; -2 at a start, where no target is set yet).
The goal is reach 7:10, grasp 16:23, else 0:3.

Action: targets of joints 1, 2, 4 and 6, held for the control step, joints 3, 5 and 7 stand still;
the last entry (not in reach) closes the fingers where positive and opens them otherwise. eef:
the target is the hand's position plus 0.2 m times the first three entries.

Success: distance below 0.1 m, easy 0.3, hard 0.03. grasp: the middle of the fingertips within
0.05 / 0.15 / 0.02 m of the cube, and their distance within 0.02 / 0.05 / 0.005 m of 0.075. A cube
held fast has 0.068 there, so `success_hard` lasts only while the fingers close or open.

Differs from the reference (scaling-crl; it runs the same equations on MuJoCo's JAX port):
- Its servos have less gain than stiffness, so joint 4 settles at 0.571 of its target, 6 and 7 at
  0.5, and half of the reach goals cannot be held. Here gain = stiffness; `servo="reference"`, an
  argument of the make functions, brings that back.
- Its hand has no mass, since fusing bodies drops it. Here 0.871 kg, what its file says and what
  its eef task has.
- Its goal is a body in qpos and is drawn; here it is data. qpos is arm, fingers, cube.
- Its grasp goal is a step late and, after a reset, that of the episode before; it reads the
  opening at index 9 of 7. Here it follows from the state of the same step.
- Its grasp starts with the right finger at 0 and has hinges as fingertips. Here both fingers start
  at 0.04 and fingertips are sites.
- Its positions of bodies are one physics step older than its joint angles; here both are current.
- Its finger force averages the wrong joints; here it is the fingers'. Only eef has it: the other
  tasks have scaling-crl's state, not that of JaxGCRL.
- Its fingers open by 0.08 m each; here, and in JaxGCRL, by 0.05.
- Its binpick_easy cube starts around x = -0.15, up to the inner wall. Here around the bin's
  centre, with JaxGCRL's spread of 0.07 and scaling-crl's 0.09 for goals, also in eef (there
  0.005, one goal for all).
- Its solver makes at most 6 iterations, here 8 with bins: with 6, a cube in a bin is thrown now
  and then.
Kept: reach is about the flange, 0.24 m before the fingertips; z of a cube's goal never varies; a
push may start at its goal; no pose brings the flange within 0.03 m of 11 % of the reach goals (nor
within 0.1 m of 0.04 %), or the fingertips to 3 % of the goals of `arm_push_hard`.

N envs, S state, G goal, A action, Q positions, R coordinates of the robot.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Capacity, Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks import panda
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
# The pose at the start, rad and m.
_ARM_START = (1.571, 0.742, 0.0, -1.571, 0.0, 3.054, 1.449)
_FINGERS_START = (0.04, 0.04)
_HAND_START = (0.0, 0.6, 0.2)
_CUBE_START_HEIGHT = 0.07
# Distance of the fingertips that a grasp asks for, and the error allowed at each level, m.
_OPENING = 0.075
_OPENING_ERROR = {"success": 0.02, "success_easy": 0.05, "success_hard": 0.005}
# Random actions need 24 and 99, and 36 and 146 with bins; who grips on purpose may need more.
_TABLE_CAPACITY = Capacity(contacts=48, constraints=160)
_BIN_CAPACITY = Capacity(contacts=64, constraints=256)


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """The cube starts around (-x, y) and should go to somewhere around (x, y), in metres."""

    x: float
    y: float = 0.6
    start: float
    """Half the side of the square of starts; the same for goals below."""
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
        """The middle of the fingertips is near the cube and they are as far apart as asked."""
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
    """The goal of a grasp of the cube there: left and right fingertip, their distance, [N, 7]."""
    opening_N1 = torch.full_like(cube_N3[:, :1], _OPENING)
    side_N3 = torch.nn.functional.pad(0.5 * opening_N1, (0, 2))
    return torch.cat([cube_N3 + side_N3, cube_N3 - side_N3, opening_N1], dim=-1)


def _qpos_sampler(
    robot_R: tuple[float, ...], cube_xy: tuple[float, float], spread: float
) -> Callable[[int, Generator], Tensor]:
    """The robot in its pose, the cube upright above a random point of a square."""
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
            # The cube has one velocity less than positions.
            qvel_NV=torch.zeros_like(qpos_NQ[:, 1:]),
            goal_NG=at_height(goal_N2 + middle.like(goal_N2), panda.HALF_CUBE),
        )

    return sample_start


def _furnish(model_spec: mujoco.MjSpec, place: _Scene) -> None:
    """The cube, and bins or painted squares around its start (blue) and its goal (red)."""
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
