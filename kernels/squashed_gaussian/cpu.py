"""`squashed_gaussian` for one CPU core: one loop forward, and one backward. B batch, A action."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_crl.kernels.cpu import array, entry, exp_minus, loops, require_cpu, tanh
from torch_crl.kernels.squashed_gaussian.reference import (
    EPSILON,
    LOG_ROOT_TWO_PI,
    LOG_STD_HIGH,
    LOG_STD_LOW,
)

_HALF_RANGE = 0.5 * (LOG_STD_HIGH - LOG_STD_LOW)
_TINY = 1e-250


@entry
@loops
def forward_rows(output, noise, action, squashed, log_prob):
    """action [B, A], tanh of the raw log-std [B, A] and log_prob [B]; sums are in fp64."""
    rows, size = noise.shape
    one, epsilon = noise.dtype.type(1.0), noise.dtype.type(EPSILON)
    low, half = noise.dtype.type(LOG_STD_LOW), noise.dtype.type(_HALF_RANGE)
    for i in range(rows):
        for j in range(size):
            action[i, j] = output[i, j]
            squashed[i, j] = output[i, size + j]
    # Of all entries at once, since an action has fewer of them than a vector.
    flat_action, flat_squashed, flat_noise = action.ravel(), squashed.ravel(), noise.ravel()
    for k in range(len(flat_noise)):
        flat_squashed[k] = tanh(flat_squashed[k])
        std = exp_minus(-low - half * (flat_squashed[k] + one))
        flat_action[k] = tanh(flat_action[k] + std * flat_noise[k])
    for i in range(rows):
        total, under_logs = 0.0, 1.0
        for j in range(size):
            total -= 0.5 * noise[i, j] * noise[i, j] + LOG_ROOT_TWO_PI
            total -= LOG_STD_LOW + _HALF_RANGE * (squashed[i, j] + 1.0)
            # The logarithm of a product in place of a sum of logarithms, while it is no tiny one.
            under_logs *= (one - action[i, j]) * (one + action[i, j]) + epsilon
            if under_logs < _TINY:
                total -= math.log(under_logs)
                under_logs = 1.0
        log_prob[i] = total - math.log(under_logs)


@entry
@loops
def backward_rows(daction, dlog_prob, noise, action, squashed, doutput):
    """Gradient [B, 2 A] of the output from those of action and log-density."""
    rows, size = noise.shape
    one, epsilon = noise.dtype.type(1.0), noise.dtype.type(EPSILON)
    low, half = noise.dtype.type(LOG_STD_LOW), noise.dtype.type(_HALF_RANGE)
    for i in range(rows):
        for j in range(size):
            chosen, squash = action[i, j], squashed[i, j]
            slope = (one - chosen) * (one + chosen)
            of_action = daction[i, j] + dlog_prob[i] * (chosen + chosen) / (slope + epsilon)
            of_mean = of_action * slope
            std = exp_minus(-low - half * (squash + one))
            of_log_std = of_mean * std * noise[i, j] - dlog_prob[i]
            doutput[i, j] = of_mean
            doutput[i, size + j] = of_log_std * half * (one - squash * squash)


class _SquashedGaussian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output_B2A: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
        action_BA, log_prob_B = torch.empty_like(noise_BA), noise_BA.new_empty(len(noise_BA))
        squashed_BA = torch.empty_like(noise_BA)
        forward_rows(*map(array, (output_B2A, noise_BA, action_BA, squashed_BA, log_prob_B)))
        ctx.save_for_backward(noise_BA, action_BA, squashed_BA)
        return action_BA, log_prob_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, daction_BA: Tensor, dlog_prob_B: Tensor) -> tuple[Tensor, None]:
        noise_BA, action_BA, squashed_BA = ctx.saved_tensors
        doutput_B2A = noise_BA.new_empty(len(noise_BA), 2 * noise_BA.shape[1])
        upstream = daction_BA.contiguous(), dlog_prob_B.contiguous()
        backward_rows(*map(array, (*upstream, noise_BA, action_BA, squashed_BA, doutput_B2A)))
        return doutput_B2A, None


def squashed_gaussian(output_B2A: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """See `torch_crl.kernels.squashed_gaussian.squashed_gaussian`."""
    require_cpu("squashed_gaussian", output_B2A, noise_BA)
    apply: Callable[..., tuple[Tensor, Tensor]] = _SquashedGaussian.apply
    return apply(output_B2A.contiguous(), noise_BA.contiguous())
