"""What surrounds the matmuls of layers of the block `pre_norm`; see `published.py` for the letters.

There the LayerNorm stands before each matmul, so a kernel has the end of one layer and the
beginning of the next.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

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
def pre_norm_fwd_kernel(
    # in
    p_h, p_bias, p_block, p_ln_weight, p_ln_bias,
    # out
    p_sum, p_next, p_values, p_mean, p_rstd,
    # sizes
    rows, width, scale,
    FIRST: tl.constexpr, STARTS: tl.constexpr, LAST: tl.constexpr, SAVE: tl.constexpr,
    RELU: tl.constexpr, TF32: tl.constexpr, EPS: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """From a matmul's result to the next one's input.

    STARTS: a block starts there, whose input is the residual sum. FIRST: h is that sum. LAST: there
    is no next matmul.
    """
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    m_m, m_d = o_m < rows, o_d < width
    m = m_m[:, None] & m_d[None, :]
    o = o_m[:, None] * width + o_d[None, :]

    b_h = tl.load(p_h + o, mask=m, other=0.0)
    if not FIRST:
        b_h += tl.load(p_bias + o_d, mask=m_d, other=0.0)[None, :]
        if STARTS:
            b_h = tl.load(p_block + o, mask=m, other=0.0) + scale * b_h
            tl.store(p_sum + o, b_h, mask=m)
    if not LAST:
        b_source = b_h if STARTS else activation_fwd(b_h, RELU)
        b_mean = tl.sum(b_source, 1) / width
        b_centred = tl.where(m_d[None, :], b_source - b_mean[:, None], 0.0)
        b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / width + EPS)
        b_xhat = b_centred * b_rstd[:, None]
        b_ln_weight = tl.load(p_ln_weight + o_d, mask=m_d, other=0.0)
        b_ln_bias = tl.load(p_ln_bias + o_d, mask=m_d, other=0.0)
        b_n = b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :]
        tl.store(p_next + o, operand(b_n, TF32).to(p_next.dtype.element_ty), mask=m)
        if SAVE:
            b_values = b_xhat if STARTS else b_h
            tl.store(p_values + o, b_values.to(p_values.dtype.element_ty), mask=m)
            tl.store(p_mean + o_m, b_mean, mask=m_m)
            tl.store(p_rstd + o_m, b_rstd, mask=m_m)


@triton.jit(do_not_specialize=["live", "layer", "layers", "scale", "unscale"])
def pre_norm_bwd_kernel(
    # in
    p_dn, p_values, p_mean, p_rstd, p_ln_weight,
    # in and out
    p_dsum,
    # out
    p_dh, p_partial,
    # sizes
    rows, live, width, layer, layers, scale, unscale,
    FIRST: tl.constexpr, ENDS: tl.constexpr, LAST: tl.constexpr,
    RELU: tl.constexpr, TF32: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """From the gradient of the next matmul's input to that of a layer's result, and sums.

    ENDS: the layer ends a block, and dsum is the gradient of its output. LAST: no matmul follows.
    FIRST: there is no layer, and dsum is the gradient of the input.
    """
    i_p = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BD)
    m_d = o_d < width
    b_dbias = tl.zeros([BD], tl.float32)
    b_dln_weight = tl.zeros([BD], tl.float32)
    b_dln_bias = tl.zeros([BD], tl.float32)
    for i_tile in range(TILES):
        o_m = (i_p * TILES + i_tile) * BM + tl.arange(0, BM)
        m_m = o_m < rows
        m = m_m[:, None] & m_d[None, :]
        m_live = (o_m < live)[:, None]
        o = o_m[:, None] * width + o_d[None, :]
        if ENDS:
            b_d = tl.load(p_dsum + o, mask=m, other=0.0)
        if not LAST:
            b_mean = tl.load(p_mean + o_m, mask=m_m, other=0.0)
            b_rstd = tl.load(p_rstd + o_m, mask=m_m, other=0.0)
            b_values = tl.load(p_values + o, mask=m, other=0.0).to(tl.float32)
            if ENDS:
                b_xhat = b_values
            else:
                b_xhat = (activation_fwd(b_values, RELU) - b_mean[:, None]) * b_rstd[:, None]
            b_dn = tl.load(p_dn + o, mask=m, other=0.0)
            b_dln_weight += tl.sum(tl.where(m_live, b_dn * b_xhat, 0.0), 0)
            b_dln_bias += tl.sum(tl.where(m_live, b_dn, 0.0), 0)
            b_ln_weight = tl.load(p_ln_weight + o_d, mask=m_d, other=0.0)
            b_dxhat = b_dn * b_ln_weight[None, :]
            b_dsource = normalise_bwd(b_dxhat, b_xhat, b_rstd, width)
            if ENDS:
                b_d += b_dsource
                tl.store(p_dsum + o, b_d, mask=m)
            else:
                b_d = b_dsource * activation_bwd(b_values, RELU)
        if not FIRST:
            b_dh = scale * b_d
            tl.store(p_dh + o, operand(b_dh, TF32).to(p_dh.dtype.element_ty), mask=m)
            b_dbias += tl.sum(tl.where(m_live, b_dh, 0.0), 0)
    # [3, L, P, D]: bias, LayerNorm's weight and bias.
    programs = tl.cdiv(live, BM * TILES)
    m_out = m_d & (i_p < programs)
    p_out = p_partial + (tl.cast(layer, tl.int64) * programs + i_p) * width + o_d
    step = tl.cast(layers, tl.int64) * programs * width
    if not FIRST:
        tl.store(p_out, b_dbias * unscale, mask=m_out)
    if not LAST:
        p_next = p_out + tl.cast(programs, tl.int64) * width
        tl.store(p_next + step, b_dln_weight * unscale, mask=m_out)
        tl.store(p_next + 2 * step, b_dln_bias * unscale, mask=m_out)


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
    """As that of `published.py`."""
    rows, width = h_RD.shape
    tile_rows, padded, warps = tile_of(width)
    layers = len(stack.bias_LD)
    last = layer == layers
    # Behind the last layer there is no LayerNorm to keep anything of.
    saved = None if last else kept
    values, mean, rstd = (
        (saved.values_LRD[layer], *saved.statistics_LR[layer]) if saved else [h_RD] * 3
    )
    with torch.cuda.device_of(h_RD):
        pre_norm_fwd_kernel[(triton.cdiv(rows, tile_rows),)](
            h_RD, stack.bias_LD[max(layer - 1, 0)], block_RD,
            *(vector[min(layer, layers - 1)] for vector in stack[2:]),
            sum_RD, next_RD, values, mean, rstd,
            rows, width, options.branch_scale,
            FIRST=layer == 0, STARTS=layer % BLOCK == 0, LAST=last, SAVE=saved is not None,
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
    """As that of `published.py`, and where a block starts its gradient is added to `dsum_RD`.

    Fills the sums of the layer's bias and of the next layer's LayerNorm. Layer -1 stands for the
    input of all.
    """
    rows, width = dh_RD.shape
    tile_rows, padded, warps = tile_of(width)
    tiles = tiles_of(rows, tile_rows)
    layers = len(stack.bias_LD)
    following = min(layer + 1, layers - 1)
    ends = layer % BLOCK == BLOCK - 1
    with torch.cuda.device_of(dh_RD):
        pre_norm_bwd_kernel[(triton.cdiv(rows, tile_rows * tiles),)](
            dnext_RD, kept.values_LRD[following], *kept.statistics_LR[following],
            stack.ln_weight_LD[following],
            dsum_RD, dh_RD, partial,
            rows, options.live, width, layer, layers,
            options.branch_scale if ends else 1.0, 1.0 / options.gradient_scale,
            FIRST=layer < 0, ENDS=ends, LAST=layer == layers - 1,
            RELU=options.relu, TF32=options.tf32,
            BM=tile_rows, BD=padded, TILES=tiles, num_warps=warps,
        )  # fmt: skip
