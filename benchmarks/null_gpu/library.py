"""The library that takes the place of CUDA: how a process runs on it, and what it has recorded."""

import ctypes
import os
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "null_gpu"
"""Where `make rehearse` builds the library and keeps what is compiled for it."""

_NAME = "libcuda.so.1"

PATH = FOLDER / _NAME
"""The library itself."""


def environment(log: Path, startup: Path) -> dict[str, str]:
    """Variables of a process that runs on the null GPU.

    Args:
        log: to this file the library appends every violation of CUDA's rules.
        startup: an empty folder for what Python imports as it starts.
    """
    (startup / "sitecustomize.py").write_text(
        "from torch_crl.benchmarks.null_gpu.values import accept_values\n\naccept_values()\n"
    )
    return os.environ | {
        "LD_PRELOAD": str(PATH),
        "LD_LIBRARY_PATH": str(FOLDER),
        "TRITON_LIBCUDA_PATH": str(FOLDER),
        "TRITON_CACHE_DIR": str(FOLDER / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(FOLDER / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # NCCL asks for more than this library has.
        "TORCH_CRL_RANK_BACKEND": "cuda:gloo,cpu:gloo",
        "NULL_GPU_LOG": str(log),
        "PYTHONPATH": str(startup),
    }


class Books:
    """What the library has recorded in this process, which must run on it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_NAME)
        self._library.null_gpu_counts.restype = ctypes.c_char_p
        self._library.null_gpu_nodes.restype = ctypes.c_char_p

    def counts(self) -> dict[str, int]:
        """Calls by what they did, such as `host waits`, `replays` and `launched`; bytes in use."""
        lines = self._library.null_gpu_counts().decode().splitlines()
        return {what: int(number) for what, number in (line.split("\t") for line in lines)}

    def forget_counts(self) -> None:
        """Count from zero again; the peak of memory is what is in use now."""
        self._library.null_gpu_forget_counts()

    def nodes(self) -> list[str]:
        """The nodes of the newest CUDA graph, in the order in which they were captured."""
        return list(self._library.null_gpu_nodes().decode().splitlines())
