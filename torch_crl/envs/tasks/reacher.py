"""`reacher`: bring the tip of a planar two-link arm to a point. N envs, S state."""

from collections.abc import Callable

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks.models import gymnasium_model, set_physics
from torch_crl.envs.tasks.sampling import at_height, on_circle, uniform

_TIP_HEIGHT = 0.01
_GOAL_RADIUS = 0.2


def make(spec: TaskSpec) -> Task:
    """Gymnasium's reacher without its target body; motors of gear 25, control step 0.02 s."""
    model_spec = gymnasium_model("reacher.xml")
    model_spec.delete(model_spec.body("target"))
    set_physics(model_spec, timestep=0.01)
    for geom in model_spec.geoms:
        geom.contype = geom.conaffinity = 0
    for actuator in model_spec.actuators:
        actuator.gear[0] = 25.0
    model = model_spec.compile()
    return Task(
        spec=spec,
        model=model,
        substeps=2,
        sample_start=_sample_start,
        state=_state_reader(model),
    )


def _sample_start(num_envs: int, generator: Generator) -> Start:
    """Joints near zero and nearly at rest; the goal uniform in radius, so denser at the centre."""
    goal_xy = on_circle(uniform(0.0, _GOAL_RADIUS, (num_envs,), generator), generator)
    return Start(
        qpos_NQ=uniform(-0.1, 0.1, (num_envs, 2), generator),
        qvel_NV=uniform(-0.005, 0.005, (num_envs, 2), generator),
        goal_NG=at_height(goal_xy, _TIP_HEIGHT),
    )


def _state_reader(model: mujoco.MjModel) -> Callable[[Simulator], Tensor]:
    upper, lower = (float(model.body(name).pos[0]) for name in ("body1", "fingertip"))

    def state(simulator: Simulator) -> Tensor:
        """0:2 cos, 2:4 sin of the joints, 4:7 fingertip position, 7:10 fingertip velocity."""
        angles, rates = simulator.data["qpos"], simulator.data["qvel"]
        # From the angles: MuJoCo would bring its positions up to date for two thirds of a substep.
        first, both = angles[:, 0], angles.sum(-1)
        along_first, along_both = upper * _direction(first), lower * _direction(both)
        tip_N2 = along_first + along_both
        velocity_N2 = rates[:, :1] * _turned(along_first) + rates.sum(-1, True) * _turned(
            along_both
        )
        parts = [
            angles.cos(),
            angles.sin(),
            at_height(tip_N2, _TIP_HEIGHT),
            at_height(velocity_N2, 0.0),
        ]
        return torch.cat(parts, dim=-1).float()

    return state


def _direction(angle_N: Tensor) -> Tensor:
    """Unit vector at an angle to the x axis, [N, 2]."""
    return torch.stack([angle_N.cos(), angle_N.sin()], dim=-1)


def _turned(vector_N2: Tensor) -> Tensor:
    """The vector turned by a quarter: what a unit rate about the vertical does to a lever arm."""
    x, y = vector_N2.unbind(-1)
    return torch.stack([-y, x], dim=-1)
