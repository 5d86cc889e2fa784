"""What the kernels for one CPU core share; imported by compiled code only: it imports numba.

Compiled code is kept on disk beside the source, or in the user's cache folder where that is
read-only, so that only the first run waits for the compiler. Arrays are copied by loops: into a
slice, numba would compile the text of an error for other sizes as well, which takes seconds.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core import event
from numba.core.ccallback import CFunc
from numba.extending import overload
from torch import Tensor

from torch_crl.kernels.blas import leaves_avx512_unused

# A function that is called in several places is compiled for each of them, and LLVM, asked for one
# of these copies by its name, takes whichever the process has loaded first. They differ in the
# order of their sums. So that equal runs do not, all calls are written out: no copy has a name.
_INLINE = {"forceinline": True, "no_cfunc_wrapper": True}
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True}
# Sums may be taken in any order, and products fused with them; a NaN stays a NaN.
_LOOSE = {"contract", "nsz", "arcp", "reassoc"}


def _digest() -> str:
    """Of the content of every file of the kernels, and of what else decides about the code."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    texts = [*(file.read_bytes() for file in files), str(leaves_avx512_unused()).encode()]
    return sha256(b"".join(texts)).hexdigest()


_SOURCES = _digest()


def _kept_on_disk(compiled: Any) -> Any:
    """Lets a function keep its code; where that is not possible it is compiled in every process."""
    try:
        compiled.enable_caching()
    except RuntimeError:
        # No folder for it can be written to.
        return compiled
    # numba would look at the function's own file only, and take code from the disk that calls
    # functions of other files as they were once.
    compiled._cache._cache_file._source_stamp = _SOURCES
    save = compiled._cache.save_overload

    def save_if_there_is_room(*overload: Any) -> None:
        with suppress(OSError):
            save(*overload)

    compiled._cache.save_overload = save_if_there_is_room
    return compiled


def _within(function: Any, **options: Any) -> Any:
    """A stand-in for the function that compiled code can call; Python's way in is left out."""

    @wraps(function)
    def stand_in(*_: Any) -> Any:
        raise NotImplementedError(f"only compiled code calls {function.__name__}; see `entry`")

    options = {**_OPTIONS, **_INLINE, **options}
    stand_in.__dict__.update(function=function, options=options)
    overload(stand_in, jit_options=options, strict=False)(lambda *_: function)
    return stand_in


def loops(function: Any) -> Any:
    """Loops over rows, whose sums become vector instructions, for compiled code to call."""
    return _within(function, fastmath=_LOOSE)


def products(function: Any) -> Any:
    """Calls of products and of loops, for compiled code to call."""
    return _within(function)


def entry(within: Any) -> Any:
    """Compiles what `loops` or `products` gave for Python to call too, and keeps it on disk."""
    return _kept_on_disk(njit(**within.options)(within.function))


def callable_by_address(function: Any, signature: Any) -> int:
    """Compiles a function for these arguments of C now; where it is in memory."""
    compiled: Any = CFunc(function, (signature.args, signature.return_type), {}, dict(_OPTIONS))
    _kept_on_disk(compiled).compile()
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


def exp_minus(x: Any) -> Any:
    """exp(-x), as vector instructions in fp32; only within compiled code."""
    raise NotImplementedError(x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent, as vector instructions in fp32; only within compiled code."""
    raise NotImplementedError(x)


# Their sums keep the order in which they are written.
_EXACT: dict[str, Any] = {"fastmath": {"contract", "nsz"}, **_INLINE}


@overload(exp_minus, jit_options=_EXACT)
def _(x: Any) -> Any:
    return _exp_minus_fp32 if x == types.float32 else _exp_minus_fp64


@overload(tanh, jit_options=_EXACT)
def _(x: Any) -> Any:
    return _tanh_fp32 if x == types.float32 else _tanh_fp64


def _exp_minus_fp64(x: Any) -> Any:
    return np.exp(-x)


def _tanh_fp64(x: Any) -> Any:
    return np.tanh(x)


def _exp_minus_fp32(x: Any) -> Any:
    # exp(-x) = 2^n exp(-r) with |r| <= ln(2) / 2: a polynomial of degree 6 for exp(-r), and 2^n by
    # the bits of its exponent. ln(2) is added in two parts. Of a number and not of its negative,
    # the conditions are the processor's own min and max; unlike Python's they leave a NaN as it is.
    x = np.float32(-88.0) if x < np.float32(-88.0) else x
    x = np.float32(87.0) if x > np.float32(87.0) else x
    n = np.floor(np.float32(0.5) - x * np.float32(1.44269504))
    r = x + n * np.float32(0.693359375)
    r = r - n * np.float32(2.12194440e-4)
    p = r * np.float32(1.38638e-3) - np.float32(8.36748e-3)
    p = p * r + np.float32(4.166724e-2)
    p = p * r - np.float32(1.6666534e-1)
    p = p * r + np.float32(0.5)
    p = p * r - np.float32(1.0)
    p = p * r + np.float32(1.0)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


def _tanh_fp32(x: Any) -> Any:
    # 1 - 2 s / (1 + s), with s = exp(-2 |x|), cancels near zero. The polynomial there is that of
    # squashed_gaussian's kernel for GPUs, and so is the treatment of NaN.
    one, two, size, square = np.float32(1.0), np.float32(2.0), abs(x), x * x
    p = np.float32(0.0207959724) - np.float32(0.00589515885) * square
    p = p * square - np.float32(0.0537838305)
    p = p * square + np.float32(0.133319241)
    p = p * square - np.float32(0.33333298)
    small = exp_minus(two * size)
    far = one - two * small / (one + small)
    far = -far if x < np.float32(0.0) else far
    return x + x * square * p if size < np.float32(0.6) else far


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


class _First(event.Listener):  # type: ignore[misc]
    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call

    def on_start(self, event: Any) -> None:
        # Other libraries in this process compile too.
        if self._call and event.data["dispatcher"].py_func.__module__.startswith(__package__ or ""):
            call, self._call = self._call, None
            call()

    def on_end(self, _: Any) -> None:
        pass


def when_compiling(call: Callable[[], object]) -> AbstractContextManager[object]:
    """Within it, `call` is called once, before the first function that is not read from disk."""
    manager: AbstractContextManager[object] = event.install_listener("numba:compile", _First(call))
    return manager


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
