"""Pusher: an arm pushes objects on a table, or reaches for a point. N envs, K objects, D draws.

Task: in `pusher_easy` and `pusher_hard` bring the object to the goal, a point (x, y, -0.275); in
`pusher2` bring two objects to two goals; in `pusher_reacher`, which has no object, bring the wrist
to the goal. Control step 0.05 s (5 x 0.01 s).

State:

| | joint angles | wrist | objects | joint velocities | size |
|---|---|---|---|---|---|
| `pusher_easy`, `pusher_hard` | 0:7 | 7:10 | 10:13 | 13:20 | 20 |
| `pusher2` | 0:7 | 7:10 | 10:13, 13:16 | 16:23 | 23 |
| `pusher_reacher` | 0:7 | 14:17 | | 7:14 | 17 |

Objects and wrist (the centre of mass of the wrist-flex link) are points in the world; the table
is at z = -0.325. Joints: shoulder pan, shoulder lift, upper-arm roll, elbow flex, forearm roll,
wrist flex, wrist roll. Action: a motor of gear 1 for each. The goal is compared with the objects,
or with the wrist.

Start: the arm stretched out, joint velocities within 0.005 rad/s, objects at rest. Objects and
goals are uniform in these rectangles, and an object's start and goal are drawn again until they are
at least 0.17 m apart:

| | object x, y | goal x, y |
|---|---|---|
| `pusher_easy` | 0.25..0.65, -0.35..-0.05 | 0.25..0.65, -0.6..-0.3 |
| `pusher_hard` | 0.25..0.65, -0.35..-0.05 | -0.1..0.9, -0.7..0.3 |
| `pusher2`, object 1 | 0.25..0.45, -0.35..-0.05 | -0.15..0.375, -0.7..0.3 |
| `pusher2`, object 2 | 0.45..0.65, -0.35..-0.05 | 0.375..0.9, -0.7..0.3 |
| `pusher_reacher` | | 0.25..0.65, -0.35..-0.05 |

Success within 0.1 m, hard success within 0.05 m. In `pusher2` both objects have to be that near,
and easy success requires one of them within 0.1 m; the distance is that of the farther object.
Episodes end at the time limit only.

An object is an upright capsule of 1.8 g with 0.04 kg of armature on each of its two slides, whose
damping is 0.5. There is no gravity. The arm's fork touches table and objects; nothing else
touches.

Differences from the reference (JaxGCRL; scaling-crl's `pusher` cannot be built):

- The dynamics are MuJoCo's. The reference uses Brax's generalised dynamics.
- x comes before y everywhere. In the reference y is the first of the slides.
- Objects and goals are at one height. In the reference goals lie 0.048 m lower, which adds to the
  distance; no achieved goal ever has that height.
- Distance and success are those of the state after the step. In the reference they are those of the
  state before it.
- Pairs that are too close are drawn again. In the reference the object's offset from its origin is
  stretched, which does not separate them and may put the object far away.
- The goals of `pusher2` are drawn independently. In the reference both have the same y.
- Easy success of `pusher2` is true or false. In the reference it counts objects, 0 to 2.
- The goal is not part of the model. In the reference it is a body on slides.
- Start and goal are drawn for every episode. In the reference they are drawn once for a whole run.
- There is no reward.
- Kept: actions reach half of the motors' range of 2; the goal's height, which never varies, is
  part of the goal; objects pass through each other and glide over the table.
"""

from collections.abc import Callable
from typing import NamedTuple

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task, direct_control
from torch_crl.envs.tasks.kinematics import centre_of_mass
from torch_crl.envs.tasks.models import add_slides, gymnasium_model, set_physics
from torch_crl.envs.tasks.sampling import at_height, first_of, uniform

_HEIGHT = -0.275
_NUM_ARM_JOINTS = 7
_WRIST = "r_wrist_flex_link"
_SEPARATION = 0.17
# Draws of a start and a goal, of which the first that is far enough apart counts. One draw is too
# close with a probability of at most 0.17, all 16 with 1e-12; the first is used then.
_NUM_DRAWS = 16


class Region(NamedTuple):
    """A rectangle of the table, in metres of the world."""

    x: tuple[float, float]
    y: tuple[float, float]


_OBJECT = Region(x=(0.25, 0.65), y=(-0.35, -0.05))
# For each object: the regions of its start and of its goal.
_SCENES = {
    "easy": ((_OBJECT, Region(x=(0.25, 0.65), y=(-0.6, -0.3))),),
    "hard": ((_OBJECT, Region(x=(-0.1, 0.9), y=(-0.7, 0.3))),),
    "two_objects": (
        (Region(x=(0.25, 0.45), y=(-0.35, -0.05)), Region(x=(-0.15, 0.375), y=(-0.7, 0.3))),
        (Region(x=(0.45, 0.65), y=(-0.35, -0.05)), Region(x=(0.375, 0.9), y=(-0.7, 0.3))),
    ),
}


def make(spec: TaskSpec, *, scene: str) -> Task:
    """Push every object of the scene to its goal."""
    pairs = _SCENES[scene]
    model = _model(len(pairs))

    def sample_start(num_envs: int, generator: Generator) -> Start:
        drawn = [_separated(*pair, num_envs, generator) for pair in pairs]
        arm = torch.zeros(num_envs, _NUM_ARM_JOINTS, dtype=torch.float64)
        return Start(
            qpos_NQ=torch.cat([arm, *(object_N2 for object_N2, _ in drawn)], dim=-1),
            qvel_NV=_arm_velocity(num_envs, model.nv, generator),
            goal_NG=torch.cat([at_height(goal_N2, _HEIGHT) for _, goal_N2 in drawn], dim=-1),
        )

    return Task(
        spec=spec,
        model=model,
        substeps=5,
        sample_start=sample_start,
        state=_state_reader(model),
        control=direct_control,
        distance=_farthest,
        reached=_reached(spec),
    )


def make_reacher(spec: TaskSpec) -> Task:
    """No object: bring the wrist to the goal."""
    model = _model(0)

    def sample_start(num_envs: int, generator: Generator) -> Start:
        return Start(
            qpos_NQ=torch.zeros(num_envs, _NUM_ARM_JOINTS, dtype=torch.float64),
            qvel_NV=_arm_velocity(num_envs, model.nv, generator),
            goal_NG=at_height(_within(_OBJECT, (num_envs,), generator), _HEIGHT),
        )

    wrist = centre_of_mass(model, _WRIST)

    def state(simulator: Simulator) -> Tensor:
        qpos_NQ, qvel_NV = (simulator.data[name] for name in ("qpos", "qvel"))
        return torch.cat([qpos_NQ, qvel_NV, wrist(qpos_NQ)], dim=-1).float()

    return Task(
        spec=spec,
        model=model,
        substeps=5,
        sample_start=sample_start,
        state=state,
        control=direct_control,
    )


def _separated(
    start: Region, goal: Region, num_envs: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """An object's start and goal, [N, 2] each, uniform among those 0.17 m or more apart."""
    start_ND2, goal_ND2 = (
        _within(region, (num_envs, _NUM_DRAWS), generator) for region in (start, goal)
    )
    apart_ND = (start_ND2 - goal_ND2).norm(dim=-1) >= _SEPARATION
    return first_of(start_ND2, apart_ND), first_of(goal_ND2, apart_ND)


def _within(region: Region, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform draws from the region, float64 [*shape, 2]."""
    return torch.stack([uniform(*side, shape, generator) for side in region], dim=-1)


def _arm_velocity(num_envs: int, nv: int, generator: Generator) -> Tensor:
    """The arm almost at rest, objects at rest, float64 [N, nv]."""
    arm = uniform(-0.005, 0.005, (num_envs, _NUM_ARM_JOINTS), generator)
    return torch.nn.functional.pad(arm, (0, nv - _NUM_ARM_JOINTS))


def _distances(achieved_NG: Tensor, goal_NG: Tensor) -> Tensor:
    """Distance of each of K objects from its goal, [N, K]."""
    offset_NK3: Tensor = (achieved_NG - goal_NG).unflatten(-1, (-1, 3))
    return offset_NK3.square().sum(-1).sqrt()


def _farthest(achieved_NG: Tensor, goal_NG: Tensor) -> Tensor:
    """Distance of the object that is farthest from its goal, [N]."""
    return _distances(achieved_NG, goal_NG).amax(-1)


def _reached(spec: TaskSpec) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    def reached(achieved_NG: Tensor, goal_NG: Tensor) -> dict[str, Tensor]:
        """Whether all objects are at their goals; for easy success, whether any of them is."""
        distance_NK = _distances(achieved_NG, goal_NG)
        within = {level: distance_NK < radius for level, radius in spec.success_radius.items()}
        return {
            level: near_NK.any(-1) if level == "success_easy" else near_NK.all(-1)
            for level, near_NK in within.items()
        }

    return reached


def _state_reader(model: mujoco.MjModel) -> Callable[[Simulator], Tensor]:
    wrist = centre_of_mass(model, _WRIST)

    def state(simulator: Simulator) -> Tensor:
        """Arm joints, wrist, objects, velocities of the arm joints."""
        qpos_NQ, qvel_NV = (simulator.data[name] for name in ("qpos", "qvel"))
        # An object's slides are its x and y in the world.
        object_NK2 = qpos_NQ[:, _NUM_ARM_JOINTS:].unflatten(1, (-1, 2))
        parts = [
            qpos_NQ[:, :_NUM_ARM_JOINTS],
            wrist(qpos_NQ),
            at_height(object_NK2, _HEIGHT).flatten(1),
            qvel_NV[:, :_NUM_ARM_JOINTS],
        ]
        return torch.cat(parts, dim=-1).float()

    return state


def _model(num_objects: int) -> mujoco.MjModel:
    """Gymnasium's arm, the table and objects; table and objects touch the arm's fork only."""
    spec = gymnasium_model("pusher_v5.xml")
    for name in ("object", "goal"):
        spec.delete(spec.body(name))
    set_physics(spec, timestep=0.01, iterations=20)
    # The camera looks across the table at the arm, which hides the objects when seen from behind.
    spec.visual.global_.azimuth, spec.visual.global_.elevation = 250.0, -50.0
    for geom in spec.geoms:
        geom.condim = 3
        geom.contype = int(geom.name == "table")
        geom.conaffinity = int(geom.parent.name == "r_wrist_roll_link")
    for number in range(1, num_objects + 1):
        _add_object(spec, f"object{number}")
    return spec.compile()


def _add_object(spec: mujoco.MjSpec, name: str) -> None:
    """An upright capsule on two slides, with the mass of a sphere inside it added."""
    body = spec.worldbody.add_body(name=name, pos=[0.0, 0.0, _HEIGHT])
    shape = {"size": [0.05, 0.05, 0.0], "density": 1.0, "condim": 3, "conaffinity": 0}
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        contype=1,
        rgba=[1.0, 1.0, 1.0, 1.0],
        **shape,
    )
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, contype=0, rgba=[0.0] * 4, **shape)
    add_slides(body, "xy", armature=0.04, damping=0.5, limit=10.3)
