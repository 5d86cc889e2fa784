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
        fields=("xpos",),
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
    elbow_body, tip_body = model.body("body1").id, model.body("fingertip").id

    def state(simulator: Simulator) -> Tensor:
        """0:2 cos, 2:4 sin of the joints, 4:7 fingertip position, 7:10 fingertip velocity."""
        angles, rates = simulator.data["qpos"], simulator.data["qvel"]
        elbow, tip = (simulator.data["xpos"][:, body] for body in (elbow_body, tip_body))
        velocity = rates[:, :1] * _turned(tip) + rates[:, 1:] * _turned(tip - elbow)
        return torch.cat([angles.cos(), angles.sin(), tip, velocity], dim=-1).float()

    return state


def _turned(vector_N3: Tensor) -> Tensor:
    """Z x vector: what a unit rate about the vertical does to a lever arm."""
    x, y, z = vector_N3.unbind(-1)
    return torch.stack([-y, x, torch.zeros_like(z)], dim=-1)
