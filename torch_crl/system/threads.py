"""Use of the CPU's cores: physics and updates take turns, and each of them gets all cores."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from torch_crl.errors import UsageError

THREADS = "TORCH_CRL_THREADS"
"""Environment variable: the number of CPUs that a run uses where its recipe says "every CPU"."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, torch computes on `count` CPU threads; afterwards, on as many as before.

    One thread is best while the simulator's threads need the cores: torch's idle threads spin for
    milliseconds after each parallel operation. On two cores that costs the simulator 40 % of its
    speed; making them sleep instead (OMP_WAIT_POLICY=PASSIVE) costs the updates more than that.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cpus() -> int:
    """Number of CPUs to use: TORCH_CRL_THREADS if it is set, else all that this process may use.

    Raises UsageError if TORCH_CRL_THREADS is not a whole number of at least 1.
    """
    if (asked := os.environ.get(THREADS)) is not None:
        if not asked.strip().isdecimal() or int(asked) < 1:
            raise UsageError(
                f"the environment variable {THREADS} must be a whole number of at least 1, got "
                f"{asked!r}; unset it to use every CPU"
            )
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
