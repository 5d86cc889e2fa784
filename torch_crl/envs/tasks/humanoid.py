"""Humanoid: a 17-actuator humanoid walks to a point, on open floor and in mazes. N envs, K links.

Task: bring the torso to the goal, a point (x, y, 1.25). Control step 0.015 s (5 x 0.003 s).

- `humanoid` starts at the origin; the goal lies at a distance uniform in 1 to 5 m.
- `humanoid_<maze>` (`u_maze`, `big_maze`, their `_eval`, `hardest_maze`) starts in the cell `R`
  of a layout (see `layouts`); the goal is the centre of one of its cells `G`. Cells are 2 m wide,
  walls 1 m high. `big_maze_eval` has ten goals.

State, 246 numbers:

- 0:3 position of the torso, 3:7 its quaternion (w, x, y, z), 7:24 joint angles
- 24:27 velocity of the torso in the world, 27:30 its angular velocity in its own frame, 30:47
  joint velocities
- 47:157 ten numbers for each of 11 links: its inertia about the robot's centre of mass, row by row
  in world axes, and its mass
- 157:223 six numbers for each link: the velocity of its centre of mass times its share of the mass,
  and its angular velocity
- 223:246 torque of the actuators on each degree of freedom

Links: torso, lower waist, pelvis, right thigh, shin, left thigh, shin, right upper arm, lower
arm, left upper arm, lower arm. Joints: abdomen z, y, x, right hip x, z, y, right knee, the left
leg, right shoulder 1, 2, right elbow, the left arm.

Action, 17 motors: abdomen y, z, x, then in the order of the joints. An action of 1 is a control of
0.4; gears are 100 at the abdomen, 100, 100, 300 at a hip, 200 at a knee, 25 in an arm. The goal is
compared with state 0:3.

Start: always upright at a height of 1.4 m, at rest.

Success within 0.5 m, easy success within 2 m. An episode fails once the torso is below 1 m or above
2 m.

Contacts: every part touches floor and walls, but no other part.

Differences from the reference (scaling-crl and JaxGCRL):

- The dynamics are MuJoCo's, with the model's gears, damping and stiffness (42.116 kg in all). The
  reference has springs between links of unit inertia, and gears of 350 and 100.
- The control step is 0.015 s, as in JaxGCRL. scaling-crl asks for it too, but gets 0.03 s in
  `humanoid`; its mazes have 0.015 s.
- The goal is not part of the model. In the reference it is a body of 1 kg, a twelfth link, so that
  the state (268 numbers) contains the commanded goal: by the body's position, by its rows among the
  links, and by the centre of mass.
- Inertias are the links' own. In the reference the identity takes their place.
- Start and goal are drawn for every episode. In the reference they are drawn once for a whole run.
- There is no reward. In the reference the control cost is computed from the control, 0.4 times the
  action.
- Kept: actions are scaled by 0.4; the goal's height is always 1.25 m, while the achieved one
  varies; external contact forces are not part of the state.
"""

from collections.abc import Callable

import mujoco
import numpy as np
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Capacity, Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task, height_outside
from torch_crl.envs.tasks.layouts import LAYOUTS
from torch_crl.envs.tasks.models import add_walls, gymnasium_model, set_physics
from torch_crl.envs.tasks.sampling import (
    Constant,
    at_height,
    cell_centres,
    on_circle,
    one_of,
    uniform,
)

_SCALE = 2.0
_START_HEIGHT = 1.4
_GOAL_HEIGHT = 1.25
_LOWEST, _HIGHEST = 1.0, 2.0
_CONTROL_RANGE = 0.4


def make(spec: TaskSpec) -> Task:
    """Open floor; the goal is at a radius of 1 to 5 m and torso height."""

    def sample_places(num_envs: int, generator: Generator) -> tuple[Tensor, Tensor]:
        radius_N = uniform(1.0, 5.0, (num_envs,), generator)
        goal_N2 = on_circle(radius_N, generator)
        return torch.zeros_like(goal_N2), goal_N2

    return _task(spec, _robot().compile(), sample_places)


def make_maze(spec: TaskSpec, *, layout: str) -> Task:
    """Walls of the layout, cells of 2 m; the goal is the centre of a goal cell."""
    grid = LAYOUTS[layout]
    model_spec = _robot()
    add_walls(model_spec, grid, scale=_SCALE, height=1.0, contype=0)
    starts, goals = (cell_centres(grid, kind, scale=_SCALE) for kind in "RG")

    def sample_places(num_envs: int, generator: Generator) -> tuple[Tensor, Tensor]:
        return one_of(starts, num_envs, generator), one_of(goals, num_envs, generator)

    return _task(spec, model_spec.compile(), sample_places)


def _task(
    spec: TaskSpec,
    model: mujoco.MjModel,
    sample_places: Callable[[int, Generator], tuple[Tensor, Tensor]],
) -> Task:
    """`sample_places` draws x and y of N starts and of their goals, in float64."""

    def sample_start(num_envs: int, generator: Generator) -> Start:
        """Always the same upright pose at rest."""
        start_N2, goal_N2 = sample_places(num_envs, generator)
        qpos_NQ = torch.zeros(num_envs, model.nq, dtype=torch.float64)
        qpos_NQ[:, :2] = start_N2
        qpos_NQ[:, 2] = _START_HEIGHT
        qpos_NQ[:, 3] = 1.0
        return Start(
            qpos_NQ=qpos_NQ,
            qvel_NV=torch.zeros(num_envs, model.nv, dtype=torch.float64),
            goal_NG=at_height(goal_N2, _GOAL_HEIGHT),
        )

    return Task(
        spec=spec,
        model=model,
        substeps=5,
        sample_start=sample_start,
        state=_state_reader(model),
        fields=("cinert", "cvel"),
        control=_control,
        failed=height_outside(_LOWEST, _HIGHEST),
        # Robots thrown at a maze's walls had at most 52 constraints.
        capacity=Capacity(constraints=96),
    )


def _control(action_NA: Tensor, simulator: Simulator) -> Tensor:  # noqa: ARG001
    """Scale actions from [-1, 1] to the actuators' control range."""
    return _CONTROL_RANGE * action_NA


# Entries of cinert (xx yy zz xy xz yz, mass-weighted offset, mass) that are the row-major inertia
# matrix and the mass.
_MATRIX_AND_MASS = (0, 3, 4, 3, 1, 5, 4, 5, 2, 9)


def _state_reader(model: mujoco.MjModel) -> Callable[[Simulator], Tensor]:
    order = Constant(torch.tensor(_MATRIX_AND_MASS))
    masses = Constant(torch.from_numpy(model.body_mass[1:].copy()))
    torques = Constant(torch.from_numpy(_torque_per_control(model)))

    def state(simulator: Simulator) -> Tensor:
        """0:24 qpos, 24:47 qvel, 47:157 link inertias, 157:223 link velocities, 223:246 torques.

        Per link: its inertia about the robot's centre of mass, row-major in world axes, and its
        mass; then its mass-weighted linear velocity and its angular velocity.
        """
        qpos_NQ, qvel_NV, inertia_NK10, velocity_NK6 = (
            simulator.data[name].float() for name in ("qpos", "qvel", "cinert", "cvel")
        )
        mass_K = masses.like(qpos_NQ)
        # In float64 everywhere, since torch may round products of float32 to TF32.
        control_NA = simulator.data["ctrl"].double().clamp(-_CONTROL_RANGE, _CONTROL_RANGE)
        inertia_NK10, velocity_NK6 = inertia_NK10[:, 1:], velocity_NK6[:, 1:]
        matrix_NK10 = inertia_NK10.index_select(-1, order.on(qpos_NQ.device))
        # MuJoCo's linear velocity is that of the link's point at the robot's centre of mass.
        angular_NK3, at_centre_NK3 = velocity_NK6[..., :3], velocity_NK6[..., 3:]
        momentum_NK3 = mass_K[:, None] * at_centre_NK3
        momentum_NK3 = momentum_NK3 + torch.linalg.cross(angular_NK3, inertia_NK10[..., 6:9])
        parts = [
            qpos_NQ,
            qvel_NV,
            matrix_NK10.flatten(1),
            torch.cat([momentum_NK3 / mass_K.sum(), angular_NK3], dim=-1).flatten(1),
            (control_NA @ torques.on(simulator.device)).float(),
        ]
        return torch.cat(parts, dim=-1)

    return state


def _torque_per_control(model: mujoco.MjModel) -> np.ndarray:
    """[actuators, nv]: the torque that a unit control puts on each degree of freedom."""
    torque_AV = np.zeros((model.nu, model.nv))
    for actuator in range(model.nu):
        joint = model.actuator_trnid[actuator, 0]
        torque_AV[actuator, model.jnt_dofadr[joint]] = model.actuator_gear[actuator, 0]
    return torque_AV


def _robot() -> mujoco.MjSpec:
    """Gymnasium's humanoid without self-collisions, its feet fused into its shins."""
    spec = gymnasium_model("humanoid.xml")
    spec.compiler.fusestatic = True
    set_physics(spec, timestep=0.003)
    for geom in spec.geoms:
        floor = geom.name == "floor"
        geom.contype, geom.conaffinity = (0, 1) if floor else (1, 0)
        geom.condim = 3
        geom.friction = [1.0, 0.1, 0.1]
        geom.margin = 0.0
    return spec
