"""The BLAS that torch computes with, for compiled code. Imports neither numba nor BLAS of its own.

torch's wheels carry a BLAS inside or beside their main library (MKL on x86), whose functions have
the names and arguments of Fortran's.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch

PROCESSORS = Path("/proc/cpuinfo")
"""Where Linux tells of the processors."""


@cache
def address(name: str) -> int | None:
    """Where torch's libraries have the function of this name in memory, if they have it."""
    for library in Path(torch.__file__).parent.joinpath("lib").glob("libtorch_cpu.*"):
        try:
            # Already loaded; its dependencies are searched too.
            function = getattr(ctypes.CDLL(str(library)), name)
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None


def multiplies_bf16() -> bool:
    """Whether this processor and torch's BLAS multiply bf16, with sums in fp32."""
    return address("gemm_bf16bf16f32_") is not None and torch.cpu._is_avx512_bf16_supported()


def leaves_avx512_unused() -> bool:
    """Whether torch's BLAS is an MKL that computes with AVX2 though the processor has AVX-512.

    MKL does so on processors of AMD, unless what it asks for their maker is overridden, as
    docs/performance.md says.
    """
    if not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        of_amd = "AuthenticAMD" in PROCESSORS.read_text()
    except OSError:
        return False
    # What stands before all libraries is found in the process as a whole, what MKL has is not.
    return of_amd and not hasattr(ctypes.CDLL(None), "mkl_serv_intel_cpu_true")
