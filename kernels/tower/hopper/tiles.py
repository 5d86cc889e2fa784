"""How the kernels for Hopper are launched."""

import re
import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton

from torch_crl.kernels.launch import multiprocessors


class HopperTile(NamedTuple):
    """A part of the rows, and how many warps take it through a tower."""

    rows: int
    """Rows of one program."""
    warps: int
    """Those that multiply and normalise; others copy and sum up beside them."""
    chunk: int
    """Inputs (backward: outputs) of a weight that are copied to shared memory at once."""
    slots: int
    """Chunks that are in shared memory or on their way there. Fewer than those of two layers, since
    with the weights of the next layer a program also waits for copies of its results."""


class Tiles(NamedTuple):
    """Those of both passes, with equal rows."""

    forward: HopperTile
    backward: HopperTile


NEWEST_TRITON = (3, 9)
"""The kernels are written in Gluon, whose functions other versions of Triton rename and remove."""
# Width to tiles, from few rows to many.
TILES = {
    128: (
        Tiles(HopperTile(8, 4, 64, 3), HopperTile(8, 4, 64, 3)),
        Tiles(HopperTile(16, 4, 64, 3), HopperTile(16, 4, 64, 3)),
    ),
    256: (
        Tiles(HopperTile(8, 8, 128, 3), HopperTile(8, 4, 128, 3)),
        Tiles(HopperTile(16, 4, 128, 3), HopperTile(16, 4, 64, 5)),
    ),
}


def usable_tiles(width: int, rows: Sequence[int], device: torch.device) -> list[Tiles]:
    """Empty on other GPUs, for other widths, and for rows that are no multiples of a tile's.

    Empty, with a warning, if Triton is newer than any with which these kernels were compiled.
    """
    is_hopper = device.type == "cuda" and torch.version.hip is None
    if not is_hopper or torch.cuda.get_device_capability(device)[0] != 9 or not sum(rows):
        return []
    if not _is_tried(triton.__version__):
        return []
    return [
        tiles
        for tiles in TILES.get(width, ())
        if all(count % tiles.forward.rows == 0 for count in rows)
    ]


@cache
def _is_tried(version: str) -> bool:
    """Whether the kernels have been compiled with so new a Triton; warns, once, if not."""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) <= NEWEST_TRITON:
        return True
    tried = ".".join(map(str, NEWEST_TRITON))
    warnings.warn(
        f"the towers' kernels for Hopper GPUs are known to work with Triton up to {tried}, and "
        f"{version} is installed: the slower ones of other GPUs are used",
        stacklevel=2,
    )
    return False


def choose_tiles(width: int, rows: Sequence[int], device: torch.device) -> Tiles | None:
    """The smallest with a multiprocessor for every program, else the largest of all.

    None if that cannot be used, since the kernels in Triton then need fewer programs.
    """
    usable = usable_tiles(width, rows, device)
    for tiles in usable:
        if sum(rows) <= tiles.forward.rows * multiprocessors(device):
            return tiles
    return usable[-1] if usable and usable[-1] == TILES[width][-1] else None
