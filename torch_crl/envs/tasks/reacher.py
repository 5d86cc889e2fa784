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
    upper, lower = (float(model.body(name).pos[0]) for name in ("body1", "fingertip"))
    # From the two joints to three angles: both of the joints', and that of the lower link.
    angles = Constant(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64))
    parts = Constant(_state_parts(torch.tensor([upper, 0.0, lower], dtype=torch.float64)))
    rest = Constant(torch.tensor([0.0] * 6 + [_TIP_HEIGHT] + [0.0] * 3, dtype=torch.float64))

    def state(simulator: Simulator) -> Tensor:
        """Cosines, sines, fingertip and its velocity."""
        # Computed from the angles: to update positions, MuJoCo would take two thirds of a substep.
        # In float64 everywhere, since torch may round products of float32 to TF32.
        device = simulator.device
        joints = (simulator.data[name].double() for name in ("qpos", "qvel"))
        angle_N3, rate_N3 = (value_N2 @ angles.on(device) for value_N2 in joints)
        cos_N3, sin_N3 = angle_N3.cos(), angle_N3.sin()
        # Two products with constants in place of many small operations, each of which takes longer
        # to begin than to compute.
        terms = torch.cat([cos_N3, sin_N3, rate_N3 * cos_N3, rate_N3 * sin_N3], dim=-1)
        return torch.addmm(rest.on(device), terms, parts.on(device)).float()

    return state


def _state_parts(length_3: Tensor) -> Tensor:
    """What each of 12 terms adds to the 10 numbers of the state, given the links along 3 angles.

    The terms are the cosines of the three angles, their sines, and both times the angles' rates.
    """
    parts = torch.zeros(4, 3, 10, dtype=torch.float64)
    cos, sin, moving_cos, moving_sin = parts
    cos[:2, 0:2] = sin[:2, 2:4] = torch.eye(2)
    # The tip is at length * (cos, sin), summed over the links, and this is its derivative.
    cos[:, 4], sin[:, 5] = length_3, length_3
    moving_sin[:, 7], moving_cos[:, 8] = -length_3, length_3
    return parts.flatten(0, 1)
