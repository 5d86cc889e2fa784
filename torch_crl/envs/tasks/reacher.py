"""Reacher: a planar two-link arm brings its tip to a point. N envs.

Task: bring the fingertip to the goal, a point (x, y, 0.01). Control step 0.02 s (2 x 0.01 s).

State, 10 numbers:

- 0:2 cosine, 2:4 sine of the two joint angles
- 4:7 position of the fingertip, 7:10 its velocity

Action: two motors of gear 25. The goal is compared with state 4:7.

Start: joint angles uniform within 0.1 rad of 0, velocities within 0.005 rad/s. The goal lies at a
distance from the shoulder that is uniform in 0 to 0.2 m, so goals are denser near it.

Success within 0.05 m. Episodes end at the time limit only. There are no contacts.

Differences from the reference (scaling-crl and JaxGCRL):

- The dynamics are MuJoCo's, with scaling-crl's gear of 25; JaxGCRL has 200.
- The control step is 0.02 s, as in JaxGCRL. scaling-crl asks for 0.02 s and gets 0.04 s.
- The fingertip's velocity is the true one. In the reference the lever arm is not rotated into the
  world's axes.
- The goal is not part of the model. In the reference it is a body on slides.
- Start and goal are drawn for every episode. In the reference they are drawn once for a whole run.
- Kept: the goal's height, which never varies, is part of the goal.
"""

from collections.abc import Callable

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.places import named_places
from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks import place_names
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
        places=named_places(
            place_names.around({"near": 0.08, "far": 0.16}, height=_TIP_HEIGHT), radius=0.05
        ),
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
        """Cosines, sines, fingertip and its velocity."""
        # Computed from the angles: to update positions, MuJoCo would take two thirds of a substep.
        angle_N2, rate_N2 = simulator.data["qpos"], simulator.data["qvel"]
        # Points are complex numbers: a product rotates, and 1j * rate * point is a velocity.
        unit_N2 = torch.polar(torch.ones_like(angle_N2), angle_N2).to(torch.complex64)
        link_N2 = links.like(rate_N2.float()) * unit_N2.cumprod(-1)
        moving_N2 = 1j * rate_N2.float().cumsum(-1) * link_N2
        tip_N, velocity_N = (part[:, 0] + part[:, 1] for part in (link_N2, moving_N2))
        height = torch.full_like(unit_N2.real[:, :1], _TIP_HEIGHT)
        parts = [unit_N2.real, unit_N2.imag, torch.view_as_real(tip_N), height]
        return torch.cat([*parts, torch.view_as_real(velocity_N), torch.zeros_like(height)], dim=-1)

    return state
