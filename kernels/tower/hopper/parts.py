"""What both passes have in common.

D width, BM rows of a program. Tensors of a program are [D, BM], the transpose of what lies in
memory, since the matrix unit takes 64 rows at least and a program has fewer. A weight comes in
chunks of BK inputs (backward: outputs), each into one of SLOTS slots of shared memory; `arrived`
has a barrier for every slot. d_ are descriptors of rows [-1, D] in memory.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

COPYING_REGISTERS = gl.constexpr(24)
"""Of a thread of the warp that copies."""
# Their names differ between versions.
barrier = getattr(gl, "barrier", None) or gl.thread_barrier
async_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
async_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
_ELEMENTS = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}


@gluon.constexpr_function
def columns_layout(rows, warps):
    """[warps, rows]: a thread has all warps' values of those rows that it has of a product."""
    in_thread = [[0, 1]] + [[0, 8 << k] for k in range((rows // 8).bit_length() - 1)]
    in_thread += [[1 << k, 0] for k in range(warps.bit_length() - 1)]
    lanes = [[0, 2], [0, 4], [0, 0], [0, 0], [0, 0]]
    return gl.DistributedLinearLayout(
        reg_bases=in_thread,
        lane_bases=lanes,
        warp_bases=[[0, 0]] * (warps.bit_length() - 1),
        block_bases=[],
        shape=[warps, rows],
    )


@gluon.jit
def rows_of_program(i_p, live0, live1, BM: gl.constexpr):
    # The first row, and the group: 0 and 1 are live towers, 2 is frozen.
    i_group = gl.where(i_p * BM >= live0 + live1, 2, gl.where(i_p * BM >= live0, 1, 0))
    return i_p * BM, i_group


@gluon.jit
def own_layer(i_layer, OWN: gl.constexpr):
    # The layer whose parameters are read; OWN layers are applied in turn, or if 0 each once.
    return i_layer % OWN if OWN else i_layer


@gluon.jit
def to_next(i_layer, depth, OWN: gl.constexpr, D: gl.constexpr):
    # From the vectors of a layer to those of the next one; the last layer's stay.
    i_next = i_layer + 1
    return (gl.where(i_next % OWN == 0, 1 - OWN, 1) if OWN else gl.where(i_next < depth, 1, 0)) * D


@gluon.jit
def from_previous(i_layer, OWN: gl.constexpr, D: gl.constexpr):
    # From the vectors of the previous layer to those of a layer; the first layer's stay.
    return (gl.where(i_layer % OWN == 0, 1 - OWN, 1) if OWN else gl.where(i_layer > 0, 1, 0)) * D


@gluon.jit
def request_weight(
    d_weight, slots, arrived, first_row, i_chunk, depth,
    REVERSED: gl.constexpr, OWN: gl.constexpr,
    D: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    # Starts the copy of a chunk. Its slot has to be free.
    i_slot, i_layer = i_chunk % SLOTS, i_chunk // (D // BK)
    start = (i_chunk % (D // BK)) * BK
    arrival, slot = arrived.index(i_slot), slots.index(i_slot)
    exists = i_layer < depth
    mbarrier.expect(arrival, D * BK * 2, pred=exists)
    if REVERSED:
        row = first_row + own_layer(depth - 1 - i_layer, OWN) * D + start
        async_load(d_weight, [row, 0], arrival, slot, pred=exists)
    else:
        row = first_row + own_layer(i_layer, OWN) * D
        async_load(d_weight, [row, start], arrival, slot, pred=exists)


@gluon.jit
def await_weight(
    arrived, i_step, D: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr
):  # fmt: skip
    for chunk in gl.static_range(D // BK):
        i_chunk = i_step * (D // BK) + chunk
        mbarrier.wait(arrived.index(i_chunk % SLOTS), (i_chunk // SLOTS) & 1)


@gluon.jit
def multiply(
    slots, operand, i_step, quarter: gl.constexpr, b_sum,
    REVERSED: gl.constexpr, D: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    # Adds a quarter of W (backward: of W^T) times the transpose of the operand [BM, D] to the sum.
    # In quarters, so that loads for the next layer can start behind the first.
    K: gl.constexpr = D // 4
    start: gl.constexpr = quarter * K % BK
    weight = slots.index((i_step * (D // BK) + quarter * K // BK) % SLOTS)
    weight = weight.slice(start, K, 0).permute((1, 0)) if REVERSED else weight.slice(start, K, 1)
    part = operand.slice(quarter * K, K, 1).permute((1, 0))
    return warpgroup_mma(weight, part, b_sum, is_async=True)


@gluon.jit
def sigmoid(x):
    # 1 / (1 + 2^(-x log2 e)), with a relative error of some 1e-6. The unit for such functions is
    # the narrowest of all, so two numbers a and b share a reciprocal: 1 / a = b / (a b). Powers
    # stop at 2^63,
    # since a b has to be finite; a sigmoid of 1e-19 is nothing beside the other numbers.
    return gl.inline_asm_elementwise(
        """
        {
            .reg .f32 a, b, r;
            min.f32 a, $2, 0f427C0000;
            min.f32 b, $3, 0f427C0000;
            ex2.approx.ftz.f32 a, a;
            ex2.approx.ftz.f32 b, b;
            add.f32 a, a, 0f3F800000;
            add.f32 b, b, 0f3F800000;
            mul.f32 r, a, b;
            rcp.approx.ftz.f32 r, r;
            mul.f32 $0, r, b;
            mul.f32 $1, r, a;
        }
        """, "=r,=r,r,r", [x * -1.4426950408889634], dtype=gl.float32, is_pure=True, pack=2,
    )  # fmt: skip


@gluon.jit
def _add_both(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@gluon.jit
def sums(
    b_0, b_1, scratch0, scratch1,
    MMA: gl.constexpr, D: gl.constexpr, BM: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    # The sums [BM] over the width of two tensors [D, BM]: those of every warp, then those of all,
    # which every thread adds up for itself.
    shape: gl.constexpr = [D // (16 * WARPS), WARPS, 16, BM]
    b_0, b_1 = gl.reduce((b_0.reshape(shape), b_1.reshape(shape)), 0, _add_both)
    b_0, b_1 = gl.reduce((b_0, b_1), 1, _add_both)
    scratch0.store(b_0)
    scratch1.store(b_1)
    columns: gl.constexpr = columns_layout(BM, WARPS)
    b_0, b_1 = scratch0.load(columns), scratch1.load(columns)
    b_0, b_1 = gl.reduce((b_0, b_1), 0, _add_both)
    layout: gl.constexpr = gl.SliceLayout(0, MMA)
    return gl.convert_layout(b_0, layout), gl.convert_layout(b_1, layout)


@gluon.jit
def normalise(
    b_h, scratch0, scratch1,
    EPS: gl.constexpr, MMA: gl.constexpr,
    D: gl.constexpr, BM: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    # Rows, which are columns here, with mean 0 and variance 1; their mean and 1 / std before.
    b_mean, b_square = sums(b_h, b_h * b_h, scratch0, scratch1, MMA, D, BM, WARPS)
    b_mean *= 1.0 / D
    b_rstd = gl.rsqrt(gl.maximum(b_square * (1.0 / D) - b_mean * b_mean, 0.0) + EPS)
    return b_h * b_rstd[None, :] - (b_mean * b_rstd)[None, :], b_mean, b_rstd


@gluon.jit
def normalise_bwd(
    b_dxhat, b_xhat, b_rstd, scratch0, scratch1,
    MMA: gl.constexpr, D: gl.constexpr, BM: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    # From the gradient of normalised rows to that of the rows before.
    b_m1, b_m2 = sums(b_dxhat, b_dxhat * b_xhat, scratch0, scratch1, MMA, D, BM, WARPS)
    b_m1, b_m2 = b_m1 * b_rstd * (1.0 / D), b_m2 * b_rstd * (1.0 / D)
    return b_dxhat * b_rstd[None, :] - b_m1[None, :] - b_xhat * b_m2[None, :]


def descriptor(rows: Tensor, block: list[int]) -> TensorDescriptor:
    """Of 16-bit rows [..., D] in memory one after another."""
    layout = gl.NVMMASharedLayout.get_default_for(block, _ELEMENTS[rows.dtype])
    return TensorDescriptor.from_tensor(rows.view(-1, rows.shape[-1]), block, layout)


def weight_descriptor(weight16: Tensor, block: list[int]) -> TensorDescriptor:
    """Of all rows from the first tower's to the last one's, which are not contiguous in a part."""
    towers, layers, width = weight16.shape[:3]
    rows = (towers - 1) * weight16.stride(0) // width + layers * width
    layout = gl.NVMMASharedLayout.get_default_for(block, _ELEMENTS[weight16.dtype])
    return TensorDescriptor(weight16, [rows, width], [width, 1], block, layout)
