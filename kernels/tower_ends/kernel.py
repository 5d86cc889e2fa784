"""First and last layers of one or two towers as Triton kernels, for all of their rows at once.

Groups of rows are those of `kernel.py`: live rows of both towers, and frozen rows, which pass
through the first tower. Everything is fp32. R rows, I inputs, D width, O outputs, P programs with
live rows.
"""

import triton
import triton.language as tl

from torch_crl.kernels.norm_act.kernel import activation_bwd, activation_fwd, normalise_bwd
from torch_crl.kernels.tower.published import normalise
from torch_crl.kernels.tower.rows import rows_of_program, sum_over_programs

# The fastest on an H100 of those that are as exact as fp32 (benchmarks/LOG.md): forward each factor
# is a sum of two TF32 numbers, and the backward pass does without the tensor cores.
_FORWARD, _BACKWARD = tl.constexpr("tf32x3"), tl.constexpr("ieee")
_SIZES = ["live0", "live1", "frozen", "inputs0", "inputs1", "outputs0", "outputs1"]


@triton.jit(do_not_specialize=_SIZES)
def embed_fwd_kernel(
    # in
    p_x0, p_x1, p_frozen,
    p_weight0, p_bias0, p_ln_weight0, p_ln_bias0,
    p_weight1, p_bias1, p_ln_weight1, p_ln_bias1,
    # out
    p_y, p_xhat, p_rstd,
    # sizes
    live0, live1, frozen, inputs0, inputs1,
    LINEAR: tl.constexpr, SAVE: tl.constexpr, RELU: tl.constexpr, EPS: tl.constexpr,
    D: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [R, D] = act(LN(x W^T + b)), or LINEAR: x W^T + b. Grid: blocks of rows."""
    start, stop, i_group = rows_of_program(tl.program_id(0), live0, live1, frozen, BM)
    p_x, inputs, first = p_x0, inputs0, 0
    p_weight, p_bias, p_ln_weight, p_ln_bias = p_weight0, p_bias0, p_ln_weight0, p_ln_bias0
    if i_group == 1:
        p_x, inputs, first = p_x1, inputs1, live0
        p_weight, p_bias, p_ln_weight, p_ln_bias = p_weight1, p_bias1, p_ln_weight1, p_ln_bias1
    elif i_group == 2:
        p_x, first = p_frozen, live0 + live1
    o_m = start + tl.arange(0, BM)
    o_d = tl.arange(0, D)
    m_m = o_m < stop
    m = m_m[:, None]
    o_x = (o_m - first)[:, None] * inputs
    b_h = tl.zeros([BM, D], tl.float32)
    for start_k in range(0, inputs, BK):
        o_k = start_k + tl.arange(0, BK)
        m_k = o_k < inputs
        b_x = tl.load(p_x + o_x + o_k[None, :], mask=m & m_k[None, :], other=0.0)
        p_columns = p_weight + o_d[None, :] * inputs + o_k[:, None]
        b_weight = tl.load(p_columns, mask=m_k[:, None], other=0.0)
        b_h = tl.dot(b_x, b_weight, b_h, input_precision=_FORWARD)
    o = o_m[:, None] * D + o_d[None, :]
    if LINEAR:
        tl.store(p_y + o, b_h + tl.load(p_bias + o_d)[None, :], mask=m)
    else:
        b_xhat, b_rstd = normalise(b_h, tl.load(p_bias + o_d), EPS, D)
        b_n = b_xhat * tl.load(p_ln_weight + o_d)[None, :] + tl.load(p_ln_bias + o_d)[None, :]
        tl.store(p_y + o, activation_fwd(b_n, RELU), mask=m)
        if SAVE:
            tl.store(p_xhat + o, b_xhat, mask=m)
            tl.store(p_rstd + o_m, b_rstd, mask=m_m)


@triton.jit(do_not_specialize=_SIZES)
def embed_bwd_kernel(
    # in
    p_dy, p_xhat, p_rstd, p_ln_weight0, p_ln_bias0, p_ln_weight1, p_ln_bias1,
    # out
    p_dh, p_partial,
    # sizes
    live0, live1, frozen,
    RELU: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """dh [R, D] behind the matmul, and three sums over live rows [P, 3, D]. Grid: rows."""
    i_p = tl.program_id(0)
    start, stop, i_group = rows_of_program(i_p, live0, live1, frozen, BM)
    p_ln_weight, p_ln_bias = p_ln_weight0, p_ln_bias0
    if i_group == 1:
        p_ln_weight, p_ln_bias = p_ln_weight1, p_ln_bias1
    o_m = start + tl.arange(0, BM)
    o_d = tl.arange(0, D)
    m_m = o_m < stop
    m = m_m[:, None]
    o = o_m[:, None] * D + o_d[None, :]
    b_xhat = tl.load(p_xhat + o, mask=m, other=0.0)
    b_rstd = tl.load(p_rstd + o_m, mask=m_m, other=0.0)
    b_ln_weight = tl.load(p_ln_weight + o_d)
    b_n = b_xhat * b_ln_weight[None, :] + tl.load(p_ln_bias + o_d)[None, :]
    b_dn = tl.load(p_dy + o, mask=m, other=0.0) * activation_bwd(b_n, RELU)
    b_dxhat = b_dn * b_ln_weight[None, :]
    b_dh = normalise_bwd(b_dxhat, b_xhat, b_rstd, D)
    tl.store(p_dh + o, b_dh, mask=m)
    # In the order of `tower_bwd_kernel`: bias, LayerNorm's weight and bias.
    p_out = p_partial + i_p * 3 * D + o_d
    is_live = i_group < 2
    tl.store(p_out, tl.sum(b_dh, 0), mask=is_live)
    tl.store(p_out + D, tl.sum(b_dn * b_xhat, 0), mask=is_live)
    tl.store(p_out + 2 * D, tl.sum(b_dn, 0), mask=is_live)


@triton.jit
def _weight_gradient(
    p_dy, p_x, p_norm, p_dweight, p_dbias, rows, N, K, i_n, i_k,
    BIAS: tl.constexpr, NORM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    # A tile [BN, BK] of dW [N, K] = dy^T x, and in the first column of tiles db [N] = sum dy.
    # NORM: x goes through the LayerNorm of `p_norm` first: mean and 1 / std of rows, weight, bias.
    o_n, o_k = i_n * BN + tl.arange(0, BN), i_k * BK + tl.arange(0, BK)
    m_n, m_k = o_n < N, o_k < K
    b_dweight = tl.zeros([BN, BK], tl.float32)
    b_dbias = tl.zeros([BN], tl.float32)
    for start in range(0, rows, BR):
        o_r = start + tl.arange(0, BR)
        m_r = (o_r < rows)[:, None]
        p_dy_tile = p_dy + o_r[:, None] * N + o_n[None, :]
        b_dy = tl.load(p_dy_tile, mask=m_r & m_n[None, :], other=0.0)
        p_x_tile = p_x + o_r[:, None] * K + o_k[None, :]
        b_x = tl.load(p_x_tile, mask=m_r & m_k[None, :], other=0.0)
        if NORM:
            p_mean, p_rstd, p_ln_weight, p_ln_bias = p_norm
            b_x = _normalised(b_x, p_mean, p_rstd, o_r, o_r < rows)
            b_x = b_x * tl.load(p_ln_weight + o_k)[None, :] + tl.load(p_ln_bias + o_k)[None, :]
        b_dweight = tl.dot(tl.trans(b_dy), b_x, b_dweight, input_precision=_BACKWARD)
        b_dbias += tl.sum(b_dy, 0)
    p_out = p_dweight + o_n[:, None] * K + o_k[None, :]
    tl.store(p_out, b_dweight, mask=m_n[:, None] & m_k[None, :])
    if BIAS:
        tl.store(p_dbias + o_n, b_dbias, mask=m_n & (i_k == 0))


@triton.jit
def _normalised(b_x, p_mean, p_rstd, o_r, m_r):
    # Rows, or parts of them, with the statistics of whole rows.
    b_mean = tl.load(p_mean + o_r, mask=m_r, other=0.0)
    b_rstd = tl.load(p_rstd + o_r, mask=m_r, other=0.0)
    return (b_x - b_mean[:, None]) * b_rstd[:, None]


@triton.jit
def _norm_gradients(
    p_dy, p_x, p_weight, p_mean, p_rstd, p_out, rows, outputs, i_k,
    D: tl.constexpr, BK: tl.constexpr, BO: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    # BK entries of the gradients [2, D] of a LayerNorm's weight and bias, whose output W follows.
    o_k = i_k * BK + tl.arange(0, BK)
    b_dweight = tl.zeros([BK], tl.float32)
    b_dbias = tl.zeros([BK], tl.float32)
    for start in range(0, rows, BR):
        o_r = start + tl.arange(0, BR)
        m_r = o_r < rows
        b_dn = tl.zeros([BR, BK], tl.float32)
        for start_o in range(0, outputs, BO):
            o_o = start_o + tl.arange(0, BO)
            m_o = o_o < outputs
            p_dy_tile = p_dy + o_r[:, None] * outputs + o_o[None, :]
            b_dy = tl.load(p_dy_tile, mask=m_r[:, None] & m_o[None, :], other=0.0)
            p_rows = p_weight + o_o[:, None] * D + o_k[None, :]
            b_weight = tl.load(p_rows, mask=m_o[:, None], other=0.0)
            b_dn = tl.dot(b_dy, b_weight, b_dn, input_precision=_BACKWARD)
        b_x = tl.load(p_x + o_r[:, None] * D + o_k[None, :], mask=m_r[:, None], other=0.0)
        b_dweight += tl.sum(b_dn * _normalised(b_x, p_mean, p_rstd, o_r, m_r), 0)
        b_dbias += tl.sum(b_dn, 0)
    tl.store(p_out + o_k, b_dweight)
    tl.store(p_out + D + o_k, b_dbias)


@triton.jit(do_not_specialize=_SIZES)
def embed_gradients_kernel(
    # in
    p_dh, p_x0, p_x1, p_partial,
    # out
    p_dweight0, p_dweight1, p_dvectors,
    # sizes
    live0, live1, inputs0, inputs1, programs0, programs1,
    LINEAR: tl.constexpr,
    D: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """dW [D, I] and the sums [3, D] of each tower; LINEAR: of the sums the first, that of the bias.

    Grid: tiles of the first and of the second dW, then six sums.
    """
    i_p = tl.program_id(0)
    columns0, columns1 = tl.cdiv(inputs0, BK), tl.cdiv(inputs1, BK)
    tiles0, tiles1 = (D // BN) * columns0, (D // BN) * columns1
    if i_p < tiles0:
        _weight_gradient(
            p_dh, p_x0, (), p_dweight0, p_dvectors, live0, D, inputs0,
            i_p // columns0, i_p % columns0, LINEAR, False, BN, BK, BR,
        )  # fmt: skip
    elif i_p < tiles0 + tiles1:
        i_tile = i_p - tiles0
        _weight_gradient(
            p_dh + tl.cast(live0, tl.int64) * D, p_x1, (),
            p_dweight1, p_dvectors + 3 * D, live1, D, inputs1,
            i_tile // columns1, i_tile % columns1, LINEAR, False, BN, BK, BR,
        )  # fmt: skip
    else:
        i_sum = i_p - tiles0 - tiles1
        first, count = 0, programs0
        if i_sum >= 3:
            first, count = programs0, programs1
        sum_over_programs(p_partial, p_dvectors + i_sum * D, first, count, i_sum % 3, D, BP)


@triton.jit(do_not_specialize=_SIZES)
def head_fwd_kernel(
    # in
    p_x, p_weight0, p_bias0, p_weight1, p_bias1,
    p_ln_weight0, p_ln_bias0, p_ln_weight1, p_ln_bias1,
    # out
    p_y0, p_y1, p_frozen, p_mean, p_rstd,
    # sizes
    live0, live1, frozen, outputs0, outputs1,
    NORM: tl.constexpr, EPS: tl.constexpr,
    D: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = x W^T + b of every group; NORM: of LN(x). Grid: blocks of rows, and of the outputs of
    the wider tower.
    """
    start, stop, i_group = rows_of_program(tl.program_id(0), live0, live1, frozen, BM)
    p_weight, p_bias, outputs, p_y, first = p_weight0, p_bias0, outputs0, p_y0, 0
    p_ln_weight, p_ln_bias = p_ln_weight0, p_ln_bias0
    if i_group == 1:
        p_weight, p_bias, outputs, p_y, first = p_weight1, p_bias1, outputs1, p_y1, live0
        p_ln_weight, p_ln_bias = p_ln_weight1, p_ln_bias1
    elif i_group == 2:
        p_y, first = p_frozen, live0 + live1
    o_m = start + tl.arange(0, BM)
    o_o = tl.program_id(1) * BO + tl.arange(0, BO)
    m_m, m_o = o_m < stop, o_o < outputs
    if NORM:
        o_d = tl.arange(0, D)
        b_rows = tl.load(p_x + o_m[:, None] * D + o_d[None, :], mask=m_m[:, None], other=0.0)
        b_mean = tl.sum(b_rows, 1) / D
        b_centred = b_rows - b_mean[:, None]
        b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / D + EPS)
        m_out = m_m & (tl.program_id(1) == 0)
        tl.store(p_mean + o_m, b_mean, mask=m_out)
        tl.store(p_rstd + o_m, b_rstd, mask=m_out)
    b_y = tl.zeros([BM, BO], tl.float32)
    for start_k in tl.static_range(0, D, BK):
        o_k = start_k + tl.arange(0, BK)
        b_x = tl.load(p_x + o_m[:, None] * D + o_k[None, :], mask=m_m[:, None], other=0.0)
        if NORM:
            b_x = (b_x - b_mean[:, None]) * b_rstd[:, None]
            b_x = b_x * tl.load(p_ln_weight + o_k)[None, :] + tl.load(p_ln_bias + o_k)[None, :]
        p_columns = p_weight + o_o[None, :] * D + o_k[:, None]
        b_weight = tl.load(p_columns, mask=m_o[None, :], other=0.0)
        b_y = tl.dot(b_x, b_weight, b_y, input_precision=_FORWARD)
    b_y += tl.load(p_bias + o_o, mask=m_o, other=0.0)[None, :]
    p_rows = p_y + (o_m - first)[:, None] * outputs + o_o[None, :]
    tl.store(p_rows, b_y, mask=m_m[:, None] & m_o[None, :])


@triton.jit(do_not_specialize=[*_SIZES, "row_programs"])
def head_bwd_kernel(
    # in
    p_dy0, p_dy1, p_frozen, p_x, p_weight0, p_weight1,
    p_ln_weight0, p_ln_bias0, p_ln_weight1, p_ln_bias1, p_mean, p_rstd,
    # out
    p_dx, p_dweight0, p_dbias0, p_dweight1, p_dbias1, p_dnorm,
    # sizes
    live0, live1, frozen, outputs0, outputs1, row_programs,
    NORM: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BO: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """dx [R, D] of all rows, dW [O, D] and db [O] of each tower; NORM: of each LN dnorm [2, D].

    Grid: blocks of rows, tiles of the first and of the second dW, and of the two dnorm.
    """
    i_p = tl.program_id(0)
    columns: tl.constexpr = D // BK
    tiles0, tiles1 = tl.cdiv(outputs0, BN) * columns, tl.cdiv(outputs1, BN) * columns
    first1 = tl.cast(live0, tl.int64)
    if i_p < row_programs:
        start, stop, i_group = rows_of_program(i_p, live0, live1, frozen, BM)
        p_dy, p_weight, p_ln_weight, outputs, first = p_dy0, p_weight0, p_ln_weight0, outputs0, 0
        if i_group == 1:
            p_dy, p_weight, p_ln_weight = p_dy1, p_weight1, p_ln_weight1
            outputs, first = outputs1, live0
        elif i_group == 2:
            p_dy, first = p_frozen, live0 + live1
        o_m = start + tl.arange(0, BM)
        o_d = tl.arange(0, D)
        m_m = (o_m < stop)[:, None]
        o_dy = (o_m - first)[:, None] * outputs
        o = o_m[:, None] * D + o_d[None, :]
        b_dx = tl.zeros([BM, D], tl.float32)
        for start_o in range(0, outputs, BO):
            o_o = start_o + tl.arange(0, BO)
            m_o = o_o < outputs
            b_dy = tl.load(p_dy + o_dy + o_o[None, :], mask=m_m & m_o[None, :], other=0.0)
            p_rows = p_weight + o_o[:, None] * D + o_d[None, :]
            b_weight = tl.load(p_rows, mask=m_o[:, None], other=0.0)
            b_dx = tl.dot(b_dy, b_weight, b_dx, input_precision=_BACKWARD)
        if NORM:
            b_x = tl.load(p_x + o, mask=m_m, other=0.0)
            b_xhat = _normalised(b_x, p_mean, p_rstd, o_m, o_m < stop)
            b_dxhat = b_dx * tl.load(p_ln_weight + o_d)[None, :]
            b_rstd = tl.load(p_rstd + o_m, mask=o_m < stop, other=0.0)
            b_dx = normalise_bwd(b_dxhat, b_xhat, b_rstd, D)
        tl.store(p_dx + o, b_dx, mask=m_m)
    elif i_p < row_programs + tiles0:
        i_tile = i_p - row_programs
        _weight_gradient(
            p_dy0, p_x, (p_mean, p_rstd, p_ln_weight0, p_ln_bias0),
            p_dweight0, p_dbias0, live0, outputs0, D,
            i_tile // columns, i_tile % columns, True, NORM, BN, BK, BR,
        )  # fmt: skip
    elif i_p < row_programs + tiles0 + tiles1:
        i_tile = i_p - row_programs - tiles0
        _weight_gradient(
            p_dy1, p_x + first1 * D, (p_mean + first1, p_rstd + first1, p_ln_weight1, p_ln_bias1),
            p_dweight1, p_dbias1, live1, outputs1, D,
            i_tile // columns, i_tile % columns, True, NORM, BN, BK, BR,
        )  # fmt: skip
    elif NORM:
        i_tile = i_p - row_programs - tiles0 - tiles1
        if i_tile < columns:
            _norm_gradients(
                p_dy0, p_x, p_weight0, p_mean, p_rstd, p_dnorm, live0, outputs0, i_tile,
                D, BK, BO, BR,
            )  # fmt: skip
        else:
            _norm_gradients(
                p_dy1, p_x + first1 * D, p_weight1, p_mean + first1, p_rstd + first1,
                p_dnorm + 2 * D, live1, outputs1, i_tile - columns, D, BK, BO, BR,
            )  # fmt: skip
