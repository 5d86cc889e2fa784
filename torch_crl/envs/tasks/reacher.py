"""`reacher`: bring the tip of a planar two-link arm to a point. N envs, S state."""

from collections.abc import Callable

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks.models import gymnasium_model, set_physics
from torch_crl.envs.tasks.sampling import Constant, at_height, on_circle, uniform

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
    links = Constant(torch.tensor([model.body(name).pos[0] for name in ("body1", "fingertip")]))

    def state(simulator: Simulator) -> Tensor:
        """0:2 cos, 2:4 sin of the joints, 4:7 fingertip position, 7:10 fingertip velocity."""
        # From the angles: MuJoCo would bring its positions up to date for two thirds of a substep.
        angle_N2, rate_N2 = simulator.data["qpos"], simulator.data["qvel"]
        cos_N2, sin_N2 = angle_N2.cos(), angle_N2.sin()
        # Of each link: its angle to the x axis and that angle's rate.
        turned_N2, turning_N2 = angle_N2.cumsum(-1), rate_N2.cumsum(-1)
        x_N2, y_N2 = (links.like(cos_N2) * part for part in (turned_N2.cos(), turned_N2.sin()))
        planar_N2 = [x_N2, y_N2, -turning_N2 * y_N2, turning_N2 * x_N2]
        tip_x, tip_y, velocity_x, velocity_y = (part.sum(-1) for part in planar_N2)
        height, still = torch.full_like(tip_x, _TIP_HEIGHT), torch.zeros_like(tip_x)
        tip = torch.stack([tip_x, tip_y, height, velocity_x, velocity_y, still], dim=-1)
        return torch.cat([cos_N2, sin_N2, tip], dim=-1).float()

    return state
