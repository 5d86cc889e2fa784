"""`norm_act` as one forward and one backward Triton kernel. B rows, D width, P programs."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.launch import require_device
from torch_crl.kernels.norm_act.reference import EPSILON

# Elements of a tile; larger tiles spill registers in the backward kernel with 8 warps.
_TILE = 4096
_MOST_ROWS = 16


@triton.jit
def activation_fwd(n, RELU: tl.constexpr):
    """swish(n) = n sigmoid(n), or relu(n)."""
    if RELU:
        # Not tl.maximum, which turns NaN into 0.
        return tl.where(n < 0.0, 0.0, n)
    return n * tl.sigmoid(n)


@triton.jit
def activation_bwd(n, RELU: tl.constexpr):
    """The derivative: sigmoid(n) (1 + n (1 - sigmoid(n))), or 1 where n > 0."""
    if RELU:
        return tl.where(n > 0.0, 1.0, 0.0)
    sigmoid = tl.sigmoid(n)
    return sigmoid * (1.0 + n * (1.0 - sigmoid))


@triton.jit
def normalise_bwd(b_dxhat, b_xhat, b_rstd, width):
    """From the gradient of normalised rows to that of the rows before."""
    b_m1 = tl.sum(b_dxhat, 1) / width
    b_m2 = tl.sum(b_dxhat * b_xhat, 1) / width
    return b_rstd[:, None] * (b_dxhat - b_m1[:, None] - b_xhat * b_m2[:, None])


@triton.jit(do_not_specialize=["scale"])
def norm_act_fwd_kernel(
    # in
    p_x, p_weight, p_bias, p_residual,
    # out
    p_y, p_mean, p_rstd,
    # sizes
    rows, width, scale,
    RELU: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    m_m, m_d = o_m < rows, o_d < width
    m = m_m[:, None] & m_d[None, :]
    o = o_m[:, None] * width + o_d[None, :]

    b_x = tl.load(p_x + o, mask=m, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_x, 1) / width
    b_centred = tl.where(m_d[None, :], b_x - b_mean[:, None], 0.0)
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / width + EPS)
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_n = b_centred * b_rstd[:, None] * b_weight[None, :] + b_bias[None, :]
    b_y = activation_fwd(b_n, RELU)
    if RESIDUAL:
        b_y = tl.load(p_residual + o, mask=m, other=0.0).to(tl.float32) + scale * b_y
    tl.store(p_y + o, b_y.to(p_y.dtype.element_ty), mask=m)
    tl.store(p_mean + o_m, b_mean, mask=m_m)
    tl.store(p_rstd + o_m, b_rstd, mask=m_m)


@triton.jit(do_not_specialize=["scale"])
def norm_act_bwd_kernel(
    # in
    p_dy, p_x, p_mean, p_rstd, p_weight, p_bias,
    # out
    p_dx, p_partial,
    # sizes
    rows, width, scale,
    RELU: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < width
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_dweight = tl.zeros([BD], tl.float32)
    b_dbias = tl.zeros([BD], tl.float32)
    for i_tile in range(TILES):
        o_m = (i_p * TILES + i_tile) * BM + tl.arange(0, BM)
        m_m = o_m < rows
        m = m_m[:, None] & m_d[None, :]
        o = o_m[:, None] * width + o_d[None, :]
        b_mean = tl.load(p_mean + o_m, mask=m_m, other=0.0)
        b_rstd = tl.load(p_rstd + o_m, mask=m_m, other=0.0)
        b_x = tl.load(p_x + o, mask=m, other=0.0).to(tl.float32)
        b_dy = tl.load(p_dy + o, mask=m, other=0.0).to(tl.float32)
        b_xhat = (b_x - b_mean[:, None]) * b_rstd[:, None]
        b_dn = scale * b_dy * activation_bwd(b_xhat * b_weight[None, :] + b_bias[None, :], RELU)
        b_dxhat = b_dn * b_weight[None, :]
        b_dx = normalise_bwd(b_dxhat, b_xhat, b_rstd, width)
        tl.store(p_dx + o, b_dx.to(p_dx.dtype.element_ty), mask=m)
        b_dweight += tl.sum(b_dn * b_xhat, 0)
        b_dbias += tl.sum(b_dn, 0)
    p_out = p_partial + i_p * width + o_d
    tl.store(p_out, b_dweight, mask=m_d)
    tl.store(p_out + tl.num_programs(0).to(tl.int64) * width, b_dbias, mask=m_d)


def tile_of(width: int) -> tuple[int, int, int]:
    """Number of rows of a tile, its padded width, and number of warps."""
    padded = triton.next_power_of_2(width)
    rows = max(1, min(_MOST_ROWS, _TILE // padded))
    return rows, padded, min(8, max(1, rows * padded // 512))


def tiles_of(rows: int, tile_rows: int) -> int:
    """Number of tiles per program of the backward; few programs make few partial sums."""
    return max(1, triton.cdiv(rows, tile_rows * 512))


@torch.library.custom_op("torch_crl::norm_act_forward", mutates_args=())
def norm_act_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    activation: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, D], and mean and reciprocal standard deviation [B] of the rows of x."""
    rows, width = x.shape
    tile_rows, padded, warps = tile_of(width)
    y = torch.empty_like(x if residual is None else residual)
    mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    with torch.cuda.device_of(x):
        norm_act_fwd_kernel[(triton.cdiv(rows, tile_rows),)](
            x, weight, bias, x if residual is None else residual,
            y, mean, rstd,
            rows, width, scale,
            RELU=activation == "relu", RESIDUAL=residual is not None, EPS=EPSILON,
            BM=tile_rows, BD=padded, num_warps=warps,
        )  # fmt: skip
    return y, mean, rstd


@norm_act_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    activation: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.new_empty(x.shape[0], dtype=torch.float32)
    return torch.empty_like(x if residual is None else residual), rows, torch.empty_like(rows)


@torch.library.custom_op("torch_crl::norm_act_backward", mutates_args=())
def norm_act_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """dx [B, D], and the gradients of weight and bias as [2, D]."""
    rows, width = x.shape
    tile_rows, padded, warps = tile_of(width)
    tiles = tiles_of(rows, tile_rows)
    programs = triton.cdiv(rows, tile_rows * tiles)
    dx = torch.empty_like(x)
    partial = torch.empty(2, programs, width, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        norm_act_bwd_kernel[(programs,)](
            dy, x, mean, rstd, weight, bias,
            dx, partial,
            rows, width, scale,
            RELU=activation == "relu", BM=tile_rows, BD=padded, TILES=tiles, num_warps=warps,
        )  # fmt: skip
    return dx, partial.sum(1)


@norm_act_backward.register_fake
def _(dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(2, x.shape[1], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, ctx.activation, scale = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, mean, rstd, weight, bias)
    ctx.residual = residual is not None
    ctx.scale = scale if ctx.residual else 1.0
    # Otherwise autograd would make tensors of zeros as the gradients of the statistics.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, mean, rstd, weight, bias = ctx.saved_tensors
    dy = dy.contiguous()
    options = (ctx.activation, ctx.scale)
    dx, (dweight, dbias) = norm_act_backward(dy, x, mean, rstd, weight, bias, *options)
    dweight, dbias = dweight.to(weight.dtype), dbias.to(bias.dtype)
    return dx, dweight, dbias, dy if ctx.residual else None, None, None


norm_act_forward.register_autograd(_backward, setup_context=_setup_context)


def norm_act(
    x_BD: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    residual_BD: Tensor | None,
    *,
    activation: str,
    scale: float,
) -> Tensor:
    """See `torch_crl.kernels.norm_act.norm_act`."""
    require_device(x_BD, "norm_act")
    residual = None if residual_BD is None else residual_BD.contiguous()
    parameters = weight_D.contiguous(), bias_D.contiguous()
    return norm_act_forward(x_BD.contiguous(), *parameters, residual, activation, scale)[0]
