"""The forward pass of `tower` on Hopper. R rows, L layers; for the rest see `parts`."""

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

from torch_crl.kernels.norm_act.reference import EPSILON
from torch_crl.kernels.tower.hopper.parts import (
    COPYING_REGISTERS,
    async_store,
    await_weight,
    barrier,
    descriptor,
    multiply,
    normalise,
    request_weight,
    rows_of_program,
    sigmoid,
    to_next,
    weight_descriptor,
)
from torch_crl.kernels.tower.hopper.pre_norm import forward_pre_norm
from torch_crl.kernels.tower.hopper.tiles import HopperTile
from torch_crl.kernels.tower.reference import BLOCK

if TYPE_CHECKING:
    from torch_crl.kernels.tower.passes import Layers

_SIZES = ["live0", "live1", "frozen", "depth", "weight_rows"]


@gluon.jit
def _copy_forward(
    d_weight, d_input, d_kept, slots, arrived, ready, freed, operands, kept,
    first_row, start, is_live, rows_live, rows, depth,
    PRE_NORM: gl.constexpr, SAVE: gl.constexpr, OWN: gl.constexpr,
    D: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    # The work of the warp that has weights brought and results taken away. What a LayerNorm keeps
    # comes with the input of the matmul behind it: that of the same layer, or of the next one.
    LATER: gl.constexpr = 0 if PRE_NORM else 1
    PER_LAYER: gl.constexpr = D // BK
    for chunk in gl.static_range(SLOTS):
        request_weight(d_weight, slots, arrived, first_row, chunk, depth, False, OWN, D, BK, SLOTS)
    for i_layer in range(depth):
        mbarrier.wait(ready.index(i_layer % 2), (i_layer // 2) & 1)
        if SAVE:
            if is_live:
                row = i_layer * rows_live + start
                async_store(d_input, [row, 0], operands.index(i_layer % 2))
            i_kept = i_layer - LATER
            if i_kept >= 0:
                row = i_kept * rows + start
                async_store(d_kept, [row, 0], kept.index(i_kept % 2))
        mbarrier.wait(freed, i_layer & 1)
        if SAVE:
            tma.store_wait(pendings=0)
        # The weights of the next layer tell the others that these copies are done.
        for chunk in gl.static_range(PER_LAYER):
            i_chunk = i_layer * PER_LAYER + chunk + SLOTS
            request_weight(
                d_weight, slots, arrived, first_row, i_chunk, depth, False, OWN, D, BK, SLOTS
            )  # fmt: skip
    if SAVE and LATER:
        mbarrier.wait(ready.index(depth % 2), (depth // 2) & 1)
        row = (depth - 1) * rows + start
        async_store(d_kept, [row, 0], kept.index((depth - 1) % 2))
        tma.store_wait(pendings=0)


@gluon.jit
def _forward(
    p_x, p_y, p_bias, p_ln_weight, p_ln_bias, p_rstd,
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
    operands.index(0).permute((1, 0)).store(b_x.to(dtype))
    fence_async_shared()
    barrier()
    mbarrier.arrive(ready.index(0), count=1)
    b_bias = gl.load(p_bias + o_d)
    for i_layer in range(depth):
        operand = operands.index(i_layer % 2)
        b_h = b_bias[:, None] + gl.zeros([D, BM], gl.float32, MMA)
        await_weight(arrived, i_layer, D, BK, SLOTS)
        b_h = multiply(slots, operand, i_layer, 0, b_h, False, D, BK, SLOTS)
        b_ln_weight, b_ln_bias = gl.load(p_ln_weight + o_d), gl.load(p_ln_bias + o_d)
        following = to_next(i_layer, depth, OWN, D)
        p_bias += following
        p_ln_weight += following if OWN else D
        p_ln_bias += following if OWN else D
        b_bias = gl.load(p_bias + o_d)
        b_h = multiply(slots, operand, i_layer, 1, b_h, False, D, BK, SLOTS)
        b_h = multiply(slots, operand, i_layer, 2, b_h, False, D, BK, SLOTS)
        b_h = multiply(slots, operand, i_layer, 3, b_h, False, D, BK, SLOTS)
        b_h = warpgroup_mma_wait(0, deps=[b_h])
        barrier()
        mbarrier.arrive(freed, count=1)
        b_xhat, _, b_rstd = normalise(b_h, scratch0, scratch1, EPS, MMA, D, BM, WARPS)
        b_n = b_xhat * b_ln_weight[:, None] + b_ln_bias[:, None]
        b_s = gl.where(b_n < 0.0, 0.0, b_n) if RELU else b_n * sigmoid(b_n)
        if (i_layer + 1) % BLOCK == 0:
            b_x += branch_scale * b_s
            b_s = b_x
        operands.index((i_layer + 1) % 2).permute((1, 0)).store(b_s.to(dtype))
        if SAVE:
            kept.index(i_layer % 2).permute((1, 0)).store(b_xhat.to(dtype))
        fence_async_shared()
        barrier()
        mbarrier.arrive(ready.index((i_layer + 1) % 2), count=1)
        if SAVE:
            gl.store(p_rstd + o_m, b_rstd)
            p_rstd += rows
    gl.store(p_y + o, b_x)


@gluon.jit(do_not_specialize=[*_SIZES, "branch_scale"])
def tower_fwd_hopper_kernel(
    # in
    p_x, d_weight,
    p_bias0, p_ln_weight0, p_ln_bias0,
    p_bias1, p_ln_weight1, p_ln_bias1,
    # out
    p_y, d_input, d_kept, p_stats,
    # sizes
    live0, live1, frozen, depth, weight_rows, branch_scale,
    PRE_NORM: gl.constexpr, SAVE: gl.constexpr,
    RELU: gl.constexpr, EPS: gl.constexpr, BLOCK: gl.constexpr, OWN: gl.constexpr,
    D: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """The arguments are those of the kernels in Triton; d_ are descriptors, of rows [-1, D]."""
    MMA: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BM, 16]
    )
    dtype: gl.constexpr = d_weight.dtype
    start, i_group = rows_of_program(gl.program_id(0), live0, live1, BM)
    p_bias, p_ln_weight, p_ln_bias = p_bias0, p_ln_weight0, p_ln_bias0
    first_row = 0
    if i_group == 1:
        p_bias, p_ln_weight, p_ln_bias = p_bias1, p_ln_weight1, p_ln_bias1
        first_row = weight_rows
    slots = gl.allocate_shared_memory(dtype, [SLOTS, D, BK], d_weight.layout)
    arrived = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    freed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    operands = gl.allocate_shared_memory(dtype, [2, BM, D], d_kept.layout)
    kept = operands
    if SAVE:
        kept = gl.allocate_shared_memory(dtype, [2, BM, D], d_kept.layout)
    SCRATCH: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0])
    scratch0 = gl.allocate_shared_memory(gl.float32, [WARPS, BM], SCRATCH)
    scratch1 = gl.allocate_shared_memory(gl.float32, [WARPS, BM], SCRATCH)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(arrived.index(slot), count=1)
    for buffer in gl.static_range(2):
        mbarrier.init(ready.index(buffer), count=1)
    mbarrier.init(freed, count=1)
    rows_live = live0 + live1
    rows = rows_live + frozen
    gl.warp_specialize(
        [
            (
                forward_pre_norm if PRE_NORM else _forward,
                (
                    p_x, p_y, p_bias, p_ln_weight, p_ln_bias, p_stats,
                    slots, arrived, ready, freed, operands, kept, scratch0, scratch1,
                    start, rows, depth, branch_scale, MMA,
                    SAVE, RELU, EPS, BLOCK, OWN, D, BM, BK, SLOTS, WARPS,
                ),
            ),
            (
                _copy_forward,
                (
                    d_weight, d_input, d_kept, slots, arrived, ready, freed, operands, kept,
                    first_row, start, i_group < 2, rows_live, rows, depth,
                    PRE_NORM, SAVE, OWN, D, BK, SLOTS,
                ),
            ),
        ],
        [1],
        [COPYING_REGISTERS],
    )  # fmt: skip


def forward(
    x: Tensor,
    y: Tensor,
    layers: "Layers",
    kept: Sequence[Tensor] | None,
    grid: int,
    tile: HopperTile,
) -> None:
    """Fill y [R, D] and what is kept, as `torch_crl.kernels.tower.passes.forward_layers` does."""
    weight16, vectors, depth, rows, block, relu, branch_scale = layers
    width = x.shape[1]
    part = [tile.rows, width]
    nothing = weight_descriptor(weight16, part)
    d_input = descriptor(kept[0], part) if kept and sum(rows[:2]) else nothing
    d_kept = descriptor(kept[1], part) if kept else nothing
    with torch.cuda.device_of(x):
        tower_fwd_hopper_kernel[(grid,)](
            x, weight_descriptor(weight16, [width, tile.chunk]), *vectors[0], *vectors[-1],
            y, d_input, d_kept, kept[2] if kept else y,
            *rows, depth, weight16.stride(0) // width, branch_scale,
            PRE_NORM=block == "pre_norm", SAVE=kept is not None,
            RELU=relu, EPS=EPSILON, BLOCK=BLOCK, OWN=layers.repeated,
            D=width, BM=tile.rows, BK=tile.chunk, SLOTS=tile.slots, WARPS=tile.warps,
            num_warps=tile.warps,
        )  # fmt: skip
