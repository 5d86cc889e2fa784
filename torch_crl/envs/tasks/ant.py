"""`ant` and `ant_<maze>`: a quadruped walks to a point. N envs, S state."""

from collections.abc import Callable

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task, height_outside
from torch_crl.envs.tasks.layouts import LAYOUTS
from torch_crl.envs.tasks.models import add_walls, gymnasium_model, set_physics
from torch_crl.envs.tasks.sampling import Constant, cell_centres, normal, on_circle, one_of, uniform

_SCALE = 4.0
_GOAL_RADIUS = 10.0
_LOWEST, _HIGHEST = 0.2, 1.0
# What a maze's walls touch: the torso and the four inner legs. Feet are added to these;
# middle legs and shins pass through, as in the reference.
_WALL_GEOMS = ("torso_geom", "aux_1_geom", "aux_2_geom", "aux_3_geom", "aux_4_geom")
_SHIN_GEOMS = ("left_ankle_geom", "right_ankle_geom", "third_ankle_geom", "fourth_ankle_geom")
_START_POSE = (0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)


def make(spec: TaskSpec) -> Task:
    """Open floor; the goal lies on a circle of radius 10 m around the origin."""

    def sample_goal(num_envs: int, generator: Generator) -> Tensor:
        radius_N = torch.full((num_envs,), _GOAL_RADIUS, dtype=torch.float64)
        return on_circle(radius_N, generator)

    def sample_origin(num_envs: int, generator: Generator) -> Tensor:  # noqa: ARG001
        return torch.zeros(num_envs, 2, dtype=torch.float64)

    return _task(spec, _robot(wall_contacts=False).compile(), sample_origin, sample_goal)


def make_maze(spec: TaskSpec, *, layout: str) -> Task:
    """Walls of the layout, cells of 4 m; the goal is the centre of a goal cell."""
    grid = LAYOUTS[layout]
    model_spec = _robot(wall_contacts=True)
    add_walls(model_spec, grid, scale=_SCALE, height=2.0, contype=1)
    starts, goals = (cell_centres(grid, kind, scale=_SCALE) for kind in "RG")
    return _task(
        spec,
        model_spec.compile(),
        lambda num_envs, generator: one_of(starts, num_envs, generator),
        lambda num_envs, generator: one_of(goals, num_envs, generator),
    )


def _task(
    spec: TaskSpec,
    model: mujoco.MjModel,
    sample_origin: Callable[[int, Generator], Tensor],
    sample_goal: Callable[[int, Generator], Tensor],
) -> Task:
    pose = Constant(torch.tensor(_START_POSE, dtype=torch.float64))

    def sample_start(num_envs: int, generator: Generator) -> Start:
        """The standing pose with noise on every coordinate; the quaternion is normalised."""
        qpos_NQ = uniform(-0.1, 0.1, (num_envs, len(pose)), generator)
        qpos_NQ += pose.like(qpos_NQ)
        qpos_NQ[:, :2] += sample_origin(num_envs, generator)
        qpos_NQ[:, 3:7] /= qpos_NQ[:, 3:7].norm(dim=-1, keepdim=True)
        return Start(
            qpos_NQ=qpos_NQ,
            qvel_NV=normal(0.1, (num_envs, model.nv), generator),
            goal_NG=sample_goal(num_envs, generator).float(),
        )

    return Task(
        spec=spec,
        model=model,
        substeps=5,
        sample_start=sample_start,
        state=_state,
        failed=height_outside(_LOWEST, _HIGHEST),
    )


def _state(simulator: Simulator) -> Tensor:
    """0:3 torso position, 3:7 quaternion, 7:15 joints, 15:29 their velocities in that order."""
    return torch.cat([simulator.data["qpos"], simulator.data["qvel"]], dim=-1).float()


def _robot(*, wall_contacts: bool) -> mujoco.MjSpec:
    """Gymnasium's ant with the reference's contacts: only feet of their own touch the floor."""
    spec = gymnasium_model("ant.xml")
    set_physics(spec, timestep=0.01)
    for geom in spec.geoms:
        geom.margin = 0.0
        geom.contype = 0
        geom.conaffinity = int(geom.name == "floor" or (wall_contacts and geom.name in _WALL_GEOMS))
    for shin in _SHIN_GEOMS:
        geom = spec.geom(shin)
        geom.parent.add_geom(
            name=shin.replace("ankle_geom", "foot"),
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[0.08, 0.0, 0.0],
            pos=geom.fromto[3:],
            mass=0.0,
            contype=1,
            conaffinity=int(wall_contacts),
            condim=3,
            friction=[1.0, 0.5, 0.5],
            margin=0.0,
        )
    return spec
