"""The definition of `squashed_gaussian` in plain torch. B batch, A action."""

import math

import torch
from torch import Tensor

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0
# Added under the logarithm of the published density, which is infinite at |action| = 1 otherwise.
EPSILON = 1e-6
LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def action_distribution(actor_output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-std [B, A] of the Gaussian before the tanh, from the actor's output [B, 2 A].

    The log-std is squashed into [-5, 2]; a raw value of 0 gives -1.5.
    """
    mean_BA, raw_BA = actor_output.chunk(2, dim=-1)
    half_range = 0.5 * (LOG_STD_HIGH - LOG_STD_LOW)
    return mean_BA, LOG_STD_LOW + half_range * (torch.tanh(raw_BA) + 1.0)


def squashed_sample(mean_BA: Tensor, log_std_BA: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """A reparameterised action in (-1, 1) and its log-density.

    Args:
        mean_BA, log_std_BA: mean and log-std of the Gaussian before the tanh.
        noise_BA: standard normal draws.

    Returns:
        action [B, A] and log pi(action) [B], summed over the action's entries.
    """
    action_BA = torch.tanh(mean_BA + log_std_BA.exp() * noise_BA)
    gaussian_BA = -0.5 * noise_BA.square() - log_std_BA - LOG_ROOT_TWO_PI
    log_prob_B = (gaussian_BA - torch.log(1.0 - action_BA.square() + EPSILON)).sum(-1)
    return action_BA, log_prob_B


def squashed_gaussian(output_B2A: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """Action [B, A] and log-density [B] from the actor's output and standard normal draws."""
    return squashed_sample(*action_distribution(output_B2A), noise_BA)
