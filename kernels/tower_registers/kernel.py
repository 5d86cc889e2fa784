"""The kernels of `tower` in Gluon: weights go from L2 into the registers of the tensor cores.

What a program computes is that of `torch_crl.kernels.tower.kernel`; see the README. R rows, D
width, L layers, T towers, BM rows of a program, BK inputs of a weight's slice.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from torch_crl.kernels.norm_act.reference import EPSILON
from torch_crl.kernels.tower.reference import BLOCK

if TYPE_CHECKING:
    from torch_crl.kernels.tower.kernel import Layers, Tile

SLICE = 32
"""Inputs of a weight that are packed together: those of two steps of the matrix unit."""
_TILE = 64
# Its name differs between versions.
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier
_SIZES = ["live0", "live1", "frozen", "depth", "weight_rows"]


@triton.jit
def _packed(b_rows, N: tl.constexpr):
    # In every 32 columns, column 8 s + 2 q + e goes to 8 q + 2 s + e: what thread q of four has to
    # give to the matrix unit in two steps is then side by side.
    b_parts = tl.reshape(b_rows, [N, N // 32, 4, 4, 2])
    return tl.reshape(tl.permute(b_parts, (0, 1, 3, 2, 4)), [N, N])


@triton.jit
def pack_kernel(
    # in
    p_weight0, p_weight1,
    # out
    p_packed,
    # sizes
    layers,
    D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Packed [T, 2, L, D, D] in 16 bits: every weight, and every transposed one.

    Grid: layers of both towers, tiles of rows, tiles of columns.
    """
    i_tower, i_layer = tl.program_id(0) // layers, tl.program_id(0) % layers
    p_weight = p_weight0
    if i_tower == 1:
        p_weight = p_weight1
    start_row, start_column = tl.program_id(1) * N, tl.program_id(2) * N
    o = tl.arange(0, N)
    o_layer = tl.cast(i_layer, tl.int64) * D * D
    p_tile = p_weight + o_layer + (start_row + o)[:, None] * D + (start_column + o)[None, :]
    b_weight = tl.load(p_tile).to(p_packed.dtype.element_ty)
    p_out = p_packed + tl.cast(i_tower, tl.int64) * 2 * layers * D * D + o_layer
    p_tile = p_out + (start_row + o)[:, None] * D + (start_column + o)[None, :]
    tl.store(p_tile, _packed(b_weight, N))
    p_out += tl.cast(layers, tl.int64) * D * D
    p_tile = p_out + (start_column + o)[:, None] * D + (start_row + o)[None, :]
    tl.store(p_tile, _packed(tl.trans(b_weight), N))


@gluon.jit
def _rows_of_program(i_p, live0, live1, frozen, BM: gl.constexpr):
    n0, n1 = (live0 + BM - 1) // BM, (live1 + BM - 1) // BM
    start, stop, i_group = i_p * BM, live0, 0
    if i_p >= n0 + n1:
        start = live0 + live1 + (i_p - n0 - n1) * BM
        stop = live0 + live1 + frozen
        i_group = 2
    elif i_p >= n0:
        start = live0 + (i_p - n0) * BM
        stop = live0 + live1
        i_group = 1
    return start, stop, i_group


@gluon.jit
def _places(start, stop, D: gl.constexpr, BM: gl.constexpr, MMA: gl.constexpr):
    # A program's rows and columns, which rows there are, and the offsets [BM, D]. These have 64
    # bits, so that all elements of a thread share a register and differ by constants.
    o_m = start + gl.arange(0, BM, gl.SliceLayout(1, MMA))
    o_d = gl.arange(0, D, gl.SliceLayout(0, MMA))
    return o_m, o_d, o_m < stop, o_m.to(gl.int64)[:, None] * D + o_d[None, :]


@gluon.jit
def _weight_places(D: gl.constexpr, BK: gl.constexpr, PACKED: gl.constexpr):
    # Offsets [BK, D] of the transpose of rows [D, D]: each thread reads eight columns at once.
    o_column = gl.arange(0, BK, gl.SliceLayout(1, PACKED)).to(gl.int64)
    o_row = gl.arange(0, D, gl.SliceLayout(0, PACKED)).to(gl.int64)
    return o_row[None, :] * D + o_column[:, None]


@gluon.jit
def _add_both(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@gluon.jit
def _sigmoid(x):
    return 1.0 / (1.0 + gl.exp(-x))


@gluon.jit
def _slope(b_n, RELU: gl.constexpr):
    if RELU:
        return gl.where(b_n > 0.0, 1.0, 0.0)
    b_sigmoid = _sigmoid(b_n)
    return b_sigmoid * (1.0 + b_n * (1.0 - b_sigmoid))


@gluon.jit
def _load_weight(p_columns, RIGHT: gl.constexpr, D: gl.constexpr, BK: gl.constexpr):
    # The slices [BK, D] of a layer's weight. Each thread reads 16 bytes at a time, the numbers that
    # it has to give to the matrix unit in two steps; see `pack`.
    slices: gl.tuple = ()
    for k in gl.static_range(D // BK):
        b_packed = gl.load(p_columns + k * BK)
        b_steps = gl.permute(b_packed.reshape([4, 4, 2, D]), (1, 0, 2, 3)).reshape([BK, D])
        slices = slices + (gl.convert_layout(b_steps, RIGHT, assert_trivial=True),)  # noqa: RUF005
    return slices


@gluon.jit
def _product(buffer, slices, b_sum, LEFT: gl.constexpr, D: gl.constexpr, BK: gl.constexpr):
    for k in gl.static_range(D // BK):
        b_sum = mma_v2(buffer.slice(k * BK, BK, 1).load(LEFT), slices[k], b_sum)
    return b_sum


@gluon.jit
def _after_matmul(
    b_h, b_bias, b_ln_weight, b_ln_bias, p_xhat, p_rstd, m, m_m,
    SAVE: gl.constexpr, RELU: gl.constexpr, EPS: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    b_h += b_bias[None, :]
    b_sum, b_square = gl.reduce((b_h, b_h * b_h), 1, _add_both)
    b_mean = b_sum / D
    b_rstd = gl.rsqrt(gl.maximum(b_square / D - b_mean * b_mean, 0.0) + EPS)
    b_xhat = (b_h - b_mean[:, None]) * b_rstd[:, None]
    if SAVE:
        gl.store(p_xhat, b_xhat.to(p_xhat.dtype.element_ty), mask=m)
        gl.store(p_rstd, b_rstd, mask=m_m)
    b_n = b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :]
    return gl.where(b_n < 0.0, 0.0, b_n) if RELU else b_n * _sigmoid(b_n)


@gluon.jit(do_not_specialize=[*_SIZES, "branch_scale"])
def tower_fwd_registers_kernel(
    # in
    p_x, p_weight,
    p_bias0, p_ln_weight0, p_ln_bias0,
    p_bias1, p_ln_weight1, p_ln_bias1,
    # out
    p_y, p_input, p_xhat, p_rstd,
    # sizes
    live0, live1, frozen, depth, weight_rows, branch_scale,
    SAVE: gl.constexpr, RELU: gl.constexpr, EPS: gl.constexpr, BLOCK: gl.constexpr,
    D: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """The arguments are those of `tower_fwd_kernel`."""
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[1, WARPS], instr_shape=[16, 8]
    )
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 2)
    # A thread's numbers of two steps side by side.
    packed: gl.constexpr = gl.DotOperandLayout(1, mma, 8)
    dtype: gl.constexpr = p_weight.dtype.element_ty
    start, stop, i_group = _rows_of_program(gl.program_id(0), live0, live1, frozen, BM)
    p_bias, p_ln_weight, p_ln_bias = p_bias0, p_ln_weight0, p_ln_bias0
    if i_group == 1:
        p_weight += weight_rows.to(gl.int64) * D
        p_bias, p_ln_weight, p_ln_bias = p_bias1, p_ln_weight1, p_ln_bias1
    o_m, o_d, m_m, o = _places(start, stop, D, BM, mma)
    m = m_m[:, None]
    m_live = m & (i_group < 2)
    rows_live = (live0 + live1).to(gl.int64)
    rows = rows_live + frozen
    o_weight = _weight_places(D, BK, packed)
    buffers = gl.allocate_shared_memory(
        dtype, [2, BM, D], gl.SwizzledSharedLayout(8, 1, 8, order=[1, 0])
    )

    b_x = gl.load(p_x + o, mask=m, other=0.0)
    b_h = gl.zeros([BM, D], gl.float32, mma)
    b_bias = gl.load(p_bias + o_d)
    b_ln_weight = gl.load(p_ln_weight + o_d)
    b_ln_bias = gl.load(p_ln_bias + o_d)
    # Of the layer before, which the first has not got.
    p_xhat -= rows * D
    p_rstd -= rows
    for i_layer in range(depth):
        slices = _load_weight(p_weight + o_weight, right, D, BK)
        p_weight += D * D
        # What follows the matmul of the layer before, while the weights are on their way.
        follows = i_layer > 0
        b_c = _after_matmul(
            b_h, b_bias, b_ln_weight, b_ln_bias, p_xhat + o, p_rstd + o_m,
            m & follows, m_m & follows, SAVE, RELU, EPS, D,
        )  # fmt: skip
        p_xhat += rows * D
        p_rstd += rows
        starts = i_layer % BLOCK == 0
        b_x += gl.where(starts & follows, branch_scale, 0.0) * b_c
        b_input = gl.where(starts, b_x, b_c).to(dtype)
        b_bias = gl.load(p_bias + o_d)
        b_ln_weight = gl.load(p_ln_weight + o_d)
        b_ln_bias = gl.load(p_ln_bias + o_d)
        p_bias += D
        p_ln_weight += D
        p_ln_bias += D
        buffer = buffers.index(i_layer % 2)
        buffer.store(b_input)
        if SAVE:
            gl.store(p_input + o, b_input, mask=m_live)
            p_input += rows_live * D
        _barrier()
        b_h = _product(buffer, slices, gl.zeros([BM, D], gl.float32, mma), left, D, BK)
    b_c = _after_matmul(
        b_h, b_bias, b_ln_weight, b_ln_bias, p_xhat + o, p_rstd + o_m,
        m, m_m, SAVE, RELU, EPS, D,
    )  # fmt: skip
    b_x += branch_scale * b_c
    gl.store(p_y + o, b_x, mask=m)


@gluon.jit
def _before_matmul(
    b_dc, b_xhat, b_rstd, b_ln_weight, b_ln_bias, p_sums, unscale, is_live,
    RELU: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    b_dn = b_dc * _slope(b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :], RELU)
    gl.store(p_sums + D, gl.sum(b_dn * b_xhat, 0) * unscale, mask=is_live)
    gl.store(p_sums + 2 * D, gl.sum(b_dn, 0) * unscale, mask=is_live)
    b_dxhat = b_dn * b_ln_weight[None, :]
    b_m1, b_m2 = gl.reduce((b_dxhat, b_dxhat * b_xhat), 1, _add_both)
    b_m1, b_m2 = b_m1 / D, b_m2 / D
    b_dh = b_rstd[:, None] * (b_dxhat - b_m1[:, None] - b_xhat * b_m2[:, None])
    gl.store(p_sums, gl.sum(b_dh, 0) * unscale, mask=is_live)
    return b_dh


@gluon.jit(do_not_specialize=[*_SIZES, "branch_scale", "scale"])
def tower_bwd_registers_kernel(
    # in
    p_dy, p_xhat, p_rstd, p_weight_t,
    p_ln_weight0, p_ln_bias0, p_ln_weight1, p_ln_bias1,
    # out
    p_dx, p_dh, p_partial,
    # sizes
    live0, live1, frozen, depth, weight_rows, branch_scale, scale,
    RELU: gl.constexpr, BLOCK: gl.constexpr,
    D: gl.constexpr, BM: gl.constexpr, BK: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """The arguments are those of `tower_bwd_kernel`, with transposed weights [T, L, in, out]."""
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[1, WARPS], instr_shape=[16, 8]
    )
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 2)
    # A thread's numbers of two steps side by side.
    packed: gl.constexpr = gl.DotOperandLayout(1, mma, 8)
    dtype: gl.constexpr = p_weight_t.dtype.element_ty
    i_p = gl.program_id(0)
    start, stop, i_group = _rows_of_program(i_p, live0, live1, frozen, BM)
    p_ln_weight, p_ln_bias = p_ln_weight0, p_ln_bias0
    if i_group == 1:
        p_weight_t += weight_rows.to(gl.int64) * D
        p_ln_weight, p_ln_bias = p_ln_weight1, p_ln_bias1
    o_m, o_d, m_m, o = _places(start, stop, D, BM, mma)
    m = m_m[:, None]
    is_live = i_group < 2
    rows_live = (live0 + live1).to(gl.int64)
    rows = rows_live + frozen
    n_partial = ((live0 + BM - 1) // BM + (live1 + BM - 1) // BM).to(gl.int64)
    unscale = 1.0 / scale
    last = (depth - 1).to(gl.int64)
    o_weight = _weight_places(D, BK, packed)
    buffers = gl.allocate_shared_memory(
        dtype, [2, BM, D], gl.SwizzledSharedLayout(8, 1, 8, order=[1, 0])
    )

    b_dx = gl.load(p_dy + o, mask=m, other=0.0) * scale
    b_dinner = b_dx * branch_scale
    p_weight_t += last * D * D
    p_ln_weight += last * D
    p_ln_bias += last * D
    p_xhat += last * rows * D
    p_rstd += last * rows
    p_dh += last * rows_live * D
    p_partial += (last * n_partial + i_p) * 3 * D
    b_xhat = gl.load(p_xhat + o, mask=m, other=0.0).to(gl.float32)
    b_rstd = gl.load(p_rstd + o_m, mask=m_m, other=0.0)
    for i_step in range(depth):
        i_layer = depth - 1 - i_step
        slices = _load_weight(p_weight_t + o_weight, right, D, BK)
        p_weight_t -= D * D
        b_dh = _before_matmul(
            b_dinner, b_xhat, b_rstd, gl.load(p_ln_weight + o_d), gl.load(p_ln_bias + o_d),
            p_partial + o_d, unscale, is_live, RELU, D,
        )  # fmt: skip
        p_ln_weight -= D
        p_ln_bias -= D
        b_dh16 = b_dh.to(dtype)
        gl.store(p_dh + o, b_dh16, mask=m & is_live)
        p_dh -= rows_live * D
        buffer = buffers.index(i_step % 2)
        buffer.store(b_dh16)
        p_partial -= n_partial * 3 * D
        # What the layer before reads is on its way during the product.
        before = m & (i_layer > 0)
        p_xhat -= rows * D
        p_rstd -= rows
        b_xhat16 = gl.load(p_xhat + o, mask=before, other=0.0)
        b_rstd = gl.load(p_rstd + o_m, mask=m_m & (i_layer > 0), other=0.0)
        _barrier()
        starts = i_layer % BLOCK == 0
        b_dinner = _product(buffer, slices, gl.where(starts, b_dx, 0.0), left, D, BK)
        b_xhat = b_xhat16.to(gl.float32)
        b_dx = gl.where(starts, b_dinner, b_dx)
        # The gradient of the previous block's output, which was multiplied by the branch scale.
        b_dinner *= gl.where(starts, branch_scale, 1.0)
    gl.store(p_dx + o, b_dx * unscale, mask=m)


def pack(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """[T, 2, L, D, D] of weights [L, D, D], as the forward and the backward pass read them."""
    weights = [weight.contiguous() for weight in weights]
    layers, width = weights[0].shape[:2]
    packed = weights[0].new_empty(len(weights), 2, layers, width, width, dtype=dtype)
    tiles = width // _TILE
    with torch.cuda.device_of(packed):
        pack_kernel[(len(weights) * layers, tiles, tiles)](
            weights[0], weights[-1], packed, layers, D=width, N=_TILE, num_warps=4
        )
    return packed


def forward(
    x: Tensor, y: Tensor, layers: "Layers", kept: Sequence[Tensor] | None, grid: int, tile: "Tile"
) -> None:
    """Fill y [R, D] and what is kept, as `torch_crl.kernels.tower.kernel.forward_layers` does."""
    weight16, vectors, rows, relu, branch_scale = layers
    depth, width = vectors[0][0].shape
    with torch.cuda.device_of(x):
        tower_fwd_registers_kernel[(grid,)](
            x, weight16[:, 0], *vectors[0], *vectors[-1],
            y, *(kept or (y, y, y)),
            *rows, depth, weight16.stride(0) // width, branch_scale,
            SAVE=kept is not None, RELU=relu, EPS=EPSILON, BLOCK=BLOCK,
            D=width, BM=tile.rows, BK=SLICE, WARPS=tile.warps, **tile.options,
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
    tile: "Tile",
) -> None:
    """Fill dx [R, D], dh [L, live, D] and the partial sums [L, P, 3, D]."""
    weight16, vectors, rows, relu, branch_scale = layers
    depth, width = vectors[0][0].shape
    with torch.cuda.device_of(dy):
        tower_bwd_registers_kernel[(grid,)](
            dy, *kept[1:], weight16[:, 1], *vectors[0][1:], *vectors[-1][1:],
            dx, dh, partial,
            *rows, depth, weight16.stride(0) // width, branch_scale, scale,
            RELU=relu, BLOCK=BLOCK,
            D=width, BM=tile.rows, BK=SLICE, WARPS=tile.warps, **tile.options,
        )  # fmt: skip
