"""The backward pass of `tower` on Hopper.

R rows, L layers, P programs with live rows; for the rest see `parts`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from torch_crl.kernels.tower.hopper.parts import (
    COPYING_REGISTERS,
    async_load,
    async_store,
    await_weight,
    barrier,
    descriptor,
    from_previous,
    multiply,
    normalise_bwd,
    own_layer,
    request_weight,
    rows_of_program,
    sigmoid,
    weight_descriptor,
)
from torch_crl.kernels.tower.hopper.pre_norm import backward_pre_norm, sum_up_pre_norm
from torch_crl.kernels.tower.hopper.tiles import HopperTile
from torch_crl.kernels.tower.reference import BLOCK

if TYPE_CHECKING:
    from torch_crl.kernels.tower.passes import Layers

SUMMING_REGISTERS = gl.constexpr(96)
"""Of a thread of the warps that sum up."""
_SIZES = ["live0", "live1", "frozen", "depth", "weight_rows"]


@gluon.jit
def _request_values(
    d_values, values, arrived, i_step, depth, rows, start, D: gl.constexpr, BM: gl.constexpr
):  # fmt: skip
    exists = i_step < depth
    arrival = arrived.index(i_step % 2)
    mbarrier.expect(arrival, BM * D * 2, pred=exists)
    row = (depth - 1 - i_step) * rows + start
    async_load(d_values, [row, 0], arrival, values.index(i_step % 2), pred=exists)


@gluon.jit
def _copy_backward(
    d_weight, d_values, d_dh, slots, arrived, ready, freed, summed,
    operands, values, values_arrived, first_row, start, is_live, rows_live, rows, depth,
    PRE_NORM: gl.constexpr, OWN: gl.constexpr,
    D: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    # The work of the warp that has weights and activations brought and results taken away.
    PER_LAYER: gl.constexpr = D // BK
    # What was summed up makes room: this step's values, or with PRE_NORM those of the one before.
    AHEAD: gl.constexpr = 1 if PRE_NORM else 2
    for i_step in gl.static_range(AHEAD):
        _request_values(d_values, values, values_arrived, i_step, depth, rows, start, D, BM)
    for chunk in gl.static_range(SLOTS):
        request_weight(d_weight, slots, arrived, first_row, chunk, depth, True, OWN, D, BK, SLOTS)
    for i_step in range(depth):
        mbarrier.wait(ready.index(i_step % 2), (i_step // 2) & 1)
        if is_live:
            row = (depth - 1 - i_step) * rows_live + start
            async_store(d_dh, [row, 0], operands.index(i_step % 2))
        mbarrier.wait(freed, i_step & 1)
        tma.store_wait(pendings=0)
        mbarrier.wait(summed.index(i_step % 2), (i_step // 2) & 1)
        i_request = i_step + AHEAD
        _request_values(d_values, values, values_arrived, i_request, depth, rows, start, D, BM)
        # The weights of the next layer tell the others that this copy and the sums are done.
        for chunk in gl.static_range(PER_LAYER):
            i_chunk = i_step * PER_LAYER + chunk + SLOTS
            request_weight(
                d_weight, slots, arrived, first_row, i_chunk, depth, True, OWN, D, BK, SLOTS
            )  # fmt: skip


@gluon.jit
def _sum_up(
    p_partial, ready, summed, operands, dns, xhats, is_live, n_partial, depth, unscale,
    D: gl.constexpr, BM: gl.constexpr,
):  # fmt: skip
    # The work of the warps that sum up over a program's rows: the gradients of bias, LayerNorm's
    # weight and bias, [L, P, 3, D].
    columns: gl.constexpr = gl.BlockedLayout([BM, D // 128], [1, 32], [1, 4], [1, 0])
    o_d = gl.arange(0, D, gl.SliceLayout(0, columns))
    p_partial += (depth - 1).to(gl.int64) * n_partial * 3 * D
    for i_step in range(depth):
        mbarrier.wait(ready.index(i_step % 2), (i_step // 2) & 1)
        i_buffer = i_step % 2
        if is_live:
            b_dh = operands.index(i_buffer).load(columns).to(gl.float32)
            gl.store(p_partial + o_d, gl.sum(b_dh, 0) * unscale)
            b_dn = dns.index(i_buffer).load(columns)
            gl.store(p_partial + 2 * D + o_d, gl.sum(b_dn, 0) * unscale)
            b_xhat = xhats.index(i_buffer).load(columns).to(gl.float32)
            gl.store(p_partial + D + o_d, gl.sum(b_dn * b_xhat, 0) * unscale)
        barrier()
        mbarrier.arrive(summed.index(i_buffer), count=1)
        p_partial -= n_partial * 3 * D


@gluon.jit
def _slope(b_n, RELU: gl.constexpr):
    if RELU:
        return gl.where(b_n > 0.0, 1.0, 0.0)
    b_sigmoid = sigmoid(b_n)
    return b_sigmoid + b_sigmoid * (b_n - b_n * b_sigmoid)


@gluon.jit
def _backward(
    p_dy, p_dx, p_ln_weight, p_ln_bias, p_stats,
    slots, arrived, ready, freed, operands, dns, xhats, values_arrived, scratch0, scratch1,
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
    p_ln_bias += own_layer(last, OWN) * D
    p_stats += last * rows
    b_ln_weight, b_ln_bias = gl.load(p_ln_weight + o_d), gl.load(p_ln_bias + o_d)
    b_rstd = gl.load(p_stats + o_m)
    b_dx = gl.load(p_dy + o) * scale
    b_dinner = b_dx * branch_scale
    for i_step in range(depth):
        i_layer, i_buffer = depth - 1 - i_step, i_step % 2
        mbarrier.wait(values_arrived.index(i_buffer), (i_step // 2) & 1)
        b_xhat = xhats.index(i_buffer).permute((1, 0)).load(MMA).to(gl.float32)
        b_dn = b_dinner * _slope(b_xhat * b_ln_weight[:, None] + b_ln_bias[:, None], RELU)
        dns.index(i_buffer).permute((1, 0)).store(b_dn)
        b_dxhat = b_dn * b_ln_weight[:, None]
        b_dh = normalise_bwd(b_dxhat, b_xhat, b_rstd, scratch0, scratch1, MMA, D, BM, WARPS)
        operand = operands.index(i_buffer)
        operand.permute((1, 0)).store(b_dh.to(dtype))
        fence_async_shared()
        barrier()
        mbarrier.arrive(ready.index(i_buffer), count=1)
        b_sum = gl.zeros([D, BM], gl.float32, MMA)
        await_weight(arrived, i_step, D, BK, SLOTS)
        b_sum = multiply(slots, operand, i_step, 0, b_sum, True, D, BK, SLOTS)
        p_stats -= gl.where(i_layer > 0, rows, 0)
        p_ln_weight -= from_previous(i_layer, OWN, D)
        p_ln_bias -= from_previous(i_layer, OWN, D)
        b_ln_weight, b_ln_bias = gl.load(p_ln_weight + o_d), gl.load(p_ln_bias + o_d)
        b_rstd = gl.load(p_stats + o_m)
        b_sum = multiply(slots, operand, i_step, 1, b_sum, True, D, BK, SLOTS)
        b_sum = multiply(slots, operand, i_step, 2, b_sum, True, D, BK, SLOTS)
        b_sum = multiply(slots, operand, i_step, 3, b_sum, True, D, BK, SLOTS)
        b_dinner = warpgroup_mma_wait(0, deps=[b_sum])
        barrier()
        mbarrier.arrive(freed, count=1)
        if i_layer % BLOCK == 0:
            b_dx += b_dinner
            # The gradient of the previous block's output, which was multiplied by the branch scale.
            b_dinner = b_dx * branch_scale
    gl.store(p_dx + o, b_dx * (1.0 / scale))


@gluon.jit(do_not_specialize=[*_SIZES, "branch_scale", "scale"])
def tower_bwd_hopper_kernel(
    # in
    p_dy, d_values, p_stats, d_weight,
    p_ln_weight0, p_ln_bias0, p_ln_weight1, p_ln_bias1,
    # out
    p_dx, d_dh, p_partial,
    # sizes
    live0, live1, frozen, depth, weight_rows, branch_scale, scale,
    PRE_NORM: gl.constexpr, RELU: gl.constexpr, BLOCK: gl.constexpr, OWN: gl.constexpr,
    D: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """The arguments are those of the kernels in Triton; d_ are descriptors, of rows [-1, D]."""
    MMA: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BM, 16]
    )
    dtype: gl.constexpr = d_weight.dtype
    i_p = gl.program_id(0)
    start, i_group = rows_of_program(i_p, live0, live1, BM)
    p_ln_weight, p_ln_bias = p_ln_weight0, p_ln_bias0
    first_row = 0
    if i_group == 1:
        p_ln_weight, p_ln_bias = p_ln_weight1, p_ln_bias1
        first_row = weight_rows
    rows_live = live0 + live1
    rows = rows_live + frozen
    slots = gl.allocate_shared_memory(dtype, [SLOTS, BK, D], d_weight.layout)
    arrived = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    freed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    summed = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    operands = gl.allocate_shared_memory(dtype, [2, BM, D], d_values.layout)
    # fp32, since dn is dh times std / gamma, which may leave the range of fp16 where dh does not.
    WIDE: gl.constexpr = gl.NVMMASharedLayout(128, 32, 2)
    dns = gl.allocate_shared_memory(gl.float32, [2, BM, D], WIDE)
    values = gl.allocate_shared_memory(dtype, [2, BM, D], d_values.layout)
    values_arrived = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    SCRATCH: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0])
    scratch0 = gl.allocate_shared_memory(gl.float32, [WARPS, BM], SCRATCH)
    scratch1 = gl.allocate_shared_memory(gl.float32, [WARPS, BM], SCRATCH)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(arrived.index(slot), count=1)
    for buffer in gl.static_range(2):
        mbarrier.init(ready.index(buffer), count=1)
        mbarrier.init(summed.index(buffer), count=1)
        mbarrier.init(values_arrived.index(buffer), count=1)
    mbarrier.init(freed, count=1)
    gl.warp_specialize(
        [
            (
                backward_pre_norm if PRE_NORM else _backward,
                (
                    p_dy, p_dx, p_ln_weight, p_ln_bias, p_stats,
                    slots, arrived, ready, freed, operands, dns, values, values_arrived,
                    scratch0, scratch1, start, rows, depth, branch_scale, scale,
                    MMA, RELU, BLOCK, OWN, D, BM, BK, SLOTS, WARPS,
                ),
            ),
            (
                _copy_backward,
                (
                    d_weight, d_values, d_dh, slots, arrived, ready, freed, summed,
                    operands, values, values_arrived, first_row, start, i_group < 2,
                    rows_live, rows, depth, PRE_NORM, OWN, D, BM, BK, SLOTS,
                ),
            ),
            (
                sum_up_pre_norm if PRE_NORM else _sum_up,
                (
                    p_partial + i_p * 3 * D, ready, summed, operands, dns, values, i_group < 2,
                    rows_live // BM, depth, 1.0 / scale, D, BM,
                ),
            ),
        ],
        [1, 4],
        [COPYING_REGISTERS, SUMMING_REGISTERS],
    )  # fmt: skip


def backward(
    dy: Tensor,
    dx: Tensor,
    dh: Tensor,
    partial: Tensor,
    layers: "Layers",
    kept: Sequence[Tensor],
    scale: float,
    grid: int,
    tile: HopperTile,
) -> None:
    """Fill dx [R, D], dh [L, live, D] and the partial sums [L, P, 3, D]."""
    weight16, vectors, depth, rows, block, relu, branch_scale = layers
    width = dy.shape[1]
    part = [tile.rows, width]
    d_values = descriptor(kept[1], part)
    with torch.cuda.device_of(dy):
        tower_bwd_hopper_kernel[(grid,)](
            dy, d_values, kept[2], weight_descriptor(weight16, [tile.chunk, width]),
            *vectors[0][1:], *vectors[-1][1:],
            dx, descriptor(dh, part) if len(dh[0]) else d_values, partial,
            *rows, depth, weight16.stride(0) // width, branch_scale, scale,
            PRE_NORM=block == "pre_norm", RELU=relu, BLOCK=BLOCK, OWN=layers.repeated,
            D=width, BM=tile.rows, BK=tile.chunk, SLOTS=tile.slots, WARPS=tile.warps,
            num_warps=tile.warps,
        )  # fmt: skip
