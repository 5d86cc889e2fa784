"""A step of Adam for many tensors as one Triton kernel.

T tensors, N elements of a program.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.launch import require_device

TOGETHER = 64
"""Tensors of one launch, at most: their addresses are arguments of the kernel."""
_ELEMENTS = 2048


@triton.jit
def _correction(step, LOG_BETA: tl.constexpr):
    # 1 - beta^t, in fp64, since in fp32 the first steps would lose half of its digits.
    return 1.0 - tl.exp(step.to(tl.float64) * tl.full([], LOG_BETA, tl.float64))


@triton.jit
def adam_kernel(
    # in and out
    parameters, gradients, means, squares, steps,
    # sizes
    first_programs, sizes, rates,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Tuples of T pointers and numbers; `steps` counts this step too. Grid: N elements each."""
    i_p = tl.program_id(0)
    p_parameter, p_gradient, p_mean, p_square = parameters[0], gradients[0], means[0], squares[0]
    p_step, first, size, rate = steps[0], first_programs[0], sizes[0], rates[0]
    for k in tl.static_range(1, len(parameters)):
        if i_p >= first_programs[k]:
            p_parameter, p_gradient, p_mean = parameters[k], gradients[k], means[k]
            p_square, p_step = squares[k], steps[k]
            first, size, rate = first_programs[k], sizes[k], rates[k]
    step = tl.load(p_step)
    b_rate = (rate / _correction(step, LOG_BETA1)).to(tl.float32)
    b_root = (1.0 / tl.sqrt(_correction(step, LOG_BETA2))).to(tl.float32)
    o = (i_p - first).to(tl.int64) * N + tl.arange(0, N)
    m = o < size
    b_gradient = tl.load(p_gradient + o, mask=m, other=0.0)
    b_mean = tl.load(p_mean + o, mask=m, other=0.0)
    b_square = tl.load(p_square + o, mask=m, other=0.0)
    b_mean += (b_gradient - b_mean) * (1.0 - BETA1)
    b_square = b_square * BETA2 + b_gradient * b_gradient * (1.0 - BETA2)
    b_change = b_rate * b_mean / (tl.sqrt(b_square) * b_root + EPS)
    tl.store(p_parameter + o, tl.load(p_parameter + o, mask=m, other=0.0) - b_change, mask=m)
    tl.store(p_mean + o, b_mean, mask=m)
    tl.store(p_square + o, b_square, mask=m)


def step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    rates: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """Change parameters, moments and step counts in place; contiguous fp32 tensors on one device.

    The counts, one number for each parameter, go up by one.
    """
    if not parameters:
        return
    require_device(parameters[0], "adam")
    torch._foreach_add_(list(steps), 1.0)
    for start in range(0, len(parameters), TOGETHER):
        part = slice(start, start + TOGETHER)
        sizes = [x.numel() for x in parameters[part]]
        first, programs = [], 0
        for size in sizes:
            first.append(programs)
            programs += triton.cdiv(size, _ELEMENTS)
        with torch.cuda.device_of(parameters[0]):
            adam_kernel[(programs,)](
                *(tuple(x[part]) for x in (parameters, gradients, means, squares, steps)),
                tuple(first), tuple(sizes), tuple(rates[part]),
                BETA1=betas[0], BETA2=betas[1], EPS=epsilon,
                LOG_BETA1=math.log(betas[0]), LOG_BETA2=math.log(betas[1]),
                N=_ELEMENTS, num_warps=4,
            )  # fmt: skip
