"""`tower` as one persistent Triton kernel per pass: programs take their rows through all layers.

R rows, D width, L layers, T towers (1 or 2), P programs with live rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.launch import multiprocessors
from torch_crl.kernels.norm_act.kernel import activation_bwd, activation_fwd
from torch_crl.kernels.norm_act.reference import EPSILON
from torch_crl.kernels.tower.hopper.backward import backward
from torch_crl.kernels.tower.hopper.forward import forward
from torch_crl.kernels.tower.hopper.tiles import HopperTile, choose_tiles
from torch_crl.kernels.tower.reference import BLOCK


class Tile(NamedTuple):
    """How a kernel is launched."""

    rows: int
    """Rows of one program; a tensor core needs at least 16."""
    warps: int
    stages: int
    """With 2, the weights of the next layer are copied while the LayerNorm of this one runs."""

    @property
    def options(self) -> dict[str, int]:
        """Launch options. One program fills a multiprocessor, so it may use all registers."""
        return {"num_warps": self.warps, "maxnreg": min(255, 65536 // (32 * self.warps))}


# Width to the tile for few rows and the tile for more rows than multiprocessors can take at once.
TILES = {128: (Tile(16, 8, 2), Tile(32, 8, 2)), 256: (Tile(16, 8, 2), Tile(32, 8, 2))}
SUMMED = 8
"""Programs whose partial sums are loaded together."""
_SIZES = ["live0", "live1", "frozen", "depth", "weight_rows"]


@triton.jit
def rows_of_program(i_p, live0, live1, frozen, BM: tl.constexpr):
    """The rows [start, stop) of a program, and its group: 0 and 1 are live towers, 2 is frozen."""
    n0, n1 = tl.cdiv(live0, BM), tl.cdiv(live1, BM)
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


@triton.jit(do_not_specialize=[*_SIZES, "branch_scale"])
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
    D: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
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
        b_bias, b_ln_weight, b_ln_bias = _vectors(p_bias, p_ln_weight, p_ln_bias, i_layer, o_d, D)
        # Loaded transposed: the matmul is with W^T, and W is [out, in].
        p_layer = p_weight + tl.cast(i_layer, tl.int64) * D * D
        b_h = tl.dot(b_input, tl.load(p_layer + o_d[None, :] * D + o_d[:, None]))
    b_xhat, b_rstd = normalise(b_h, b_bias, EPS, D)
    if SAVE:
        o_before = (depth - 1) * rows
        tl.store(p_xhat + o_before * D + o, b_xhat.to(p_xhat.dtype.element_ty), mask=m)
        tl.store(p_rstd + o_before + o_m, b_rstd, mask=m_m)
    b_n = b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :]
    tl.store(p_y + o, b_x + branch_scale * activation_fwd(b_n, RELU), mask=m)


@triton.jit(do_not_specialize=[*_SIZES, "branch_scale", "scale"])
def tower_bwd_kernel(
    # in
    p_dy, p_xhat, p_rstd, p_weight,
    p_ln_weight0, p_ln_bias0, p_ln_weight1, p_ln_bias1,
    # out
    p_dx, p_dh, p_partial,
    # sizes
    live0, live1, frozen, depth, weight_rows, branch_scale, scale,
    RELU: tl.constexpr, BLOCK: tl.constexpr,
    D: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
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
    b_ln_weight_next = tl.load(p_ln_weight + (depth - 1) * D + o_d)
    b_ln_bias_next = tl.load(p_ln_bias + (depth - 1) * D + o_d)
    for i_step in tl.range(0, depth, num_stages=STAGES):
        i_layer = depth - 1 - i_step
        b_xhat, b_rstd = b_xhat_next.to(tl.float32), b_rstd_next
        b_ln_weight, b_ln_bias = b_ln_weight_next, b_ln_bias_next
        i_next = tl.maximum(i_layer - 1, 0)
        b_xhat_next = tl.load(p_xhat + i_next * rows * D + o, mask=m, other=0.0)
        b_rstd_next = tl.load(p_rstd + i_next * rows + o_m, mask=m_m, other=0.0)
        b_ln_weight_next = tl.load(p_ln_weight + i_next * D + o_d)
        b_ln_bias_next = tl.load(p_ln_bias + i_next * D + o_d)

        b_dn = b_dinner * activation_bwd(b_xhat * b_ln_weight[None, :] + b_ln_bias[None, :], RELU)
        # [L, P, 3, D]: bias, LayerNorm's weight and bias; rows beyond `stop` add zeros.
        p_out = p_partial + (i_layer * n_partial + i_p) * 3 * D + o_d
        tl.store(p_out + D, tl.sum(b_dn * b_xhat, 0) * unscale, mask=is_live)
        tl.store(p_out + 2 * D, tl.sum(b_dn, 0) * unscale, mask=is_live)
        b_dxhat = b_dn * b_ln_weight[None, :]
        b_m1 = tl.sum(b_dxhat, 1) / D
        b_m2 = tl.sum(b_dxhat * b_xhat, 1) / D
        b_dh = b_rstd[:, None] * (b_dxhat - b_m1[:, None] - b_xhat * b_m2[:, None])
        tl.store(p_out, tl.sum(b_dh, 0) * unscale, mask=is_live)
        b_dh16 = b_dh.to(p_dh.dtype.element_ty)
        tl.store(p_dh + i_layer * rows_live * D + o, b_dh16, mask=m & is_live)

        starts_block = i_layer % BLOCK == 0
        p_layer = p_weight + tl.cast(i_layer, tl.int64) * D * D
        b_weight = tl.load(p_layer + o_d[:, None] * D + o_d[None, :])
        b_dinner = tl.dot(b_dh16, b_weight, acc=tl.where(starts_block, b_dx, 0.0))
        b_dx = tl.where(starts_block, b_dinner, b_dx)
        # The gradient of the previous block's output, which was multiplied by the branch scale.
        b_dinner *= tl.where(starts_block, branch_scale, 1.0)
    tl.store(p_dx + o, b_dx * unscale, mask=m)


@triton.jit
def sum_over_programs(p_partial, p_out, first, count, i_sum, D: tl.constexpr, BP: tl.constexpr):
    """One of the three sums of a layer and tower, from the partial ones [P, 3, D] of programs."""
    o_d = tl.arange(0, D)
    b_sum = tl.zeros([D], tl.float32)
    for start in range(0, count, BP):
        o_p = start + tl.arange(0, BP)
        p_rows = p_partial + ((first + o_p) * 3 + i_sum)[:, None] * D + o_d[None, :]
        b_sum += tl.sum(tl.load(p_rows, mask=(o_p < count)[:, None], other=0.0), 0)
    tl.store(p_out + o_d, b_sum)


@triton.jit(do_not_specialize=["first_layer", "all_layers", "programs0", "programs1"])
def sums_kernel(
    # in
    p_partial,
    # out
    p_dvectors,
    # sizes
    first_layer, all_layers, programs0, programs1,
    D: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Sums [T, 3, L, D] over the programs of partial [layers of a chunk, P, 3, D].

    Grid: the layers of the chunk, and three sums for each tower.
    """
    i_layer, i_sum = tl.program_id(0), tl.program_id(1)
    first, count = 0, programs0
    if i_sum >= 3:
        first, count = programs0, programs1
    p_partial += tl.cast(i_layer, tl.int64) * (programs0 + programs1) * 3 * D
    p_out = p_dvectors + (tl.cast(i_sum, tl.int64) * all_layers + first_layer + i_layer) * D
    sum_over_programs(p_partial, p_out, first, count, i_sum % 3, D, BP)


class Layers(NamedTuple):
    """Parameters of the layers of a launch, and the numbers of rows that pass through them."""

    weight16: Tensor
    """[T, L, D, D] in the precision of the matmuls."""
    vectors: list[list[Tensor]]
    """For each tower its bias, LayerNorm weight and LayerNorm bias, each [L, D]."""
    rows: tuple[int, int, int]
    """Numbers of live rows of both towers (the second may be 0) and of frozen rows."""
    relu: bool
    branch_scale: float

    def part(self, layers: slice) -> "Layers":
        """A slice of the layers, without a copy."""
        vectors = [[vector[layers] for vector in tower] for tower in self.vectors]
        return self._replace(weight16=self.weight16[:, layers], vectors=vectors)


def programs(rows: Sequence[int], tile: Tile | HopperTile) -> int:
    """Number of programs for groups of rows; no program takes rows of two groups."""
    return sum(triton.cdiv(count, tile.rows) for count in rows)


def choose_tile(width: int, rows: Sequence[int], device: torch.device) -> Tile:
    """The small tile if every program then has its own multiprocessor, else the large one."""
    small, large = TILES[width]
    return small if programs(rows, small) <= multiprocessors(device) else large


def _choose(
    width: int, rows: Sequence[int], device: torch.device
) -> Sequence[Tile] | Sequence[HopperTile]:
    """The tiles of the forward and of the backward pass."""
    return choose_tiles(width, rows, device) or [choose_tile(width, rows, device)] * 2


def forward_layers(
    x: Tensor,
    layers: Layers,
    *,
    kept: Sequence[Tensor] | None,
    tile: Tile | HopperTile | None = None,
) -> Tensor:
    """y [R, D]; fills `kept`, made by `empty_kept`, with what the backward pass needs."""
    weight16, vectors, rows, relu, branch_scale = layers
    depth, width = vectors[0][0].shape
    tile = tile or _choose(width, rows, x.device)[0]
    y = torch.empty_like(x)
    if isinstance(tile, HopperTile):
        forward(x, y, layers, kept, programs(rows, tile), tile)
        return y
    with torch.cuda.device_of(x):
        tower_fwd_kernel[(programs(rows, tile),)](
            x, weight16, *vectors[0], *vectors[-1],
            y, *(kept or (y, y, y)),
            *rows, depth, weight16.stride(0) // width, branch_scale,
            SAVE=kept is not None, RELU=relu, EPS=EPSILON, BLOCK=BLOCK,
            D=width, BM=tile.rows, STAGES=tile.stages, **tile.options,
        )  # fmt: skip
    return y


def empty_kept(x: Tensor, layers: Layers) -> list[Tensor]:
    """Empty layer inputs [L, live, D], normalised values [L, R, D] and their 1 / std [L, R]."""
    depth, dtype = len(layers.vectors[0][0]), layers.weight16.dtype
    rows, width = x.shape
    return [
        x.new_empty(depth, sum(layers.rows[:2]), width, dtype=dtype),
        x.new_empty(depth, rows, width, dtype=dtype),
        x.new_empty(depth, rows),
    ]


def backward_layers(
    dy: Tensor,
    layers: Layers,
    *,
    kept: Sequence[Tensor],
    scale: float,
    sums: Tensor,
    first_layer: int = 0,
    tile: Tile | HopperTile | None = None,
) -> tuple[Tensor, Tensor]:
    """dx [R, D], and dh [L, live, D] times `scale`.

    Fills `sums` [T, 3, all layers, D] from `first_layer` on with the gradients of bias, LayerNorm
    weight and LayerNorm bias of each tower.
    """
    weight16, vectors, rows, relu, branch_scale = layers
    depth, width = vectors[0][0].shape
    tile = tile or _choose(width, rows, dy.device)[1]
    live_programs = [programs([count], tile) for count in rows[: len(vectors)]]
    _, xhat, rstd = kept
    dx = torch.empty_like(dy)
    dh = dy.new_empty(depth, sum(rows[:2]), width, dtype=weight16.dtype)
    partial = dy.new_empty(depth, sum(live_programs), 3, width)
    if isinstance(tile, HopperTile):
        backward(dy, dx, dh, partial, layers, kept, scale, programs(rows, tile), tile)
    else:
        with torch.cuda.device_of(dy):
            tower_bwd_kernel[(programs(rows, tile),)](
                dy, xhat, rstd, weight16, *vectors[0][1:], *vectors[-1][1:],
                dx, dh, partial,
                *rows, depth, weight16.stride(0) // width, branch_scale, scale,
                RELU=relu, BLOCK=BLOCK, D=width, BM=tile.rows, STAGES=tile.stages, **tile.options,
            )  # fmt: skip
    if sum(live_programs):
        sum_programs(partial, live_programs, sums, first_layer)
    return dx, dh


def sum_programs(
    partial: Tensor, live_programs: Sequence[int], sums: Tensor, first_layer: int
) -> None:
    """Fill `sums` [T, 3, all layers, D] from `first_layer` on; partial is [layers, P, 3, D]."""
    towers, _, all_layers, width = sums.shape
    with torch.cuda.device_of(sums):
        sums_kernel[(len(partial), 3 * towers)](
            partial,
            sums,
            *(first_layer, all_layers, live_programs[0], sum(live_programs[1:])),
            D=width, BP=SUMMED, num_warps=4,
        )  # fmt: skip
