"""What the kernels for one CPU core share; imported by the `cpu.py` files only: it imports numba.

Importing it limits BLAS to one thread in this process, since threads of its own beside torch's
would wait for each other.

Compiled code is kept on disk beside the source, or in the user's cache folder where that is
read-only, so that only the first run waits for the compiler.
"""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  # loads the BLAS of numba's products, to limit it
import torch
from numba import njit, types
from numba.extending import overload
from threadpoolctl import threadpool_limits
from torch import Tensor

threadpool_limits(limits=1, user_api="blas")

# Sums may be taken in any order, and products fused with them; a NaN stays a NaN.
_LOOSE = {"contract", "nsz", "arcp", "reassoc"}
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}
loops = njit(fastmath=_LOOSE, **_OPTIONS)
"""Compiles loops over rows, whose sums become vector instructions."""
products = njit(**_OPTIONS)
"""Compiles calls of BLAS and of loops."""
_KINDS = {(torch.float32, "cpu"), (torch.float64, "cpu")}


def exponential(x: Any) -> Any:
    """exp(x), as vector instructions in fp32; only within compiled code."""
    raise NotImplementedError(x)


@overload(exponential, jit_options={"fastmath": {"contract", "nsz"}})
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


def is_on_disk(function: Any) -> bool:
    """Whether code that was compiled from this function's file in some earlier process is kept."""
    folder = Path(function.stats.cache_path)
    code = function.py_func.__code__
    name = f"{Path(code.co_filename).stem}.{function.py_func.__qualname__}-{code.co_firstlineno}"
    return any(folder.glob(f"{name}.*.nbi"))


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
