"""How tasks read and drive the arm and its hand: joint targets, flange, fingers.

N envs, A action. Each function works on whole batches.
"""

from collections.abc import Callable

import mujoco
import torch
from torch import Tensor

from torch_crl.envs.simulators import Simulator
from torch_crl.envs.tasks import panda
from torch_crl.envs.tasks.sampling import Constant

# Targets of the seven joints in the middle of the action's range, and how far an action of 1
# moves them, rad.
_MIDDLE = (1.5708, 0.7418, 0.0, -1.5708, 0.0, 3.0543, 1.4487)
_SPAN = (1.2217, 0.7418, 0.0, 1.5010, 0.0, 0.6982, 0.0)
# Largest distance of the gantry's target from its present position on each axis, m.
_REACH = 0.2
# MjData fields that `flange_reader` reads.
FLANGE_FIELDS = ("xpos", "cvel", "subtree_com")


def joint_control(*, fingers: bool) -> Callable[[Tensor, Simulator], Tensor]:
    """Function from actions to targets of the seven joints and, if there are any, the fingers."""
    middle, span = (Constant(torch.tensor(numbers)) for numbers in (_MIDDLE, _SPAN))

    def control(action_NA: Tensor, simulator: Simulator) -> Tensor:  # noqa: ARG001
        first, second, fourth, sixth = action_NA[:, :4].split(1, dim=-1)
        still = torch.zeros_like(first)
        moved_N7 = torch.cat([first, second, still, fourth, still, sixth, still], dim=-1)
        target_N7 = middle.like(action_NA) + span.like(action_NA) * moved_N7
        if not fingers:
            return target_N7
        return torch.cat([target_N7, _finger_target(action_NA[:, 4:])], dim=-1)

    return control


def gantry_control(action_NA: Tensor, simulator: Simulator) -> Tensor:
    """Actions to targets of the slides, relative to the hand's position, and of both fingers."""
    here_N3 = simulator.data["qpos"][:, :3].float()
    target_N3 = here_N3 + _REACH * action_NA[:, :3].clamp(-1.0, 1.0)
    return torch.cat([target_N3, _finger_target(action_NA[:, 3:])], dim=-1)


def _finger_target(close_N1: Tensor) -> Tensor:
    """Fully closed where positive, wide open otherwise; the same for both fingers, [N, 2]."""
    return torch.where(close_N1 > 0, 0.0, panda.FINGER_STROKE).expand(-1, 2)


def finger_distance(fingers_N2: Tensor) -> Tensor:
    """Distance of the origins of the finger bodies, [N, 1]; their joints move them apart."""
    return fingers_N2.sum(-1, keepdim=True).abs()


def finger_force(target_N2: Tensor, position_N2: Tensor, velocity_N2: Tensor) -> Tensor:
    """Force of the finger servos, N, positive where it opens them. Returns [N, 2].

    It is computed here since MuJoCo's `actuator_force` is one physics step late, and at the start
    of an episode still has the value of the previous episode.
    """
    force_N2 = panda.FINGER_STIFFNESS * (target_N2 - position_N2)
    force_N2 = force_N2 - panda.SERVO_DAMPING * panda.FINGER_STIFFNESS * velocity_N2
    return force_N2.clamp(-panda.FINGER_FORCE, panda.FINGER_FORCE)


def flange_reader(model: mujoco.MjModel) -> Callable[[Simulator], tuple[Tensor, Tensor]]:
    """Function that reads position and linear velocity of link7's origin, in world axes."""
    link, root = model.body("link7").id, model.body("link1").id

    def read(simulator: Simulator) -> tuple[Tensor, Tensor]:
        data = simulator.data
        position_N3 = data["xpos"][:, link]
        angular_N3, linear_N3 = data["cvel"][:, link].split(3, dim=-1)
        # `cvel` is the velocity of the link's point at the centre of mass of the whole robot.
        lever_N3 = position_N3 - data["subtree_com"][:, root]
        return position_N3, linear_N3 + torch.linalg.cross(angular_N3, lever_N3)

    return read
