"""`point_<maze>`: a force-driven sphere in a maze. N envs, S state."""

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks.layouts import LAYOUTS
from torch_crl.envs.tasks.models import add_walls, set_physics
from torch_crl.envs.tasks.sampling import cell_centres, normal, one_of

_SCALE = 4.0
_HEIGHT = 0.75


def make_maze(spec: TaskSpec, *, layout: str) -> Task:
    """A sphere of radius 0.25 m on two slides, 5 N at full action, control step 0.05 s."""
    grid = LAYOUTS[layout]
    model_spec = mujoco.MjSpec()
    set_physics(model_spec, timestep=0.01)
    add_walls(model_spec, grid, scale=_SCALE, height=2.0, contype=1)
    _add_floor(model_spec, grid)
    _add_point(model_spec)
    starts, goals = (cell_centres(grid, kind, scale=_SCALE) for kind in "RG")

    def sample_start(num_envs: int, generator: Generator) -> Start:
        """The centre of a start cell, almost at rest; the goal is the centre of a goal cell."""
        return Start(
            qpos_NQ=one_of(starts, num_envs, generator),
            qvel_NV=normal(0.1, (num_envs, 2), generator),
            goal_NG=one_of(goals, num_envs, generator).float(),
        )

    return Task(
        spec=spec,
        model=model_spec.compile(),
        substeps=5,
        sample_start=sample_start,
        state=_state,
    )


def _state(simulator: Simulator) -> Tensor:
    """0:2 position, 2:4 velocity."""
    return torch.cat([simulator.data["qpos"], simulator.data["qvel"]], dim=-1).float()


def _add_floor(spec: mujoco.MjSpec, grid: tuple[str, ...]) -> None:
    rows, columns = len(grid), len(grid[0])
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[_SCALE * (rows - 1) / 2, _SCALE * (columns - 1) / 2, 0.0],
        size=[_SCALE * rows / 2, _SCALE * columns / 2, 1.0],
        contype=0,
        conaffinity=0,
        rgba=[0.9, 0.9, 0.9, 1.0],
    )


def _add_point(spec: mujoco.MjSpec) -> None:
    body = spec.worldbody.add_body(name="point", pos=[0.0, 0.0, _HEIGHT])
    body.add_geom(
        name="point",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[0.25, 0.0, 0.0],
        density=5.0,
        friction=[1.0, 0.5, 0.5],
        condim=3,
        contype=1,
        conaffinity=0,
        rgba=[0.2, 0.4, 0.8, 1.0],
    )
    for name, axis in (("x", [1.0, 0.0, 0.0]), ("y", [0.0, 1.0, 0.0])):
        body.add_joint(
            name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis, damping=0.0, armature=1.0
        )
        motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.gear[0] = 5.0
