"""How far a student's policy is from its teacher's: pure functions of both networks' outputs.

B batch, A action or chunk of actions. An output is concat(mean, raw log-std) [B, 2 A] before tanh.
"""

import torch
from torch import Tensor

from torch_crl.agent.networks import action_distribution

FLAT = 2.5
"""From here on the slope of tanh is below 0.03, and a mean need not be followed any further."""
MEAN_WEIGHT, STD_WEIGHT = 0.1, 0.1


def gaussian_kl(
    mean_BA: Tensor, log_std_BA: Tensor, other_mean_BA: Tensor, other_log_std_BA: Tensor
) -> Tensor:
    """KL(N || other) [B] of diagonal Gaussians, which is also that of their tanh."""
    spread = (2 * log_std_BA).exp() + (mean_BA - other_mean_BA).square()
    ratio = spread / (2 * (2 * other_log_std_BA).exp())
    return (other_log_std_BA - log_std_BA + ratio - 0.5).sum(-1)


def distil_loss(teacher_B2A: Tensor, student_B2A: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The student's loss and its metrics, 0-D.

    The squared error of the deterministic action, a tenth of that of the mean up to where tanh is
    flat (where the action's error has no gradient any more), and a tenth of the KL divergence,
    whose gradient goes into the log-std only: otherwise the student would explain errors of its
    mean as noise instead of mending them.
    """
    mean_BA, log_std_BA = action_distribution(teacher_B2A)
    own_mean_BA, own_log_std_BA = action_distribution(student_B2A)
    difference_BA = torch.tanh(own_mean_BA) - torch.tanh(mean_BA)
    action = difference_BA.square().sum(-1).mean()
    flat_BA = mean_BA.clamp(-FLAT, FLAT)
    error_BA = own_mean_BA - flat_BA
    # A student that is further out than a teacher in the flat part is as right as it.
    is_right_BA = (flat_BA.abs() == FLAT) & (error_BA * flat_BA > 0)
    mean = error_BA.masked_fill(is_right_BA, 0.0).square().sum(-1).mean()
    std = gaussian_kl(mean_BA, log_std_BA, own_mean_BA.detach(), own_log_std_BA).mean()
    loss = action + MEAN_WEIGHT * mean + STD_WEIGHT * std
    return loss, {"action_error": difference_BA.detach().abs().mean(), "kl": std.detach()}
