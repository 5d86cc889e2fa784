"""What the kernels for one CPU core share; imported by the `cpu.py` files only: it imports numba.

Products are computed by the BLAS of torch itself, so that no second one has threads of its own.
Their operands are 64-byte aligned, as torch's are: elsewhere BLAS may sum in another order, and
equal runs would differ.

Compiled code is kept on disk beside the source, or in the user's cache folder where that is
read-only, so that only the first run waits for the compiler.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite.binding import add_symbol
from numba import njit, types
from numba.extending import overload
from torch import Tensor

from torch_crl.kernels.blas import address

# A function that is called in several places is compiled for each of them, and LLVM, asked for one
# of these copies by its name, takes whichever the process has loaded first. They differ in the
# order of their sums. So that equal runs do not, all calls are written out: no copy has a name.
_INLINE = {"forceinline": True}
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True, **_INLINE}
# Sums may be taken in any order, and products fused with them; a NaN stays a NaN.
_LOOSE = {"contract", "nsz", "arcp", "reassoc"}


def _digest() -> str:
    """Of the content of every file of the kernels."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_SOURCES = _digest()


def _compiled(function: Any, **options: Any) -> Any:
    dispatcher = njit(**_OPTIONS, **options)(function)
    # numba would look at the function's own file only, and take code from the disk that calls
    # functions of other files as they were once.
    dispatcher._cache._cache_file._source_stamp = _SOURCES
    return dispatcher


def loops(function: Any) -> Any:
    """Compiles loops over rows, whose sums become vector instructions."""
    return _compiled(function, fastmath=_LOOSE)


def products(function: Any) -> Any:
    """Compiles calls of BLAS and of loops."""
    return _compiled(function)


_KINDS = {(torch.float32, "cpu"), (torch.float64, "cpu")}


def _of_blas(name: str) -> types.ExternalFunction:
    """Fortran's general product, all of whose 13 arguments are pointers."""
    where = address(name)
    if where is None:
        raise ImportError(f"the libraries of torch {torch.__version__} have no {name}")
    add_symbol(f"torch_crl_{name}", where)
    return types.ExternalFunction(f"torch_crl_{name}", types.void(*[types.voidptr] * 13))


_SINGLE, _DOUBLE = _of_blas("sgemm_"), _of_blas("dgemm_")
# Where there is none, no recipe asks for it; code that could call it is compiled all the same.
_HALF = _of_blas("gemm_bf16bf16f32_" if address("gemm_bf16bf16f32_") else "sgemm_")
_FLAGS = np.frombuffer(b"NT", np.uint8)


def product(a: Any, a_transposed: Any, b: Any, b_transposed: Any, out: Any) -> Any:
    """out = a b, of contiguous matrices or their transposes; only within compiled code.

    All three are fp32 or fp64, or a and b are bf16 and out is fp32.
    """
    raise NotImplementedError(a, a_transposed, b, b_transposed, out)


@overload(product)
def _(a: Any, a_transposed: Any, b: Any, b_transposed: Any, out: Any) -> Any:
    gemm = _DOUBLE if a.dtype == types.float64 else _SINGLE if a.dtype == types.float32 else _HALF

    def call(a: Any, a_transposed: Any, b: Any, b_transposed: Any, out: Any) -> Any:
        # Fortran reads a matrix by columns, and so finds its transpose: out^T = b^T a^T.
        sizes = np.empty(5, np.int32)
        sizes[0], sizes[1] = out.shape[1], out.shape[0]
        sizes[2] = a.shape[0] if a_transposed else a.shape[1]
        sizes[3], sizes[4] = b.shape[1], a.shape[1]
        # BLAS would read and write beyond the ends.
        if (
            sizes[2] != (b.shape[1] if b_transposed else b.shape[0])
            or sizes[0] != (b.shape[0] if b_transposed else b.shape[1])
            or sizes[1] != (a.shape[1] if a_transposed else a.shape[0])
        ):
            raise ValueError("the sizes of the operands of a product do not match")
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

    return call


@products
def room(rows: Any, columns: Any, like: Any) -> Any:
    """An array [rows, columns] of the dtype of `like`, 64-byte aligned, with anything in it."""
    raw = np.empty(rows * columns + 64 // like.itemsize, like.dtype)
    start = (-raw.ctypes.data % 64) // like.itemsize
    return raw[start : start + rows * columns].reshape(rows, columns)


def exponential(x: Any) -> Any:
    """exp(x), as vector instructions in fp32; only within compiled code."""
    raise NotImplementedError(x)


@overload(exponential, jit_options={"fastmath": {"contract", "nsz"}, **_INLINE})
def _(x: Any) -> Any:
    return _exp_fp32 if x == types.float32 else _exp_fp64


def _exp_fp64(x: Any) -> Any:
    return np.exp(x)


def _exp_fp32(x: Any) -> Any:
    # exp(x) = 2^n exp(r) with |r| <= ln(2) / 2: a polynomial of degree 6 for exp(r), to 2 units in
    # the last place, and 2^n by the bits of its exponent. ln(2) is subtracted in two parts.
    # Conditions, unlike min and max, leave a NaN as it is.
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375)
    r = r + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@loops
def to_bf16(x, out):
    """The bits of each number of x [R, D] rounded to bf16, to nearest, ties to even."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            number = np.float32(x[i, j])
            bits = number.view(np.uint32)
            bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            # A NaN may become infinity by the addition.
            out[i, j] = np.uint32(0x7FC0) if number != number else bits >> np.uint32(16)


def is_on_disk(function: Any) -> bool:
    """Whether code of the present sources, compiled in some earlier process, is kept."""
    return bool(function._cache._cache_file._load_index())


def array(x: Tensor) -> np.ndarray[Any, Any]:
    """The numbers of a contiguous tensor on the CPU, without a copy."""
    return x.detach().numpy()


def require_cpu(op: str, *tensors: Tensor) -> None:
    """Raise ValueError unless the kernels take these tensors."""
    kinds = {(x.dtype, x.device.type) for x in tensors}
    if len(kinds) > 1 or not kinds <= _KINDS:
        given = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(
            f"{op}'s numba implementation takes tensors on the CPU that are all float32 or all "
            f"float64, got {given}; take implementation='reference'"
        )
