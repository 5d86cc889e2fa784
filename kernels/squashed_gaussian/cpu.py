"""`squashed_gaussian` for one CPU core: one loop forward, and one backward. B batch, A action."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_crl.kernels.cpu import array, loops, require_cpu
from torch_crl.kernels.squashed_gaussian.reference import (
    EPSILON,
    LOG_ROOT_TWO_PI,
    LOG_STD_HIGH,
    LOG_STD_LOW,
)

_HALF_RANGE = 0.5 * (LOG_STD_HIGH - LOG_STD_LOW)


@loops
def forward_rows(output, noise, action, squashed, log_prob):
    """action [B, A], tanh of the raw log-std [B, A] and log_prob [B]; sums are in fp64."""
    rows, size = noise.shape
    one = noise.dtype.type(1.0)
    for i in range(rows):
        total = 0.0
        for j in range(size):
            tanh = math.tanh(output[i, size + j])
            log_std = LOG_STD_LOW + _HALF_RANGE * (tanh + 1.0)
            chosen = noise.dtype.type(math.tanh(output[i, j] + math.exp(log_std) * noise[i, j]))
            squashed[i, j] = tanh
            action[i, j] = chosen
            under_log = (one - chosen) * (one + chosen) + noise.dtype.type(EPSILON)
            total -= 0.5 * noise[i, j] * noise[i, j] + log_std + LOG_ROOT_TWO_PI
            total -= math.log(under_log)
        log_prob[i] = total


@loops
def backward_rows(daction, dlog_prob, noise, action, squashed, doutput):
    """Gradient [B, 2 A] of the output from those of action and log-density."""
    rows, size = noise.shape
    one = noise.dtype.type(1.0)
    for i in range(rows):
        for j in range(size):
            chosen = action[i, j]
            under_log = (one - chosen) * (one + chosen) + noise.dtype.type(EPSILON)
            of_action = daction[i, j] + dlog_prob[i] * (chosen + chosen) / under_log
            of_mean = of_action * (one - chosen) * (one + chosen)
            tanh = squashed[i, j]
            std = math.exp(LOG_STD_LOW + _HALF_RANGE * (tanh + 1.0))
            of_log_std = of_mean * std * noise[i, j] - dlog_prob[i]
            doutput[i, j] = of_mean
            doutput[i, size + j] = of_log_std * _HALF_RANGE * (one - tanh * tanh)


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
