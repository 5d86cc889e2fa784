"""`paired_energies` as one forward and one backward Triton kernel. See the README.

B rows, R representation, BM rows owned by a program, BR is R padded to a power of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.infonce.reference import EPSILON
from torch_crl.kernels.launch import require_device

_EPSILON = tl.constexpr(EPSILON)
# Elements of a tile. Few per thread: there are not many in all, so latency dominates.
_TILE = 1024
NUM_WARPS = 4


@triton.jit
def _load(p_x, p_y, B, R, BM: tl.constexpr, BR: tl.constexpr):
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    o_r = tl.arange(0, BR)
    m = (o_m < B)[:, None] & (o_r < R)[None, :]
    o = o_m[:, None] * R + o_r[None, :]
    return o_m, o, m, tl.load(p_x + o, mask=m, other=0.0), tl.load(p_y + o, mask=m, other=0.0)


@triton.jit
def paired_fwd_kernel(
    # inputs
    p_x, p_y,
    # output
    p_energy,
    # sizes
    B, R,
    ENERGY: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of rows."""
    o_m, _, _, b_x, b_y = _load(p_x, p_y, B, R, BM, BR)
    b_product = b_x * b_y if ENERGY == "dot" else -(b_x - b_y) * (b_x - b_y)
    b_energy = tl.sum(b_product, 1)
    if ENERGY == "norm":
        b_energy = -tl.sqrt_rn(-b_energy + _EPSILON)
    tl.store(p_energy + o_m, b_energy, mask=o_m < B)


@triton.jit
def paired_bwd_kernel(
    # inputs
    p_upstream, p_x, p_y, p_energy,
    # output
    p_x_grad,
    # sizes
    B, R, upstream_stride,
    ENERGY: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of rows."""
    o_m, o, m, b_x, b_y = _load(p_x, p_y, B, R, BM, BR)
    b_slope = tl.load(p_upstream + o_m * upstream_stride, mask=o_m < B, other=0.0)
    if ENERGY == "norm":
        b_slope = b_slope / tl.load(p_energy + o_m, mask=o_m < B, other=-1.0)
    if ENERGY == "l2":
        b_slope = -2.0 * b_slope
    b_direction = b_y if ENERGY == "dot" else b_x - b_y
    tl.store(p_x_grad + o, b_slope[:, None] * b_direction, mask=m)


def tile_of(size: int) -> tuple[int, int]:
    """Number of matching rows of a tile, and its padded width."""
    padded = triton.next_power_of_2(size)
    return max(1, _TILE // padded), padded


@torch.library.custom_op("torch_crl::paired_energies", mutates_args=())
def _forward(x_BR: Tensor, y_BR: Tensor, energy: str) -> Tensor:
    batch, size = x_BR.shape
    rows, padded = tile_of(size)
    energy_B = x_BR.new_empty(batch)
    with torch.cuda.device_of(x_BR):
        paired_fwd_kernel[(triton.cdiv(batch, rows),)](
            x_BR, y_BR,
            energy_B,
            batch, size,
            ENERGY=energy, BM=rows, BR=padded, num_warps=NUM_WARPS,
        )  # fmt: skip
    return energy_B


@torch.library.custom_op("torch_crl::paired_energies_backward", mutates_args=())
def _gradient(
    upstream_B: Tensor, x_BR: Tensor, y_BR: Tensor, energy_B: Tensor, energy: str
) -> Tensor:
    """The gradient [B, R] of x."""
    batch, size = x_BR.shape
    rows, padded = tile_of(size)
    x_grad_BR = torch.empty_like(x_BR)
    with torch.cuda.device_of(x_BR):
        paired_bwd_kernel[(triton.cdiv(batch, rows),)](
            upstream_B, x_BR, y_BR, energy_B,
            x_grad_BR,
            batch, size, upstream_B.stride(0),
            ENERGY=energy, BM=rows, BR=padded, num_warps=NUM_WARPS,
        )  # fmt: skip
    return x_grad_BR


@_forward.register_fake
def _(x_BR: Tensor, _y_BR: Tensor, _energy: str) -> Tensor:
    return x_BR.new_empty(x_BR.shape[0])


@_gradient.register_fake
def _(_upstream_B: Tensor, x_BR: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x_BR)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_BR, y_BR, ctx.energy = inputs
    ctx.save_for_backward(x_BR, y_BR, output)


def _backward(ctx: Any, upstream_B: Tensor) -> tuple[Tensor | None, ...]:
    x_BR, y_BR, energy_B = ctx.saved_tensors
    need_x, need_y, _ = ctx.needs_input_grad
    # Every energy is symmetric.
    return (
        _gradient(upstream_B, x_BR, y_BR, energy_B, ctx.energy) if need_x else None,
        _gradient(upstream_B, y_BR, x_BR, energy_B, ctx.energy) if need_y else None,
        None,
    )


_forward.register_autograd(_backward, setup_context=_setup_context)


def paired_energies(phi_BR: Tensor, psi_BR: Tensor, *, energy: str) -> Tensor:
    """See `torch_crl.kernels.paired_energies.paired_energies`; not for `cosine`."""
    require_device(phi_BR, "paired_energies")
    energy_B: Tensor = _forward(phi_BR.contiguous(), psi_BR.contiguous(), energy)
    return energy_B
