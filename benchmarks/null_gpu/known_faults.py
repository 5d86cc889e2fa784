"""Faults made on purpose: a rehearsal that does not notice these is worth nothing.

`python -m torch_crl.benchmarks.null_gpu.known_faults`, on the null GPU only. The exit status is 1
if a fault was not noticed.
"""

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from torch_crl.benchmarks.null_gpu.library import Books


def _wait(_: Tensor) -> None:
    torch.cuda.synchronize()


def _fork(x: Tensor) -> None:
    """Work on another stream that nothing waits for."""
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        x.mul_(2)


def _outside(_: Tensor) -> None:
    """Wait for a stream that is not part of the capture."""
    torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())


FAULTS: dict[str, Callable[[Tensor], object]] = {
    "a number is read": lambda x: x.sum().item(),
    "the device is awaited": _wait,
    "work is forked and not joined": _fork,
    "a stream outside is awaited": _outside,
}
"""What nobody may do while a stream captures."""


def _is_noticed(fault: Callable[[Tensor], object], books: Books) -> bool:
    before = books.counts().get("violations", 0)
    x = torch.zeros(4, device="cuda")
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
            x.add_(1)
            fault(x)
    except RuntimeError:
        # As on a GPU: the fault itself, or that the capture could not be ended.
        return books.counts().get("violations", 0) > before
    return False


def main() -> int:
    """Make the faults; the exit status is 1 if one was not noticed."""
    # These violations belong here.
    os.environ["NULL_GPU_LOG"] = os.devnull
    books = Books()
    missed = [name for name, fault in FAULTS.items() if not _is_noticed(fault, books)]
    before = books.counts().get("host waits", 0)
    torch.zeros(4, device="cuda").sum().item()
    if books.counts().get("host waits", 0) == before:
        missed.append("a number is read outside of a capture: no host wait was counted")
    print(
        f"{len(FAULTS) + 1 - len(missed)} of {len(FAULTS) + 1} noticed", *missed, sep="; missed: "
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
