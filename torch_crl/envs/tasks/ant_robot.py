"""The ant of `ant` and `ant_objects`: its model, its contacts, its start. N envs, Q positions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import DEFAULT_CAPACITY, Capacity, Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task, height_outside
from torch_crl.envs.tasks.models import gymnasium_model, set_physics
from torch_crl.envs.tasks.sampling import Constant, direction, normal, uniform

_LOWEST, _HIGHEST = 0.2, 1.0
# The standing pose: height, quaternion, then hip and ankle of each leg.
_STANDING = (0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)
_NUM_POSITIONS, _NUM_VELOCITIES = 15, 14
_LINK = 0.2 * math.sqrt(2.0)
"""Length of the inner and of the middle part of a leg; a shin is twice as long."""
_SHIN_GEOMS = ("left_ankle_geom", "right_ankle_geom", "third_ankle_geom", "fourth_ankle_geom")


class Contacts(NamedTuple):
    """What the ant's parts touch, as (contype, conaffinity).

    Two geoms touch if the contype of one and the conaffinity of the other are both 1. Floor,
    walls and objects have conaffinity 1; walls of mazes and the ball have contype 1 as well.
    Middle legs and shins touch nothing, as in the reference.
    """

    feet: tuple[int, int]
    torso: tuple[int, int] = (0, 0)
    inner_legs: tuple[int, int] = (0, 0)


class Places(NamedTuple):
    """Where N episodes begin, and what they ask for."""

    start_N2: Tensor
    """float64 x, y of the torso."""
    goal_N2: Tensor
    """float64 x, y of the goal."""


SampleObject = Callable[[Tensor, Tensor, Generator], Tensor]
"""(qpos of the ant [N, 15], goal [N, 2], generator) to the positions of the object's slides."""


def robot(touching: Contacts, *, contacts: str) -> mujoco.MjSpec:
    """Gymnasium's ant with feet added, whose parts touch what they touch in the reference.

    With contacts "body" it has Gymnasium's own contacts: no feet, and the whole body touches
    floor, walls and objects. Raises ValueError for anything but "feet" and "body".
    """
    if contacts not in ("feet", "body"):
        raise ValueError(f"contacts is {contacts!r}; allowed are 'feet' and 'body'")
    spec = gymnasium_model("ant.xml")
    set_physics(spec, timestep=0.01)
    floor = spec.geom("floor")
    floor.contype, floor.conaffinity = 0, 1
    if contacts == "body":
        return spec
    for geom in spec.geoms:
        geom.margin = 0.0
        if geom.name == "torso_geom":
            geom.contype, geom.conaffinity = touching.torso
        elif geom.name.startswith("aux_"):
            geom.contype, geom.conaffinity = touching.inner_legs
        elif geom.name != "floor":
            geom.contype = geom.conaffinity = 0
    for shin in _SHIN_GEOMS:
        geom = spec.geom(shin)
        geom.parent.add_geom(
            name=shin.replace("ankle_geom", "foot"),
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[0.08, 0.0, 0.0],
            pos=geom.fromto[3:],
            mass=0.0,
            contype=touching.feet[0],
            conaffinity=touching.feet[1],
            condim=3,
            friction=[1.0, 0.5, 0.5],
            margin=0.0,
        )
    return spec


def ant_task(
    spec: TaskSpec,
    model: mujoco.MjModel,
    sample_places: Callable[[int, Generator], Places],
    *,
    sample_object: SampleObject | None = None,
    exact_start: bool = False,
    height: float = _STANDING[0],
    capacity: Capacity = DEFAULT_CAPACITY,
) -> Task:
    """A task of the ant and, if any, an object whose slides come after the ant in qpos.

    The ant stands at `start_N2` with noise of 0.1 on every coordinate, on x and y too unless
    `exact_start`; its velocities are N(0, 0.1). The object is at rest.
    """
    pose = Constant(torch.tensor((0.0, 0.0, height, *_STANDING[1:]), dtype=torch.float64))

    def sample_start(num_envs: int, generator: Generator) -> Start:
        qpos_NQ = uniform(-0.1, 0.1, (num_envs, _NUM_POSITIONS), generator)
        qvel_NV = normal(0.1, (num_envs, _NUM_VELOCITIES), generator)
        places = sample_places(num_envs, generator)
        if exact_start:
            qpos_NQ[:, :2] = 0.0
        qpos_NQ += pose.like(qpos_NQ)
        qpos_NQ[:, :2] += places.start_N2
        qpos_NQ[:, 3:7] /= qpos_NQ[:, 3:7].norm(dim=-1, keepdim=True)
        if sample_object is not None:
            object_NQ = sample_object(qpos_NQ, places.goal_N2, generator)
            qpos_NQ = torch.cat([qpos_NQ, object_NQ], dim=-1)
            qvel_NV = torch.nn.functional.pad(qvel_NV, (0, model.nv - _NUM_VELOCITIES))
        return Start(qpos_NQ=qpos_NQ, qvel_NV=qvel_NV, goal_NG=places.goal_N2.float())

    return Task(
        spec=spec,
        model=model,
        substeps=5,
        sample_start=sample_start,
        state=_state,
        failed=height_outside(_LOWEST, _HIGHEST),
        capacity=capacity,
    )


def body_points(qpos_NQ: Tensor) -> Tensor:
    """Centre of the torso, then for each leg its knee, the middle of its shin and its foot.

    Returns float64 [N, 13, 3].
    """
    hip_NK, ankle_NK = qpos_NQ[:, 7:15:2], qpos_NQ[:, 8:15:2]
    # A leg points outwards at an odd multiple of 45 degrees.
    quarter_K = torch.arange(4, device=qpos_NQ.device, dtype=qpos_NQ.dtype) * (math.pi / 2)
    at_rest_K2 = direction(quarter_K + math.pi / 4)
    outwards_NK2 = direction(quarter_K + math.pi / 4 + hip_NK)
    knee_NK2 = _LINK * (at_rest_K2 + outwards_NK2)
    shin_NK2 = 2.0 * _LINK * ankle_NK.cos()[..., None] * outwards_NK2
    # Whatever the sign of its angle, every ankle points downwards in all of its range.
    drop_NK = -2.0 * _LINK * ankle_NK.sin().abs()
    leg = [
        torch.cat([knee_NK2 + share * shin_NK2, share * drop_NK[..., None]], dim=-1)
        for share in (0.0, 0.5, 1.0)
    ]
    own_NP3 = torch.cat([torch.zeros_like(qpos_NQ[:, None, :3]), *leg], dim=1)
    real_N11, axis_N13 = qpos_NQ[:, None, 3:4], qpos_NQ[:, None, 4:7].expand_as(own_NP3)
    turn_NP3 = 2.0 * torch.linalg.cross(axis_N13, own_NP3)
    turned_NP3: Tensor = own_NP3 + real_N11 * turn_NP3 + torch.linalg.cross(axis_N13, turn_NP3)
    return qpos_NQ[:, None, :3] + turned_NP3


def _state(simulator: Simulator) -> Tensor:
    """Positions and velocities of the ant, then x and y of the object if there is one."""
    qpos_NQ, qvel_NV = simulator.data["qpos"], simulator.data["qvel"]
    object_xy = qpos_NQ[:, _NUM_POSITIONS : _NUM_POSITIONS + 2]
    parts = [qpos_NQ[:, :_NUM_POSITIONS], qvel_NV[:, :_NUM_VELOCITIES], object_xy]
    return torch.cat(parts, dim=-1).float()
