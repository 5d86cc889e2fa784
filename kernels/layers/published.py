"""What surrounds the matmuls of layers of the block `published`. See the README.

R rows, D width, L layers, P programs with live rows, BM rows of a tile, BD is D padded to a power
of two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.dense import rounded
from torch_crl.kernels.layers.common import Kept, Options, operand, tiles_of
from torch_crl.kernels.norm_act.kernel import (
    activation_bwd,
    activation_fwd,
    normalise_bwd,
    tile_of,
)
from torch_crl.kernels.norm_act.reference import EPSILON
from torch_crl.kernels.tower.reference import BLOCK, Stack


@triton.jit(do_not_specialize=["scale"])
def layer_fwd_kernel(
    # in
    p_h, p_bias, p_ln_weight, p_ln_bias, p_block,
    # out
    p_next, p_sum, p_xhat, p_rstd,
    # sizes
    rows, width, scale,
    ENDS: tl.constexpr, NEXT: tl.constexpr, SAVE: tl.constexpr,
    RELU: tl.constexpr, TF32: tl.constexpr, EPS: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """From a matmul's result to the next one's input. ENDS: the residual sum is that input."""
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    m_m, m_d = o_m < rows, o_d < width
    m = m_m[:, None] & m_d[None, :]
    o = o_m[:, None] * width + o_d[None, :]

    b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0)
    b_h = tl.load(p_h + o, mask=m, other=0.0) + b_bias[None, :]
    b_mean = tl.sum(b_h, 1) / width
    b_centred = tl.where(m_d[None, :], b_h - b_mean[:, None], 0.0)
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / width + EPS)
    b_xhat = b_centred * b_rstd[:, None]
    b_ln_weight = tl.load(p_ln_weight + o_d, mask=m_d, other=0.0)
    b_ln_bias = tl.load(p_ln_bias + o_d, mask=m_d, other=0.0)
    b_c = activation_fwd(b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :], RELU)
    if ENDS:
        b_c = tl.load(p_block + o, mask=m, other=0.0) + scale * b_c
        tl.store(p_sum + o, b_c, mask=m)
    if NEXT:
        tl.store(p_next + o, operand(b_c, TF32).to(p_next.dtype.element_ty), mask=m)
    if SAVE:
        tl.store(p_xhat + o, b_xhat.to(p_xhat.dtype.element_ty), mask=m)
        tl.store(p_rstd + o_m, b_rstd, mask=m_m)


@triton.jit(do_not_specialize=["live", "layer", "layers", "scale", "unscale"])
def layer_bwd_kernel(
    # in
    p_dc, p_xhat, p_rstd, p_ln_weight, p_ln_bias,
    # out
    p_dh, p_partial,
    # sizes
    rows, live, width, layer, layers, scale, unscale,
    RELU: tl.constexpr, TF32: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """From the gradient of a layer's output to that of its matmul, and sums over live rows."""
    i_p = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < width
    b_ln_weight = tl.load(p_ln_weight + o_d, mask=m_d, other=0.0)
    b_ln_bias = tl.load(p_ln_bias + o_d, mask=m_d, other=0.0)
    b_dbias = tl.zeros([BD], tl.float32)
    b_dln_weight = tl.zeros([BD], tl.float32)
    b_dln_bias = tl.zeros([BD], tl.float32)
    for i_tile in range(TILES):
        o_m = (i_p * TILES + i_tile) * BM + tl.arange(0, BM)
        m_m = o_m < rows
        m = m_m[:, None] & m_d[None, :]
        o = o_m[:, None] * width + o_d[None, :]
        b_rstd = tl.load(p_rstd + o_m, mask=m_m, other=0.0)
        b_xhat = tl.load(p_xhat + o, mask=m, other=0.0).to(tl.float32)
        b_dc = scale * tl.load(p_dc + o, mask=m, other=0.0)
        b_dn = b_dc * activation_bwd(b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :], RELU)
        b_dxhat = b_dn * b_ln_weight[None, :]
        b_dh = normalise_bwd(b_dxhat, b_xhat, b_rstd, width)
        tl.store(p_dh + o, operand(b_dh, TF32).to(p_dh.dtype.element_ty), mask=m)
        m_live = (o_m < live)[:, None]
        b_dbias += tl.sum(tl.where(m_live, b_dh, 0.0), 0)
        b_dln_weight += tl.sum(tl.where(m_live, b_dn * b_xhat, 0.0), 0)
        b_dln_bias += tl.sum(tl.where(m_live, b_dn, 0.0), 0)
    # [3, L, P, D]: bias, LayerNorm's weight and bias.
    programs = tl.cdiv(live, BM * TILES)
    m_out = m_d & (i_p < programs)
    p_out = p_partial + (tl.cast(layer, tl.int64) * programs + i_p) * width + o_d
    step = tl.cast(layers, tl.int64) * programs * width
    tl.store(p_out, b_dbias * unscale, mask=m_out)
    tl.store(p_out + step, b_dln_weight * unscale, mask=m_out)
    tl.store(p_out + 2 * step, b_dln_bias * unscale, mask=m_out)


def between_matmuls(
    h_RD: Tensor,
    stack: Stack,
    layer: int,
    options: Options,
    *,
    block_RD: Tensor,
    next_RD: Tensor,
    sum_RD: Tensor,
    kept: Kept | None,
) -> None:
    """Fill the input `next_RD` of a layer's matmul from the result `h_RD` of the one before.

    Before the first layer `h_RD` is the input of all; behind the last one there is no next input.
    Between two blocks `block_RD` is the input of the one that ends, whose output goes to `sum_RD`.
    """
    if not layer:
        next_RD.copy_(rounded(h_RD, "tf32") if options.tf32 else h_RD)
        return
    before = layer - 1
    rows, width = h_RD.shape
    tile_rows, padded, warps = tile_of(width)
    xhat, rstd = (kept.values_LRD[before], kept.statistics_LR[before]) if kept else (h_RD, h_RD)
    with torch.cuda.device_of(h_RD):
        layer_fwd_kernel[(triton.cdiv(rows, tile_rows),)](
            h_RD, *(vector[before] for vector in stack[1:]), block_RD,
            next_RD, sum_RD, xhat, rstd,
            rows, width, options.branch_scale,
            ENDS=layer % BLOCK == 0, NEXT=layer < len(stack.bias_LD), SAVE=kept is not None,
            RELU=options.relu, TF32=options.tf32, EPS=EPSILON,
            BM=tile_rows, BD=padded, num_warps=warps,
        )  # fmt: skip


def behind_matmul(
    dnext_RD: Tensor,
    stack: Stack,
    layer: int,
    options: Options,
    *,
    kept: Kept,
    dsum_RD: Tensor,
    dh_RD: Tensor,
    partial: Tensor,
) -> None:
    """Fill the gradient `dh_RD` of a layer's matmul from that of the next one's input.

    Where a block ends, the gradient of its output is `dsum_RD`. Layer -1, for the input of all, has
    nothing to do. Fills the layer's sums in `partial` [3, L, P, D].
    """
    if layer < 0:
        return
    ends = layer % BLOCK == BLOCK - 1
    rows, width = dh_RD.shape
    tile_rows, padded, warps = tile_of(width)
    tiles = tiles_of(rows, tile_rows)
    with torch.cuda.device_of(dh_RD):
        layer_bwd_kernel[(triton.cdiv(rows, tile_rows * tiles),)](
            dsum_RD if ends else dnext_RD, kept.values_LRD[layer], kept.statistics_LR[layer],
            stack.ln_weight_LD[layer], stack.ln_bias_LD[layer],
            dh_RD, partial,
            rows, options.live, width, layer, partial.shape[1],
            options.branch_scale if ends else 1.0, 1.0 / options.gradient_scale,
            RELU=options.relu, TF32=options.tf32,
            BM=tile_rows, BD=padded, TILES=tiles, num_warps=warps,
        )  # fmt: skip
