"""What the computing and the summing warps do for the block `pre_norm`; for the rest see `parts`.

R rows, L layers, P programs with live rows. A step has the LayerNorm before a matmul and that
matmul, and backward the matmul and then the LayerNorm.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma_wait,
)

from torch_crl.kernels.tower.hopper.parts import (
    await_weight,
    barrier,
    from_previous,
    multiply,
    normalise,
    normalise_bwd,
    own_layer,
    sigmoid,
    to_next,
)


@gluon.jit
def forward_pre_norm(
    p_x, p_y, p_bias, p_ln_weight, p_ln_bias, p_stats,
    slots, arrived, ready, freed, operands, kept, scratch0, scratch1,
    start, rows, depth, branch_scale, MMA: gl.constexpr,
    SAVE: gl.constexpr, RELU: gl.constexpr, EPS: gl.constexpr, BLOCK: gl.constexpr,
    OWN: gl.constexpr,
    D: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = operands.dtype
    o_d = gl.arange(0, D, gl.SliceLayout(1, MMA))
    o_m = start + gl.arange(0, BM, gl.SliceLayout(0, MMA))
    o = o_m.to(gl.int64)[None, :] * D + o_d[:, None]
    b_x = gl.load(p_x + o)
    # What the matmul of the previous layer gave; the first layer has none before it.
    b_h = gl.zeros([D, BM], gl.float32, MMA)
    b_bias = gl.load(p_bias + o_d)
    b_ln_weight, b_ln_bias = gl.load(p_ln_weight + o_d), gl.load(p_ln_bias + o_d)
    for i_layer in range(depth):
        starts_block = i_layer % BLOCK == 0
        b_source = gl.where(b_h < 0.0, 0.0, b_h) if RELU else b_h * sigmoid(b_h)
        if starts_block:
            b_x += branch_scale * b_h
            b_source = b_x
        b_xhat, b_mean, b_rstd = normalise(b_source, scratch0, scratch1, EPS, MMA, D, BM, WARPS)
        operand = operands.index(i_layer % 2)
        b_input = b_xhat * b_ln_weight[:, None] + b_ln_bias[:, None]
        operand.permute((1, 0)).store(b_input.to(dtype))
        if SAVE:
            if starts_block:
                b_h = b_xhat
            kept.index(i_layer % 2).permute((1, 0)).store(b_h.to(dtype))
        fence_async_shared()
        barrier()
        mbarrier.arrive(ready.index(i_layer % 2), count=1)
        if SAVE:
            gl.store(p_stats + o_m, b_mean)
            gl.store(p_stats + rows + o_m, b_rstd)
            p_stats += 2 * rows
        b_h = b_bias[:, None] + gl.zeros([D, BM], gl.float32, MMA)
        await_weight(arrived, i_layer, D, BK, SLOTS)
        b_h = multiply(slots, operand, i_layer, 0, b_h, False, D, BK, SLOTS)
        following = to_next(i_layer, depth, OWN, D)
        p_bias += following
        p_ln_weight += following
        p_ln_bias += following
        b_bias = gl.load(p_bias + o_d)
        b_ln_weight, b_ln_bias = gl.load(p_ln_weight + o_d), gl.load(p_ln_bias + o_d)
        b_h = multiply(slots, operand, i_layer, 1, b_h, False, D, BK, SLOTS)
        b_h = multiply(slots, operand, i_layer, 2, b_h, False, D, BK, SLOTS)
        b_h = multiply(slots, operand, i_layer, 3, b_h, False, D, BK, SLOTS)
        b_h = warpgroup_mma_wait(0, deps=[b_h])
        barrier()
        mbarrier.arrive(freed, count=1)
    gl.store(p_y + o, b_x + branch_scale * b_h)


@gluon.jit
def _activation_and_slope(b_h, RELU: gl.constexpr):
    if RELU:
        return gl.where(b_h < 0.0, 0.0, b_h), gl.where(b_h > 0.0, 1.0, 0.0)
    b_sigmoid = sigmoid(b_h)
    b_activation = b_h * b_sigmoid
    return b_activation, b_sigmoid + b_activation - b_activation * b_sigmoid


@gluon.jit
def backward_pre_norm(
    p_dy, p_dx, p_ln_weight, _p_ln_bias, p_stats,
    slots, arrived, ready, freed, operands, dns, values, values_arrived, scratch0, scratch1,
    start, rows, depth, branch_scale, scale, MMA: gl.constexpr,
    RELU: gl.constexpr, BLOCK: gl.constexpr, OWN: gl.constexpr,
    D: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = operands.dtype
    o_d = gl.arange(0, D, gl.SliceLayout(1, MMA))
    o_m = start + gl.arange(0, BM, gl.SliceLayout(0, MMA))
    o = o_m.to(gl.int64)[None, :] * D + o_d[:, None]
    last = (depth - 1).to(gl.int64)
    p_ln_weight += own_layer(last, OWN) * D
    p_stats += last * 2 * rows
    b_dx = gl.load(p_dy + o) * scale
    b_dh = b_dx * branch_scale
    for i_step in range(depth):
        i_layer, i_buffer = depth - 1 - i_step, i_step % 2
        operand = operands.index(i_buffer)
        operand.permute((1, 0)).store(b_dh.to(dtype))
        fence_async_shared()
        barrier()
        mbarrier.arrive(ready.index(i_buffer), count=1)
        b_dn = gl.zeros([D, BM], gl.float32, MMA)
        await_weight(arrived, i_step, D, BK, SLOTS)
        b_dn = multiply(slots, operand, i_step, 0, b_dn, True, D, BK, SLOTS)
        b_ln_weight = gl.load(p_ln_weight + o_d)
        b_mean, b_rstd = gl.load(p_stats + o_m), gl.load(p_stats + rows + o_m)
        p_ln_weight -= from_previous(i_layer, OWN, D)
        p_stats -= gl.where(i_layer > 0, 2 * rows, 0)
        b_dn = multiply(slots, operand, i_step, 1, b_dn, True, D, BK, SLOTS)
        b_dn = multiply(slots, operand, i_step, 2, b_dn, True, D, BK, SLOTS)
        b_dn = multiply(slots, operand, i_step, 3, b_dn, True, D, BK, SLOTS)
        b_dn = warpgroup_mma_wait(0, deps=[b_dn])
        barrier()
        mbarrier.arrive(freed, count=1)
        dns.index(i_buffer).permute((1, 0)).store(b_dn)
        mbarrier.wait(values_arrived.index(i_buffer), (i_step // 2) & 1)
        value = values.index(i_buffer).permute((1, 0))
        b_xhat = value.load(MMA).to(gl.float32)
        b_activation, b_slope = _activation_and_slope(b_xhat, RELU)
        starts_block = i_layer % BLOCK == 0
        if not starts_block:
            b_xhat = b_activation * b_rstd[None, :] - (b_mean * b_rstd)[None, :]
            # For the warps that sum up.
            value.store(b_xhat.to(dtype))
        b_dxhat = b_dn * b_ln_weight[:, None]
        b_dsource = normalise_bwd(b_dxhat, b_xhat, b_rstd, scratch0, scratch1, MMA, D, BM, WARPS)
        b_dh = b_dsource * b_slope
        if starts_block:
            b_dx += b_dsource
            b_dh = b_dx * branch_scale
    # Tells the warps that sum up that the last LayerNorm's numbers are there.
    barrier()
    mbarrier.arrive(ready.index(depth % 2), count=1)
    gl.store(p_dx + o, b_dx * (1.0 / scale))


@gluon.jit
def sum_up_pre_norm(
    p_partial, ready, summed, operands, dns, xhats, is_live, n_partial, depth, unscale,
    D: gl.constexpr, BM: gl.constexpr,
):  # fmt: skip
    # Partial sums [L, P, 3, D], in a step those of a layer's bias and of the LayerNorm behind it,
    # whose numbers come with those of the next layer's matmul.
    columns: gl.constexpr = gl.BlockedLayout([BM, D // 128], [1, 32], [1, 4], [1, 0])
    o_d = gl.arange(0, D, gl.SliceLayout(0, columns))
    p_partial += (depth - 1).to(gl.int64) * n_partial * 3 * D
    for i_step in range(depth + 1):
        mbarrier.wait(ready.index(i_step % 2), (i_step // 2) & 1)
        if is_live:
            if i_step < depth:
                b_dh = operands.index(i_step % 2).load(columns).to(gl.float32)
                gl.store(p_partial + o_d, gl.sum(b_dh, 0) * unscale)
            if i_step > 0:
                i_buffer = (i_step - 1) % 2
                p_behind = p_partial + n_partial * 3 * D + o_d
                b_dn = dns.index(i_buffer).load(columns)
                gl.store(p_behind + 2 * D, gl.sum(b_dn, 0) * unscale)
                b_xhat = xhats.index(i_buffer).load(columns).to(gl.float32)
                gl.store(p_behind + D, gl.sum(b_dn * b_xhat, 0) * unscale)
        barrier()
        mbarrier.arrive(summed.index(i_step % 2), count=1)
        p_partial -= n_partial * 3 * D
