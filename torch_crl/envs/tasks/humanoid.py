"""`humanoid`: a 17-actuator humanoid walks to a point. N envs, K links, S state."""

from collections.abc import Callable

import mujoco
import numpy as np
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task, height_outside
from torch_crl.envs.tasks.models import gymnasium_model, set_physics
from torch_crl.envs.tasks.sampling import Constant, at_height, on_circle, uniform

_START_HEIGHT = 1.4
_GOAL_HEIGHT = 1.25
_LOWEST, _HIGHEST = 1.0, 2.0
_CONTROL_RANGE = 0.4


def make(spec: TaskSpec) -> Task:
    """Open floor; the goal is at a radius of 1 to 5 m and torso height. Control step 0.015 s."""
    model = _robot().compile()
    return Task(
        spec=spec,
        model=model,
        substeps=5,
        sample_start=_sample_start,
        state=_state_reader(model),
        fields=("cinert", "cvel"),
        control=_control,
        failed=height_outside(_LOWEST, _HIGHEST),
    )


def _sample_start(num_envs: int, generator: Generator) -> Start:
    """Always the same upright pose at rest; only the goal varies, uniformly in radius."""
    qpos_NQ = torch.zeros(num_envs, 24, dtype=torch.float64)
    qpos_NQ[:, 2] = _START_HEIGHT
    qpos_NQ[:, 3] = 1.0
    goal_xy = on_circle(uniform(1.0, 5.0, (num_envs,), generator), generator)
    return Start(
        qpos_NQ=qpos_NQ,
        qvel_NV=torch.zeros(num_envs, 23, dtype=torch.float64),
        goal_NG=at_height(goal_xy, _GOAL_HEIGHT),
    )


def _control(action_NA: Tensor, simulator: Simulator) -> Tensor:  # noqa: ARG001
    """[-1, 1] to the actuators' range."""
    return _CONTROL_RANGE * action_NA


# Where cinert (xx yy zz xy xz yz, mass-weighted offset, mass) has a row-major matrix and the mass.
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
        data = simulator.data
        mass_K, torque_AV = (constant.like(data["qpos"]) for constant in (masses, torques))
        inertia_NK10, velocity_NK6 = data["cinert"][:, 1:], data["cvel"][:, 1:]
        matrix_NK10 = inertia_NK10.index_select(-1, order.on(data["qpos"].device))
        # MuJoCo's linear velocity is that of the point of the link that passes the robot's centre.
        angular_NK3, at_centre_NK3 = velocity_NK6[..., :3], velocity_NK6[..., 3:]
        momentum_NK3 = mass_K[:, None] * at_centre_NK3
        momentum_NK3 = momentum_NK3 + torch.linalg.cross(angular_NK3, inertia_NK10[..., 6:9])
        parts = [
            data["qpos"],
            data["qvel"],
            matrix_NK10.flatten(1),
            torch.cat([momentum_NK3 / mass_K.sum(), angular_NK3], dim=-1).flatten(1),
            data["ctrl"].clamp(-_CONTROL_RANGE, _CONTROL_RANGE) @ torque_AV,
        ]
        return torch.cat(parts, dim=-1).float()

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
