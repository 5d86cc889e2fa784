"""One pass through the layers of a tower on persistent Triton kernels, forward or backward.

R rows, D width, L layers, T towers (1 or 2), P programs with live rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from torch_crl.kernels.launch import multiprocessors
from torch_crl.kernels.norm_act.reference import EPSILON
from torch_crl.kernels.tower.hopper.tiles import HopperTile, choose_tiles
from torch_crl.kernels.tower.pre_norm import pre_norm_bwd_kernel, pre_norm_fwd_kernel
from torch_crl.kernels.tower.published import tower_bwd_kernel, tower_fwd_kernel
from torch_crl.kernels.tower.reference import BLOCK
from torch_crl.kernels.tower.rows import sums_kernel


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


class Layers(NamedTuple):
    """Parameters of the layers of a launch, and the numbers of rows that pass through them."""

    weight16: Tensor
    """[T, L, D, D] in the precision of the matmuls."""
    vectors: list[list[Tensor]]
    """For each tower its bias, LayerNorm weight and LayerNorm bias, each [L, D]."""
    depth: int
    """Layers that the rows pass: a multiple of L, as often as these are applied in turn."""
    rows: tuple[int, int, int]
    """Numbers of live rows of both towers (the second may be 0) and of frozen rows."""
    block: str
    """`published` or `pre_norm`."""
    relu: bool
    branch_scale: float

    def part(self, layers: slice) -> "Layers":
        """A slice of the layers that the rows pass, without a copy."""
        depth = layers.stop - layers.start
        if self.repeated:
            return self._replace(depth=depth)
        vectors = [[vector[layers] for vector in tower] for tower in self.vectors]
        return self._replace(weight16=self.weight16[:, layers], vectors=vectors, depth=depth)

    @property
    def repeated(self) -> int:
        """L, if these layers are applied more than once, else 0."""
        own = self.weight16.shape[1]
        return own if own < self.depth else 0


def programs(rows: Sequence[int], tile: Tile | HopperTile) -> int:
    """Number of programs for groups of rows; no program takes rows of two groups."""
    return sum(triton.cdiv(count, tile.rows) for count in rows)


def choose_tile(width: int, rows: Sequence[int], device: torch.device) -> Tile:
    """The small tile if every program then has its own multiprocessor, else the large one."""
    small, large = TILES[width]
    return small if programs(rows, small) <= multiprocessors(device) else large


def _choose(
    layers: Layers, width: int, device: torch.device
) -> Sequence[Tile] | Sequence[HopperTile]:
    """The tiles of the forward and of the backward pass."""
    return choose_tiles(width, layers.rows, device) or [choose_tile(width, layers.rows, device)] * 2


def forward_layers(
    x: Tensor,
    layers: Layers,
    *,
    kept: Sequence[Tensor] | None,
    tile: Tile | HopperTile | None = None,
) -> Tensor:
    """y [R, D]; fills `kept`, made by `empty_kept`, with what the backward pass needs."""
    weight16, vectors, depth, rows, block, relu, branch_scale = layers
    width = x.shape[1]
    tile = tile or _choose(layers, width, x.device)[0]
    y = torch.empty_like(x)
    if isinstance(tile, HopperTile):
        # Imported here, since other GPUs and other versions of Triton need not have what it needs.
        from torch_crl.kernels.tower.hopper.forward import forward

        forward(x, y, layers, kept, programs(rows, tile), tile)
        return y
    kernel = tower_fwd_kernel if block == "published" else pre_norm_fwd_kernel
    with torch.cuda.device_of(x):
        kernel[(programs(rows, tile),)](
            x, weight16, *vectors[0], *vectors[-1],
            y, *(kept or (y, y, y)),
            *rows, depth, weight16.stride(0) // width, branch_scale,
            SAVE=kept is not None, RELU=relu, EPS=EPSILON, BLOCK=BLOCK, OWN=layers.repeated,
            D=width, BM=tile.rows, STAGES=tile.stages, **tile.options,
        )  # fmt: skip
    return y


def empty_kept(x: Tensor, layers: Layers) -> list[Tensor]:
    """What the backward pass reads, empty.

    With L the depth: layer inputs [L, live, D]; with the block `published` normalised values
    [L, R, D] and their 1 / std [L, R]; with `pre_norm` what is before each layer's LayerNorm and
    activation, or behind the LayerNorm of the first layer of a block, [L, R, D], and mean and
    1 / std [L, 2, R].
    """
    depth, dtype = layers.depth, layers.weight16.dtype
    rows, width = x.shape
    return [
        x.new_empty(depth, sum(layers.rows[:2]), width, dtype=dtype),
        x.new_empty(depth, rows, width, dtype=dtype),
        x.new_empty(depth, rows) if layers.block == "published" else x.new_empty(depth, 2, rows),
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
    """dx [R, D], and dh [depth, live, D] times `scale`.

    Fills `sums` [T, 3, all layers, D] from `first_layer` on with the gradients of bias, LayerNorm
    weight and LayerNorm bias of each tower.
    """
    weight16, vectors, depth, rows, block, relu, branch_scale = layers
    width = dy.shape[1]
    tile = tile or _choose(layers, width, dy.device)[1]
    live_programs = [programs([count], tile) for count in rows[: len(vectors)]]
    _, values, statistics = kept
    dx = torch.empty_like(dy)
    dh = dy.new_empty(depth, sum(rows[:2]), width, dtype=weight16.dtype)
    partial = dy.new_empty(depth, sum(live_programs), 3, width)
    if isinstance(tile, HopperTile):
        from torch_crl.kernels.tower.hopper.backward import backward

        backward(dy, dx, dh, partial, layers, kept, scale, programs(rows, tile), tile)
    else:
        kernel = tower_bwd_kernel if block == "published" else pre_norm_bwd_kernel
        # With `pre_norm` nothing depends on the LayerNorm's bias.
        needed = slice(1, 3 if block == "published" else 2)
        with torch.cuda.device_of(dy):
            kernel[(programs(rows, tile),)](
                dy, values, statistics, weight16, *vectors[0][needed], *vectors[-1][needed],
                dx, dh, partial,
                *rows, depth, weight16.stride(0) // width, branch_scale, scale,
                RELU=relu, BLOCK=BLOCK, OWN=layers.repeated,
                D=width, BM=tile.rows, STAGES=tile.stages, **tile.options,
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
