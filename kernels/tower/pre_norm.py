"""The persistent kernels for the block `pre_norm`; see `published.py`."""

import triton
import triton.language as tl

from torch_crl.kernels.norm_act.kernel import activation_bwd, activation_fwd, normalise_bwd
from torch_crl.kernels.tower.rows import SIZES, own_layer, rows_of_program


@triton.jit
def _norm_vectors(p_ln_weight, p_ln_bias, i_layer, o_d, D: tl.constexpr):
    """LayerNorm weight and bias of a layer."""
    o = i_layer * D + o_d
    return tl.load(p_ln_weight + o), tl.load(p_ln_bias + o)


# The order inside the loops is that of `published.py`: the matmul last, so that the copy of the
# next layer's weights runs during the next LayerNorm, which reads what was loaded before.


@triton.jit(do_not_specialize=[*SIZES, "branch_scale"])
def pre_norm_fwd_kernel(
    # in
    p_x, p_weight,
    p_bias0, p_ln_weight0, p_ln_bias0,
    p_bias1, p_ln_weight1, p_ln_bias1,
    # out
    p_y, p_input, p_kept, p_stats,
    # sizes
    live0, live1, frozen, depth, weight_rows, branch_scale,
    SAVE: tl.constexpr, RELU: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
    OWN: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y, and with SAVE what the backward pass reads. Grid: programs of BM rows of one group."""
    start, stop, i_group = rows_of_program(tl.program_id(0), live0, live1, frozen, BM)
    p_bias, p_ln_weight, p_ln_bias = p_bias0, p_ln_weight0, p_ln_bias0
    if i_group == 1:
        # A multiple of D, so that the compiler sees aligned pointers and copies 16 bytes at a time.
        p_weight += tl.cast(weight_rows, tl.int64) * D
        p_bias, p_ln_weight, p_ln_bias = p_bias1, p_ln_weight1, p_ln_bias1
    o_m = start + tl.arange(0, BM)
    o_d = tl.arange(0, D)
    m_m = o_m < stop
    m = m_m[:, None]
    m_live = m & (i_group < 2)
    o = o_m[:, None] * D + o_d[None, :]
    rows_live = tl.cast(live0 + live1, tl.int64)
    rows = rows_live + frozen

    b_x = tl.load(p_x + o, mask=m, other=0.0)
    b_h = tl.zeros([BM, D], tl.float32)
    b_bias = tl.zeros([D], tl.float32)
    b_ln_weight, b_ln_bias = _norm_vectors(p_ln_weight, p_ln_bias, 0, o_d, D)
    for i_layer in tl.range(0, depth, num_stages=STAGES):
        # What the matmul of the previous layer gave; the first layer has none before it.
        b_h += b_bias[None, :]
        starts_block = i_layer % BLOCK == 0
        b_x = tl.where(starts_block & (i_layer > 0), b_x + branch_scale * b_h, b_x)
        b_source = tl.where(starts_block, b_x, activation_fwd(b_h, RELU))
        b_mean = tl.sum(b_source, 1) / D
        b_centred = b_source - b_mean[:, None]
        b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / D + EPS)
        b_xhat = b_centred * b_rstd[:, None]
        b_input = (b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :]).to(p_weight.dtype.element_ty)
        if SAVE:
            b_kept = tl.where(starts_block, b_xhat, b_h).to(p_kept.dtype.element_ty)
            tl.store(p_kept + i_layer * rows * D + o, b_kept, mask=m)
            tl.store(p_stats + 2 * i_layer * rows + o_m, b_mean, mask=m_m)
            tl.store(p_stats + (2 * i_layer + 1) * rows + o_m, b_rstd, mask=m_m)
            tl.store(p_input + i_layer * rows_live * D + o, b_input, mask=m_live)
        i_own = own_layer(i_layer, OWN)
        b_bias = tl.load(p_bias + i_own * D + o_d)
        i_next = own_layer(tl.minimum(i_layer + 1, depth - 1), OWN)
        b_ln_weight, b_ln_bias = _norm_vectors(p_ln_weight, p_ln_bias, i_next, o_d, D)
        # Loaded transposed: the matmul is with W^T, and W is [out, in].
        p_layer = p_weight + tl.cast(i_own, tl.int64) * D * D
        b_h = tl.dot(b_input, tl.load(p_layer + o_d[None, :] * D + o_d[:, None]))
    tl.store(p_y + o, b_x + branch_scale * (b_h + b_bias[None, :]), mask=m)


@triton.jit
def _norm_bwd(
    b_dn, b_kept, b_mean, b_rstd, b_ln_weight, starts_block, p_sums, m_sums, unscale,
    RELU: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """The gradient of a LayerNorm's input; stores the sums for its weight and bias."""
    b_xhat = (activation_fwd(b_kept, RELU) - b_mean[:, None]) * b_rstd[:, None]
    b_xhat = tl.where(starts_block, b_kept, b_xhat)
    # Rows beyond the last one add zeros.
    o_d = tl.arange(0, D)
    tl.store(p_sums + D + o_d, tl.sum(b_dn * b_xhat, 0) * unscale, mask=m_sums)
    tl.store(p_sums + 2 * D + o_d, tl.sum(b_dn, 0) * unscale, mask=m_sums)
    b_dxhat = b_dn * b_ln_weight[None, :]
    return normalise_bwd(b_dxhat, b_xhat, b_rstd, D)


@triton.jit(do_not_specialize=[*SIZES, "branch_scale", "scale"])
def pre_norm_bwd_kernel(
    # in
    p_dy, p_kept, p_stats, p_weight,
    p_ln_weight0, p_ln_weight1,
    # out
    p_dx, p_dh, p_partial,
    # sizes
    live0, live1, frozen, depth, weight_rows, branch_scale, scale,
    RELU: tl.constexpr, BLOCK: tl.constexpr, OWN: tl.constexpr,
    D: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx, dh and each program's sums for the gradients of vectors. Grid: as forward."""
    i_p = tl.program_id(0)
    start, stop, i_group = rows_of_program(i_p, live0, live1, frozen, BM)
    p_ln_weight = p_ln_weight0
    if i_group == 1:
        p_weight += tl.cast(weight_rows, tl.int64) * D
        p_ln_weight = p_ln_weight1
    o_m = start + tl.arange(0, BM)
    o_d = tl.arange(0, D)
    m_m = o_m < stop
    m = m_m[:, None]
    is_live = i_group < 2
    o = o_m[:, None] * D + o_d[None, :]
    rows_live = tl.cast(live0 + live1, tl.int64)
    rows = rows_live + frozen
    n_partial = tl.cast(tl.cdiv(live0, BM) + tl.cdiv(live1, BM), tl.int64)
    unscale = 1.0 / scale

    b_dx = tl.load(p_dy + o, mask=m, other=0.0) * scale
    # Behind the last layer there is no LayerNorm; zeros stand for its gradient and values.
    b_dn = tl.zeros([BM, D], tl.float32)
    b_kept_next = tl.zeros([BM, D], p_kept.dtype.element_ty)
    b_mean = tl.zeros([BM], tl.float32)
    b_rstd = tl.zeros([BM], tl.float32)
    b_ln_weight = tl.zeros([D], tl.float32)
    for i_step in tl.range(0, depth, num_stages=STAGES):
        i_layer = depth - 1 - i_step
        # The LayerNorm between this layer and the next one.
        ends_block = i_layer % BLOCK == BLOCK - 1
        b_kept = b_kept_next.to(tl.float32)
        # [L, P, 3, D]: bias, LayerNorm's weight and bias.
        p_sums = p_partial + (i_layer * n_partial + i_p) * 3 * D
        b_dsource = _norm_bwd(
            b_dn, b_kept, b_mean, b_rstd, b_ln_weight, ends_block,
            p_sums + n_partial * 3 * D, is_live & (i_step > 0), unscale, RELU, D,
        )  # fmt: skip
        b_dx = tl.where(ends_block, b_dx + b_dsource, b_dx)
        b_dh = tl.where(ends_block, branch_scale * b_dx, b_dsource * activation_bwd(b_kept, RELU))
        tl.store(p_sums + o_d, tl.sum(b_dh, 0) * unscale, mask=is_live)
        b_dh16 = b_dh.to(p_dh.dtype.element_ty)
        tl.store(p_dh + i_layer * rows_live * D + o, b_dh16, mask=m & is_live)

        b_kept_next = tl.load(p_kept + i_layer * rows * D + o, mask=m, other=0.0)
        b_mean = tl.load(p_stats + 2 * i_layer * rows + o_m, mask=m_m, other=0.0)
        b_rstd = tl.load(p_stats + (2 * i_layer + 1) * rows + o_m, mask=m_m, other=0.0)
        i_own = own_layer(i_layer, OWN)
        b_ln_weight = tl.load(p_ln_weight + i_own * D + o_d)
        p_layer = p_weight + tl.cast(i_own, tl.int64) * D * D
        b_dn = tl.dot(b_dh16, tl.load(p_layer + o_d[:, None] * D + o_d[None, :]))
    b_dsource = _norm_bwd(
        b_dn, b_kept_next.to(tl.float32), b_mean, b_rstd, b_ln_weight, True,
        p_partial + i_p * 3 * D, is_live, unscale, RELU, D,
    )  # fmt: skip
    tl.store(p_dx + o, (b_dx + b_dsource) * unscale, mask=m)
