"""The persistent kernels for the block `published`: each program takes its rows through all layers.

R rows, D width, L layers, P programs with live rows.
"""

import triton
import triton.language as tl

from torch_crl.kernels.norm_act.kernel import activation_bwd, activation_fwd, normalise_bwd
from torch_crl.kernels.tower.rows import SIZES, own_layer, rows_of_program


@triton.jit
def _vectors(p_bias, p_ln_weight, p_ln_bias, i_layer, o_d, D: tl.constexpr):
    """Bias, LayerNorm weight and LayerNorm bias of a layer."""
    o = i_layer * D + o_d
    return tl.load(p_bias + o), tl.load(p_ln_weight + o), tl.load(p_ln_bias + o)


@triton.jit
def normalise(b_h, b_bias, EPS: tl.constexpr, D: tl.constexpr):
    """The rows of h + bias, normalised to mean 0 and variance 1, and their 1 / std."""
    b_h += b_bias[None, :]
    b_centred = b_h - (tl.sum(b_h, 1) / D)[:, None]
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / D + EPS)
    return b_centred * b_rstd[:, None], b_rstd


# Both loops end with the matmul. The compiler starts the copy of the next layer's weights to shared
# memory right after it, so that the copy runs during the next LayerNorm. What a LayerNorm reads is
# loaded into registers one iteration ahead.


@triton.jit(do_not_specialize=[*SIZES, "branch_scale"])
def tower_fwd_kernel(
    # in
    p_x, p_weight,
    p_bias0, p_ln_weight0, p_ln_bias0,
    p_bias1, p_ln_weight1, p_ln_bias1,
    # out
    p_y, p_input, p_xhat, p_rstd,
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
    b_bias, b_ln_weight, b_ln_bias = _vectors(p_bias, p_ln_weight, p_ln_bias, 0, o_d, D)
    for i_layer in tl.range(0, depth, num_stages=STAGES):
        # What follows the matmul of the previous layer; the first layer has none before it.
        b_xhat, b_rstd = normalise(b_h, b_bias, EPS, D)
        follows = i_layer > 0
        if SAVE:
            o_before = (i_layer - 1) * rows
            b_xhat_kept = b_xhat.to(p_xhat.dtype.element_ty)
            tl.store(p_xhat + o_before * D + o, b_xhat_kept, mask=m & follows)
            tl.store(p_rstd + o_before + o_m, b_rstd, mask=m_m & follows)
        b_s = activation_fwd(b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :], RELU)
        starts_block = i_layer % BLOCK == 0
        b_x = tl.where(starts_block & follows, b_x + branch_scale * b_s, b_x)
        b_input = tl.where(starts_block, b_x, b_s).to(p_weight.dtype.element_ty)
        if SAVE:
            tl.store(p_input + i_layer * rows_live * D + o, b_input, mask=m_live)
        i_own = own_layer(i_layer, OWN)
        b_bias, b_ln_weight, b_ln_bias = _vectors(p_bias, p_ln_weight, p_ln_bias, i_own, o_d, D)
        # Loaded transposed: the matmul is with W^T, and W is [out, in].
        p_layer = p_weight + tl.cast(i_own, tl.int64) * D * D
        b_h = tl.dot(b_input, tl.load(p_layer + o_d[None, :] * D + o_d[:, None]))
    b_xhat, b_rstd = normalise(b_h, b_bias, EPS, D)
    if SAVE:
        o_before = (depth - 1) * rows
        tl.store(p_xhat + o_before * D + o, b_xhat.to(p_xhat.dtype.element_ty), mask=m)
        tl.store(p_rstd + o_before + o_m, b_rstd, mask=m_m)
    b_n = b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :]
    tl.store(p_y + o, b_x + branch_scale * activation_fwd(b_n, RELU), mask=m)


@triton.jit(do_not_specialize=[*SIZES, "branch_scale", "scale"])
def tower_bwd_kernel(
    # in
    p_dy, p_xhat, p_rstd, p_weight,
    p_ln_weight0, p_ln_bias0, p_ln_weight1, p_ln_bias1,
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
    p_ln_weight, p_ln_bias = p_ln_weight0, p_ln_bias0
    if i_group == 1:
        p_weight += tl.cast(weight_rows, tl.int64) * D
        p_ln_weight, p_ln_bias = p_ln_weight1, p_ln_bias1
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
    b_dinner = b_dx * branch_scale
    b_xhat_next = tl.load(p_xhat + (depth - 1) * rows * D + o, mask=m, other=0.0)
    b_rstd_next = tl.load(p_rstd + (depth - 1) * rows + o_m, mask=m_m, other=0.0)
    i_last = own_layer(depth - 1, OWN)
    b_ln_weight_next = tl.load(p_ln_weight + i_last * D + o_d)
    b_ln_bias_next = tl.load(p_ln_bias + i_last * D + o_d)
    for i_step in tl.range(0, depth, num_stages=STAGES):
        i_layer = depth - 1 - i_step
        b_xhat, b_rstd = b_xhat_next.to(tl.float32), b_rstd_next
        b_ln_weight, b_ln_bias = b_ln_weight_next, b_ln_bias_next
        i_next = tl.maximum(i_layer - 1, 0)
        b_xhat_next = tl.load(p_xhat + i_next * rows * D + o, mask=m, other=0.0)
        b_rstd_next = tl.load(p_rstd + i_next * rows + o_m, mask=m_m, other=0.0)
        i_next = own_layer(i_next, OWN)
        b_ln_weight_next = tl.load(p_ln_weight + i_next * D + o_d)
        b_ln_bias_next = tl.load(p_ln_bias + i_next * D + o_d)

        b_dn = b_dinner * activation_bwd(b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :], RELU)
        # [L, P, 3, D]: bias, LayerNorm's weight and bias; rows beyond `stop` add zeros.
        p_out = p_partial + (i_layer * n_partial + i_p) * 3 * D + o_d
        tl.store(p_out + D, tl.sum(b_dn * b_xhat, 0) * unscale, mask=is_live)
        tl.store(p_out + 2 * D, tl.sum(b_dn, 0) * unscale, mask=is_live)
        b_dxhat = b_dn * b_ln_weight[None, :]
        b_dh = normalise_bwd(b_dxhat, b_xhat, b_rstd, D)
        tl.store(p_out, tl.sum(b_dh, 0) * unscale, mask=is_live)
        b_dh16 = b_dh.to(p_dh.dtype.element_ty)
        tl.store(p_dh + i_layer * rows_live * D + o, b_dh16, mask=m & is_live)

        starts_block = i_layer % BLOCK == 0
        p_layer = p_weight + tl.cast(own_layer(i_layer, OWN), tl.int64) * D * D
        b_weight = tl.load(p_layer + o_d[:, None] * D + o_d[None, :])
        b_dinner = tl.dot(b_dh16, b_weight, acc=tl.where(starts_block, b_dx, 0.0))
        b_dx = tl.where(starts_block, b_dinner, b_dx)
        # The gradient of the previous block's output, which was multiplied by the branch scale.
        b_dinner *= tl.where(starts_block, branch_scale, 1.0)
    tl.store(p_dx + o, b_dx * unscale, mask=m)
