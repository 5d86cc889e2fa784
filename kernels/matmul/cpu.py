"""Products of matrices within compiled code, for one CPU core: M rows, N columns, K summands.

They are those of torch's BLAS, so that no second one has threads of its own, or ours where it
leaves half of the processor unused. The operands of BLAS are 64-byte aligned, as torch's are:
elsewhere it may sum in another order, and equal runs would differ.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite.binding import add_symbol
from numba import types
from numba.extending import overload

from torch_crl.kernels.blas import address, leaves_avx512_unused, multiplies_bf16
from torch_crl.kernels.cpu import products
from torch_crl.kernels.matmul import tiles


def product(a: Any, a_transposed: Any, b: Any, b_transposed: Any, out: Any) -> Any:
    """out = a b, of contiguous matrices or their transposes; only within compiled code.

    All three are fp32 or fp64, or a and b are bf16, as uint16, and out is fp32.
    """
    raise NotImplementedError(a, a_transposed, b, b_transposed, out)


@products
def _summands(a, a_transposed, b, b_transposed, out):
    """Their number, if the sizes match: what multiplies would read and write beyond the ends."""
    summands = len(a) if a_transposed else a.shape[1]
    if (
        summands != (b.shape[1] if b_transposed else len(b))
        or out.shape[0] != (a.shape[1] if a_transposed else len(a))
        or out.shape[1] != (len(b) if b_transposed else b.shape[1])
    ):
        raise ValueError("the sizes of the operands of a product do not match")
    return summands


def _at_address(name: str, where: int, *arguments: Any) -> types.ExternalFunction:
    add_symbol(f"torch_crl_{name}", where)
    return types.ExternalFunction(f"torch_crl_{name}", types.void(*arguments))


def _of_blas(name: str) -> types.ExternalFunction:
    """Fortran's general product, all of whose 13 arguments are pointers."""
    where = address(name)
    if where is None:
        raise ImportError(f"the libraries of torch have no {name}")
    return _at_address(name, where, *[types.voidptr] * 13)


_BLAS: dict[Any, Any] = {types.float32: _of_blas("sgemm_"), types.float64: _of_blas("dgemm_")}
# Where there is none, no recipe asks for it; code that could call it is compiled all the same.
_BLAS[types.uint16] = _of_blas("gemm_bf16bf16f32_" if address("gemm_bf16bf16f32_") else "sgemm_")
_FLAGS = np.frombuffer(b"NT", np.uint8)

_OURS: dict[Any, Any] = {}
if leaves_avx512_unused():
    _OURS[types.float32] = _at_address("fp32_product", tiles.fp32_product(), *tiles.SIGNATURE.args)


@cache
def load_bf16_products() -> None:
    """To be called before compiled code that has products in bf16, also if it is on the disk.

    Few runs have any, and it takes seconds to compile them.
    """
    if leaves_avx512_unused() and multiplies_bf16():
        where = tiles.bf16_product()
        _OURS[types.uint16] = _at_address("bf16_product", where, *tiles.SIGNATURE.args)


@overload(product)
def _(a: Any, a_transposed: Any, b: Any, b_transposed: Any, out: Any) -> Any:
    gemm, ours = _BLAS[a.dtype], _OURS.get(a.dtype, _BLAS[a.dtype])

    def call_ours(a: Any, a_transposed: Any, b: Any, b_transposed: Any, out: Any) -> Any:
        summands = _summands(a, a_transposed, b, b_transposed, out)
        ours(
            *(a.ctypes, a_transposed, b.ctypes, b_transposed, out.ctypes),
            *(out.shape[0], out.shape[1], summands),
        )

    def call_blas(a: Any, a_transposed: Any, b: Any, b_transposed: Any, out: Any) -> Any:
        summands = _summands(a, a_transposed, b, b_transposed, out)
        # Fortran reads a matrix by columns, and so finds its transpose: out^T = b^T a^T.
        sizes = np.empty(5, np.int32)
        sizes[0], sizes[1], sizes[2] = out.shape[1], out.shape[0], summands
        sizes[3], sizes[4] = b.shape[1], a.shape[1]
        factors = np.empty(2, out.dtype)
        factors[0], factors[1] = 1, 0
        gemm(
            _FLAGS[int(b_transposed) :].ctypes,
            _FLAGS[int(a_transposed) :].ctypes,
            sizes.ctypes,
            sizes[1:].ctypes,
            sizes[2:].ctypes,
            factors.ctypes,
            b.ctypes,
            sizes[3:].ctypes,
            a.ctypes,
            sizes[4:].ctypes,
            factors[1:].ctypes,
            out.ctypes,
            sizes.ctypes,
        )

    return call_ours if a.dtype in _OURS else call_blas
