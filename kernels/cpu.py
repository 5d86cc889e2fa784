"""What the kernels for one CPU core share; imported by compiled code only: it imports numba.

Compiled code is kept on disk beside the source, or in the user's cache folder where that is
read-only, so that only the first run waits for the compiler.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core.ccallback import CFunc
from numba.extending import overload
from torch import Tensor

from torch_crl.kernels.blas import leaves_avx512_unused

# A function that is called in several places is compiled for each of them, and LLVM, asked for one
# of these copies by its name, takes whichever the process has loaded first. They differ in the
# order of their sums. So that equal runs do not, all calls are written out: no copy has a name.
_INLINE = {"forceinline": True}
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True}
# Sums may be taken in any order, and products fused with them; a NaN stays a NaN.
_LOOSE = {"contract", "nsz", "arcp", "reassoc"}


def _digest() -> str:
    """Of the content of every file of the kernels, and of what else decides about the code."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    texts = [*(file.read_bytes() for file in files), str(leaves_avx512_unused()).encode()]
    return sha256(b"".join(texts)).hexdigest()


_SOURCES = _digest()


def _of_all_sources(compiled: Any) -> Any:
    # numba would look at the function's own file only, and take code from the disk that calls
    # functions of other files as they were once.
    compiled._cache._cache_file._source_stamp = _SOURCES
    return compiled


def _compiled(function: Any, **options: Any) -> Any:
    return _of_all_sources(njit(cache=True, **_OPTIONS, **_INLINE, **options)(function))


def loops(function: Any) -> Any:
    """Compiles loops over rows, whose sums become vector instructions."""
    return _compiled(function, fastmath=_LOOSE)


def products(function: Any) -> Any:
    """Compiles calls of products and of loops."""
    return _compiled(function)


def callable_by_address(function: Any, signature: Any) -> int:
    """Compiles a function for these arguments of C now; where it is in memory."""
    compiled: Any = CFunc(function, (signature.args, signature.return_type), {}, dict(_OPTIONS))
    compiled.enable_caching()
    _of_all_sources(compiled).compile()
    _KEPT.append(compiled)
    return int(compiled.address)


# Nothing else keeps their code in memory.
_KEPT: list[CFunc] = []
_KINDS = {(torch.float32, "cpu"), (torch.float64, "cpu")}


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
