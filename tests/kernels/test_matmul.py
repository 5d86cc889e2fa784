"""Products by tiles against those of integers, which are exact, on any processor."""

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from torch_crl.kernels import blas

pytest.importorskip("numba", reason="numba is not installed")

from torch_crl.kernels.cpu import array, entry, to_bf16
from torch_crl.kernels.matmul import tiles
from torch_crl.kernels.matmul.vectors import ROWS

# Rows, columns and summands: whole tiles; ends of all three; fewer rows than a tile has; one.
SIZES = [(16, 64, 32), (13, 70, 37), (9, 59, 16), (ROWS - 1, 33, 5), (1, 1, 1)]
_to_bf16 = entry(to_bf16)
TRANSPOSED = [(False, False), (False, True), (True, False), (True, True)]


@cache
def compiled(kind: str) -> Any:
    operands = ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p
    function = ctypes.CFUNCTYPE(None, *operands, *[ctypes.c_ssize_t] * 3)
    return function(tiles.bf16_product() if kind == "bf16" else tiles.fp32_product())


def multiply(
    a: Tensor, b: Tensor, out: Tensor, *, kind: str, transposed: tuple[bool, bool]
) -> None:
    """out = a b, where the operands that are transposed lie so in memory."""
    operands = [
        array((x.T if turned else x).float().contiguous())
        for x, turned in zip((a, b), transposed, strict=True)
    ]
    if kind == "bf16":
        halves = [np.empty(x.shape, np.uint16) for x in operands]
        for x, half in zip(operands, halves, strict=True):
            _to_bf16(x, half)
        operands = halves
    places = [x.ctypes.data for x in operands]
    pairs = zip(places, transposed, strict=True)
    flat = [each for pair in pairs for each in pair]
    compiled(kind)(*flat, out.data_ptr(), len(a), b.shape[1], len(b))


def integers(*shape: int, seed: int) -> Tensor:
    """Small ones, so that their products and sums are exact even in bf16 with sums in fp32."""
    return torch.randint(-9, 10, shape, generator=Generator().manual_seed(seed)).double()


@pytest.fixture(params=["fp32", "bf16"])
def kind(request: Any) -> str:
    if request.param == "bf16" and not blas.multiplies_bf16():
        pytest.skip("this processor does not multiply bf16")
    return str(request.param)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_products_of_integers_are_exact_and_nothing_else_is_written(
    kind: str, sizes: tuple[int, int, int], transposed: tuple[bool, bool]
) -> None:
    rows, columns, summands = sizes
    a, b = integers(rows, summands, seed=1), integers(summands, columns, seed=2)
    around = torch.full((rows + 2, columns), torch.nan)
    multiply(a, b, around[1:-1], kind=kind, transposed=transposed)
    assert torch.equal(around[1:-1].double(), a @ b)
    assert around[[0, -1]].isnan().all()


@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_a_row_of_a_product_does_not_depend_on_the_others(
    kind: str, transposed: tuple[bool, bool]
) -> None:
    generator = Generator().manual_seed(3)
    a = torch.randn(2 * ROWS + 3, 65, generator=generator)
    b = torch.randn(65, 40, generator=generator)
    whole, alone = torch.empty(len(a), 40), torch.empty(1, 40)
    multiply(a, b, whole, kind=kind, transposed=transposed)
    for row in (0, ROWS + 1, len(a) - 1):
        multiply(a[row : row + 1], b, alone, kind=kind, transposed=transposed)
        assert torch.equal(whole[row : row + 1], alone)
    a[5] = torch.nan
    spoiled = torch.empty_like(whole)
    multiply(a, b, spoiled, kind=kind, transposed=transposed)
    assert spoiled[5].isnan().all()
    others = torch.arange(len(a)) != 5
    assert torch.equal(spoiled[others], whole[others])


@pytest.mark.skipif(sys.platform != "linux", reason="protects memory as Linux does")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_nothing_is_read_behind_the_last_number(
    kind: str, sizes: tuple[int, int, int], transposed: tuple[bool, bool]
) -> None:
    # Whoever reads behind an operand ends this process.
    rows, columns, summands = sizes
    size = 2 if kind == "bf16" else 4
    spaces = [at_the_end_of_memory(size * summands * each) for each in (rows, columns)]
    out = torch.empty(rows, columns)
    places = [place for place, _ in spaces]
    flat = [each for pair in zip(places, transposed, strict=True) for each in pair]
    compiled(kind)(*flat, out.data_ptr(), rows, columns, summands)
    assert (out == 0).all()


def at_the_end_of_memory(size: int) -> tuple[int, mmap.mmap]:
    """Where `size` bytes of zeros lie, behind which no memory can be read, and what keeps them."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, (size // page + 2) * page)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + len(memory) - page
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), page, 0) == 0
    return end - size, memory


def test_sums_in_fp32_are_as_exact_as_a_chain_of_additions() -> None:
    generator = Generator().manual_seed(4)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    out = torch.empty(256, 256)
    multiply(a, b, out, kind="fp32", transposed=(False, True))
    bound = 256 * 2.0**-24 * (a.abs().double() @ b.abs().double())
    assert ((out.double() - a.double() @ b.double()).abs() < bound).all()
