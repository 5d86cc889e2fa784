"""Functions of hazards: likelihood of an arrival and discounted time until it. See the README.

The definitions are `hazard_nll` and `hazard_value` of `torch_crl.agent.objectives.time_to_goal`. A
program takes a row of logits [K]; BK is K padded to a power of two.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.elementwise import sigmoid, softplus
from torch_crl.kernels.launch import require_device

NUM_WARPS = 4


@triton.jit
def _arrival(p_event, p_time, p_censor, i_b, K):
    # Whether the row arrives, the step of its arrival, and the steps without one.
    event = tl.load(p_event + i_b) != 0
    time = tl.minimum(tl.load(p_time + i_b), K - 1)
    return event, time, tl.where(event, time, tl.load(p_censor + i_b))


@triton.jit
def nll_fwd_kernel(
    # in
    p_start, p_hazard, p_event, p_time, p_censor,
    # out
    p_nll,
    # sizes
    K, start_stride,
    BK: tl.constexpr,
):  # fmt: skip
    """Grid: rows."""
    i_b = tl.program_id(0).to(tl.int64)
    event, time, steps = _arrival(p_event, p_time, p_censor, i_b, K)
    o_k = tl.arange(0, BK)
    b_logit = tl.load(p_hazard + i_b * K + o_k, mask=(o_k < K) & (o_k < steps), other=0.0)
    survived = tl.sum(tl.where(o_k < steps, softplus(b_logit), 0.0), 0)
    start = tl.load(p_start + i_b * start_stride)
    arrival = softplus(-tl.load(p_hazard + i_b * K + time))
    later = softplus(start) + survived + tl.where(event, arrival, 0.0)
    tl.store(p_nll + i_b, tl.where(event & (time == 0), softplus(-start), later))


@triton.jit
def nll_bwd_kernel(
    # in
    p_upstream, p_start, p_hazard, p_event, p_time, p_censor,
    # out
    p_start_grad, p_hazard_grad,
    # sizes
    K, upstream_stride, start_stride,
    BK: tl.constexpr,
):  # fmt: skip
    """Grid: rows."""
    i_b = tl.program_id(0).to(tl.int64)
    event, time, steps = _arrival(p_event, p_time, p_censor, i_b, K)
    upstream = tl.load(p_upstream + i_b * upstream_stride)
    is_there = event & (time == 0)
    o_k = tl.arange(0, BK)
    m_k = o_k < K
    b_logit = tl.load(p_hazard + i_b * K + o_k, mask=m_k, other=0.0)
    b_grad = tl.where(o_k < steps, sigmoid(b_logit), 0.0)
    b_grad = tl.where(event & (o_k == time), -sigmoid(-b_logit), b_grad)
    b_grad = tl.where(is_there, 0.0, upstream * b_grad)
    tl.store(p_hazard_grad + i_b * K + o_k, b_grad, mask=m_k)
    start = tl.load(p_start + i_b * start_stride)
    slope = tl.where(is_there, -sigmoid(-start), sigmoid(start))
    tl.store(p_start_grad + i_b, upstream * slope)


@triton.jit
def value_fwd_kernel(
    # in
    p_start, p_hazard,
    # out
    p_value,
    # sizes
    K, start_stride, log_discount,
    BK: tl.constexpr,
):  # fmt: skip
    """Grid: rows."""
    i_b = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, BK)
    m_k = o_k < K
    # Of the step before, so that no sum has to be taken apart again.
    m_before = m_k & (o_k > 0)
    b_logit = tl.load(p_hazard + i_b * K + o_k - 1, mask=m_before, other=0.0)
    b_before = tl.cumsum(tl.where(m_before, softplus(b_logit), 0.0), 0)
    start = softplus(tl.load(p_start + i_b * start_stride))
    b_share = tl.exp(o_k * log_discount - (start + b_before))
    tl.store(p_value + i_b, -tl.sum(tl.where(m_k, b_share, 0.0), 0))


@triton.jit
def value_bwd_kernel(
    # in
    p_upstream, p_start, p_hazard, p_value,
    # out
    p_start_grad, p_hazard_grad,
    # sizes
    K, upstream_stride, start_stride, log_discount,
    BK: tl.constexpr,
):  # fmt: skip
    """Grid: rows."""
    i_b = tl.program_id(0).to(tl.int64)
    upstream = tl.load(p_upstream + i_b * upstream_stride)
    o_k = tl.arange(0, BK)
    m_k = o_k < K
    b_logit = tl.load(p_hazard + i_b * K + o_k, mask=m_k, other=0.0)
    b_until = tl.cumsum(tl.where(m_k, softplus(b_logit), 0.0), 0)
    start = tl.load(p_start + i_b * start_stride)
    # The term of the next step, and the sum of all terms after this one.
    b_next = tl.exp((o_k + 1) * log_discount - (softplus(start) + b_until))
    b_later = tl.cumsum(tl.where(o_k < K - 1, b_next, 0.0), 0, reverse=True)
    tl.store(p_hazard_grad + i_b * K + o_k, upstream * sigmoid(b_logit) * b_later, mask=m_k)
    tl.store(p_start_grad + i_b, -upstream * sigmoid(start) * tl.load(p_value + i_b))


def _launch(
    kernel: Any,
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor],
    hazard_BK: Tensor,
    *sizes: Any,
) -> None:
    """A program for each row of `hazard_BK`."""
    batch, steps = hazard_BK.shape
    with torch.cuda.device_of(hazard_BK):
        kernel[(batch,)](
            *tensors, *outputs, steps, *sizes,
            BK=triton.next_power_of_2(steps), num_warps=NUM_WARPS,
        )  # fmt: skip


def _empty_gradients(hazard_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Of the logits of being there [B], and of the hazards [B, K]."""
    return hazard_BK.new_empty(len(hazard_BK)), torch.empty_like(hazard_BK)


@torch.library.custom_op("torch_crl::hazard_nll", mutates_args=())
def _nll(
    start_B: Tensor, hazard_BK: Tensor, event_B: Tensor, time_B: Tensor, censor_B: Tensor
) -> Tensor:
    nll_B = hazard_BK.new_empty(len(hazard_BK))
    inputs = (start_B, hazard_BK, event_B, time_B, censor_B)
    _launch(nll_fwd_kernel, inputs, [nll_B], hazard_BK, start_B.stride(0))
    return nll_B


@torch.library.custom_op("torch_crl::hazard_nll_backward", mutates_args=())
def _nll_gradients(
    upstream_B: Tensor,
    start_B: Tensor,
    hazard_BK: Tensor,
    event_B: Tensor,
    time_B: Tensor,
    censor_B: Tensor,
) -> tuple[Tensor, Tensor]:
    gradients = _empty_gradients(hazard_BK)
    inputs = (upstream_B, start_B, hazard_BK, event_B, time_B, censor_B)
    strides = upstream_B.stride(0), start_B.stride(0)
    _launch(nll_bwd_kernel, inputs, gradients, hazard_BK, *strides)
    return gradients


@torch.library.custom_op("torch_crl::hazard_value", mutates_args=())
def _value(start_B: Tensor, hazard_BK: Tensor, log_discount: float) -> Tensor:
    value_B = hazard_BK.new_empty(len(hazard_BK))
    sizes = start_B.stride(0), log_discount
    _launch(value_fwd_kernel, (start_B, hazard_BK), [value_B], hazard_BK, *sizes)
    return value_B


@torch.library.custom_op("torch_crl::hazard_value_backward", mutates_args=())
def _value_gradients(
    upstream_B: Tensor, start_B: Tensor, hazard_BK: Tensor, value_B: Tensor, log_discount: float
) -> tuple[Tensor, Tensor]:
    gradients = _empty_gradients(hazard_BK)
    inputs = (upstream_B, start_B, hazard_BK, value_B)
    sizes = upstream_B.stride(0), start_B.stride(0), log_discount
    _launch(value_bwd_kernel, inputs, gradients, hazard_BK, *sizes)
    return gradients


@_nll.register_fake
@_value.register_fake
def _(_start_B: Tensor, hazard_BK: Tensor, *_: Any) -> Tensor:
    return hazard_BK.new_empty(hazard_BK.shape[0])


@_nll_gradients.register_fake
@_value_gradients.register_fake
def _(_upstream_B: Tensor, _start_B: Tensor, hazard_BK: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_gradients(hazard_BK)


def _keep_nll(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _nll_backward(ctx: Any, upstream_B: Tensor) -> tuple[Tensor | None, ...]:
    return *_nll_gradients(upstream_B, *ctx.saved_tensors), None, None, None


def _keep_value(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.log_discount = inputs
    ctx.save_for_backward(*tensors, output)


def _value_backward(ctx: Any, upstream_B: Tensor) -> tuple[Tensor | None, ...]:
    return *_value_gradients(upstream_B, *ctx.saved_tensors, ctx.log_discount), None


_nll.register_autograd(_nll_backward, setup_context=_keep_nll)
_value.register_autograd(_value_backward, setup_context=_keep_value)


def hazard_nll(
    start_B: Tensor, hazard_BK: Tensor, *, event_B: Tensor, time_B: Tensor, censor_B: Tensor
) -> Tensor:
    """Negative log-likelihood [B] of fp32 logits on a CUDA device."""
    require_device(hazard_BK, "hazard_nll")
    labels = (each.contiguous() for each in (event_B, time_B, censor_B))
    nll_B: Tensor = _nll(start_B, hazard_BK.contiguous(), *labels)
    return nll_B


def hazard_value(start_B: Tensor, hazard_BK: Tensor, *, discount: float) -> Tensor:
    """Minus the expected discounted number of steps before the arrival, [B]; as above."""
    require_device(hazard_BK, "hazard_value")
    value_B: Tensor = _value(start_B, hazard_BK.contiguous(), math.log(discount))
    return value_B
