"""What the kernels of all blocks have in common. R rows, D width, L layers, P programs."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.norm_act.kernel import tile_of

_PROGRAMS = 128
"""As many as there are multiprocessors, or so."""


class Options(NamedTuple):
    """How the layers are computed; see `torch_crl.kernels.tower.tower`."""

    live: int
    """The parameters get gradients from the first `live` rows only."""
    block: str
    relu: bool
    branch_scale: float
    precision: str
    recompute: int
    gradient_scale: float

    @property
    def tf32(self) -> bool:
        """Whether operands in fp32 are rounded to ten bits of mantissa."""
        return self.precision == "tf32"


class Kept(NamedTuple):
    """What the backward pass needs of the layers."""

    inputs_LRD: Tensor
    """In the dtype of the matmuls' inputs."""
    values_LRD: Tensor
    """In the same dtype. With the block `published` normalised values; with `pre_norm` what is
    before each LayerNorm and activation, where a block starts behind the LayerNorm."""
    statistics_LR: Tensor
    """1 / std of each LayerNorm; with `pre_norm` [L, 2, R], mean and 1 / std."""


@triton.jit
def operand(b_x, TF32: tl.constexpr):
    """To ten bits of mantissa, to nearest, ties away from zero; the matrix unit would cut them."""
    if TF32:
        b_bits = b_x.to(tl.int32, bitcast=True)
        b_x = ((b_bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return b_x


def tiles_of(rows: int, tile_rows: int) -> int:
    """Number of tiles per program of the backward; the sums of all layers' programs are kept."""
    count: int = triton.cdiv(rows, tile_rows * _PROGRAMS)
    return max(1, count)


def programs_of(rows: int, live: int, width: int) -> int:
    """P for so many rows, of which the first are live."""
    tile_rows = tile_of(width)[0]
    count: int = triton.cdiv(live, tile_rows * tiles_of(rows, tile_rows))
    return count
