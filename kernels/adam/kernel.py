"""A step of Adam for many tensors as one Triton kernel.

T tensors, C of them with a rounded copy, N elements of a part.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.launch import multiprocessors, require_device

TOGETHER = 32
"""Tensors of one launch, at most: from 36 on their addresses take registers from the arithmetic."""
ELEMENTS, WARPS = 1024, 8
"""Four elements of a thread, 16 bytes: with more of them the compiler takes all registers."""
_MOST_PARTS = 8


@triton.jit
def _correction(step, LOG_BETA: tl.constexpr):
    # 1 - beta^t, in fp64, since in fp32 the first steps would lose half of its digits.
    return 1.0 - tl.exp(step.to(tl.float64) * tl.full([], LOG_BETA, tl.float64))


@triton.jit
def _change(
    p_parameter, p_gradient, p_mean, p_square, p_copy, has_copy, mask,
    b_rate, b_root, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """The step of the elements at these addresses; without a mask all of them are there."""
    b_gradient = tl.load(p_gradient, mask=mask)
    b_mean = tl.load(p_mean, mask=mask)
    b_square = tl.load(p_square, mask=mask)
    b_mean += (b_gradient - b_mean) * (1.0 - BETA1)
    b_square = b_square * BETA2 + b_gradient * b_gradient * (1.0 - BETA2)
    b_change = b_rate * b_mean / (tl.sqrt(b_square) * b_root + EPS)
    b_parameter = tl.load(p_parameter, mask=mask) - b_change
    tl.store(p_parameter, b_parameter, mask=mask)
    tl.store(p_mean, b_mean, mask=mask)
    tl.store(p_square, b_square, mask=mask)
    if has_copy:
        tl.store(p_copy, b_parameter.to(p_copy.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["programs_with_copy", "parts"])
def adam_kernel(
    # in and out
    parameters, gradients, means, squares, steps,
    # out
    copies,
    # sizes
    first_programs, sizes, rates, programs_with_copy, parts,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Tuples of T pointers and numbers, `copies` of the first C; `steps` counts this step too.

    Grid: `parts` times N elements each.
    """
    i_p = tl.program_id(0)
    p_parameter, p_gradient, p_mean, p_square = parameters[0], gradients[0], means[0], squares[0]
    p_step, first, size, rate = steps[0], first_programs[0], sizes[0], rates[0]
    for k in tl.static_range(1, len(parameters)):
        if i_p >= first_programs[k]:
            p_parameter, p_gradient, p_mean = parameters[k], gradients[k], means[k]
            p_square, p_step = squares[k], steps[k]
            first, size, rate = first_programs[k], sizes[k], rates[k]
    p_copy, has_copy = p_parameter, False
    if len(copies) > 0:
        p_copy, has_copy = copies[0], i_p < programs_with_copy
        for k in tl.static_range(1, len(copies)):
            if i_p >= first_programs[k]:
                p_copy = copies[k]
    step = tl.load(p_step)
    b_rate = (rate / _correction(step, LOG_BETA1)).to(tl.float32)
    b_root = (1.0 / tl.sqrt(_correction(step, LOG_BETA2))).to(tl.float32)
    start = (i_p - first).to(tl.int64) * (N * parts)
    for _ in range(parts):
        stop = start + N
        o = start + tl.arange(0, N)
        at = (p_parameter + o, p_gradient + o, p_mean + o, p_square + o, p_copy + o, has_copy)
        # Without a mask four elements are one load or store.
        if stop <= size:
            _change(*at, None, b_rate, b_root, BETA1, BETA2, EPS)
        else:
            _change(*at, o < size, b_rate, b_root, BETA1, BETA2, EPS)
        start = stop


def step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    copies: Sequence[Tensor | None],
    rates: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """Change parameters, moments and step counts in place; contiguous fp32 tensors on one device.

    The counts, one number for each parameter, go up by one. Parameters that have a copy, all of one
    16-bit type, are rounded into it.
    """
    if not parameters:
        return
    require_device(parameters[0], "adam")
    torch._foreach_add_(list(steps), 1.0)
    # The kernel takes those with a copy first.
    order = sorted(range(len(parameters)), key=lambda index: copies[index] is None)
    for start in range(0, len(order), TOGETHER):
        part = order[start : start + TOGETHER]
        sizes = [parameters[k].numel() for k in part]
        parts = _parts(sum(sizes), parameters[0].device)
        programs = [triton.cdiv(size, ELEMENTS * parts) for size in sizes]
        first = tuple(itertools.accumulate(programs[:-1], initial=0))
        kept = tuple(copies[k] for k in part if copies[k] is not None)
        tensors = (parameters, gradients, means, squares, steps)
        with torch.cuda.device_of(parameters[0]):
            adam_kernel[(sum(programs),)](
                *(tuple(each[k] for k in part) for each in tensors),
                kept,
                first, tuple(sizes), tuple(rates[k] for k in part),
                sum(programs[: len(kept)]), parts,
                BETA1=betas[0], BETA2=betas[1], EPS=epsilon,
                LOG_BETA1=math.log(betas[0]), LOG_BETA2=math.log(betas[1]),
                N=ELEMENTS, num_warps=WARPS,
            )  # fmt: skip


def _parts(elements: int, device: torch.device) -> int:
    """Parts of a program: as few as let all programs run at once, or else so many that the
    beginnings of programs cost little.
    """
    return min(triton.cdiv(elements, 8 * multiprocessors(device) * ELEMENTS), _MOST_PARTS)
