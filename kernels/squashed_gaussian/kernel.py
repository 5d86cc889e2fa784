"""`squashed_gaussian` as one forward and one backward Triton kernel. See the README.

B batch, A action, BM rows owned by a program, BA is A padded to a power of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.launch import require_device
from torch_crl.kernels.squashed_gaussian.reference import (
    EPSILON,
    LOG_ROOT_TWO_PI,
    LOG_STD_HIGH,
    LOG_STD_LOW,
)

_EPSILON = tl.constexpr(EPSILON)
_LOG_ROOT_TWO_PI = tl.constexpr(LOG_ROOT_TWO_PI)
_LOG_STD_LOW = tl.constexpr(LOG_STD_LOW)
_HALF_RANGE = tl.constexpr(0.5 * (LOG_STD_HIGH - LOG_STD_LOW))
# Elements of a tile. Few per thread: there are only some thousands in all, so latency dominates.
_TILE = 128
NUM_WARPS = 4


@triton.jit
def _tanh(b_x):
    # 1 - 2 / (exp(2 |x|) + 1) cancels near zero, so there a polynomial in x^2 is used. It is a fit
    # to (tanh(x) / x - 1) / x^2 on [0, 0.6] with the smallest maximum relative error; the README
    # states the accuracy. NaN is not below 0.6, and propagates through the exponential.
    b_size = tl.abs(b_x)
    b_z = b_x * b_x
    b_p = -0.00589515885 * b_z + 0.0207959724
    b_p = b_p * b_z - 0.0537838305
    b_p = b_p * b_z + 0.133319241
    b_p = b_p * b_z - 0.33333298
    b_far = 1.0 - tl.div_rn(2.0, tl.exp(2.0 * b_size) + 1.0)
    return tl.where(b_size < 0.6, b_x + b_x * b_z * b_p, tl.where(b_x < 0.0, -b_far, b_far))


@triton.jit
def squashed_gaussian_fwd_kernel(
    # inputs
    p_output, p_noise,
    # outputs
    p_action, p_log_prob,
    # sizes
    B, A,
    BM: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    o_a = tl.arange(0, BA)
    m_m = o_m < B
    m = m_m[:, None] & (o_a < A)[None, :]
    o = o_m[:, None] * A + o_a[None, :]
    o_mean = 2 * o_m[:, None] * A + o_a[None, :]

    b_mean = tl.load(p_output + o_mean, mask=m, other=0.0)
    b_raw = tl.load(p_output + o_mean + A, mask=m, other=0.0)
    b_noise = tl.load(p_noise + o, mask=m, other=0.0)
    b_log_std = (_tanh(b_raw) + 1.0) * _HALF_RANGE + _LOG_STD_LOW
    b_action = _tanh(b_mean + tl.exp(b_log_std) * b_noise)
    b_gaussian = -0.5 * (b_noise * b_noise) - b_log_std - _LOG_ROOT_TWO_PI
    b_log_prob = b_gaussian - tl.log(1.0 - b_action * b_action + _EPSILON)
    tl.store(p_action + o, b_action, mask=m)
    tl.store(p_log_prob + o_m, tl.sum(tl.where(m, b_log_prob, 0.0), 1), mask=m_m)


@triton.jit
def squashed_gaussian_bwd_kernel(
    # inputs
    p_action_grad, p_log_prob_grad, p_output, p_noise, p_action,
    # outputs
    p_output_grad,
    # sizes
    B, A, action_grad_stride, log_prob_grad_stride,
    BM: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    o_a = tl.arange(0, BA)
    m_m = o_m < B
    m = m_m[:, None] & (o_a < A)[None, :]
    o = o_m[:, None] * A + o_a[None, :]
    o_mean = 2 * o_m[:, None] * A + o_a[None, :]
    o_action_grad = o_m[:, None] * action_grad_stride + o_a[None, :]

    b_raw = tl.load(p_output + o_mean + A, mask=m, other=0.0)
    b_noise = tl.load(p_noise + o, mask=m, other=0.0)
    b_action = tl.load(p_action + o, mask=m, other=0.0)
    b_action_grad = tl.load(p_action_grad + o_action_grad, mask=m, other=0.0)
    b_density_grad = tl.load(p_log_prob_grad + o_m * log_prob_grad_stride, mask=m_m, other=0.0)
    b_squashed = _tanh(b_raw)
    b_std = tl.exp((b_squashed + 1.0) * _HALF_RANGE + _LOG_STD_LOW)
    # The slope of the tanh, exact in the tails. Under the logarithm, the square is rounded before
    # it is subtracted, as in the reference.
    b_slope = (1.0 - b_action) * (1.0 + b_action)
    b_under_log = 1.0 - b_action * b_action + _EPSILON
    b_action_grad += b_density_grad[:, None] * (2.0 * b_action / b_under_log)
    b_mean_grad = b_action_grad * b_slope
    b_log_std_grad = b_mean_grad * b_std * b_noise - b_density_grad[:, None]
    b_raw_grad = b_log_std_grad * _HALF_RANGE * (1.0 - b_squashed * b_squashed)
    tl.store(p_output_grad + o_mean, b_mean_grad, mask=m)
    tl.store(p_output_grad + o_mean + A, b_raw_grad, mask=m)


def tile_of(action_size: int) -> tuple[int, int]:
    """Number of rows of a tile, and its padded width."""
    padded = triton.next_power_of_2(action_size)
    return max(1, _TILE // padded), padded


@torch.library.custom_op("torch_crl::squashed_gaussian", mutates_args=())
def squashed_gaussian_fwd(output_B2A: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel; returns action [B, A] and log-density [B]."""
    batch, action_size = noise_BA.shape
    rows, padded = tile_of(action_size)
    action_BA, log_prob_B = torch.empty_like(noise_BA), noise_BA.new_empty(batch)
    with torch.cuda.device_of(output_B2A):
        squashed_gaussian_fwd_kernel[(triton.cdiv(batch, rows),)](
            output_B2A, noise_BA,
            action_BA, log_prob_B,
            batch, action_size,
            BM=rows, BA=padded,
            num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return action_BA, log_prob_B


@squashed_gaussian_fwd.register_fake
def _(output_B2A: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(noise_BA), noise_BA.new_empty(noise_BA.shape[0])


@torch.library.custom_op("torch_crl::squashed_gaussian_backward", mutates_args=())
def squashed_gaussian_bwd(
    action_grad_BA: Tensor,
    log_prob_grad_B: Tensor,
    output_B2A: Tensor,
    noise_BA: Tensor,
    action_BA: Tensor,
) -> Tensor:
    """Launch the backward kernel; returns the gradient [B, 2 A] of the actor's output."""
    batch, action_size = noise_BA.shape
    rows, padded = tile_of(action_size)
    # The action's gradient is a slice of that of concat(state, action), so its rows have gaps.
    if action_grad_BA.stride(1) != 1:
        action_grad_BA = action_grad_BA.contiguous()
    output_grad_B2A = torch.empty_like(output_B2A)
    with torch.cuda.device_of(output_B2A):
        squashed_gaussian_bwd_kernel[(triton.cdiv(batch, rows),)](
            action_grad_BA, log_prob_grad_B, output_B2A, noise_BA, action_BA,
            output_grad_B2A,
            batch, action_size, action_grad_BA.stride(0), log_prob_grad_B.stride(0),
            BM=rows, BA=padded,
            num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return output_grad_B2A


@squashed_gaussian_bwd.register_fake
def _(action_grad_BA: Tensor, log_prob_grad_B: Tensor, output_B2A: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(output_B2A)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
    return squashed_gaussian_bwd(*upstream, *ctx.saved_tensors), None


squashed_gaussian_fwd.register_autograd(_backward, setup_context=_setup_context)


def squashed_gaussian(output_B2A: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """See `torch_crl.kernels.squashed_gaussian.squashed_gaussian`."""
    require_device(output_B2A, "squashed_gaussian")
    for name, x in (("output", output_B2A), ("noise", noise_BA)):
        if x.dtype != torch.float32 or x.device != output_B2A.device:
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}; the triton implementation takes "
                "torch.float32, all on one device: convert it, or choose "
                'implementation="reference"'
            )
    action_BA, log_prob_B = squashed_gaussian_fwd(output_B2A.contiguous(), noise_BA.contiguous())
    return action_BA, log_prob_B
