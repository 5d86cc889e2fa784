"""How the runs of a sweep, a comparison or a study are spread over a machine or a cluster."""

from dataclasses import dataclass
from typing import Literal

from torch_crl.fields import STRICT, Count, CountOrZero


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Where runs are started, how many at a time, and what each of them may use."""

    __pydantic_config__ = STRICT

    launcher: Literal["local", "ray"] = "local"
    """`local` starts processes on this machine; `ray` starts tasks on a Ray cluster.
    All nodes of the cluster must see the same file system."""
    address: str = ""
    """Address of the Ray cluster, or `auto`; if empty, a cluster is started on this machine."""
    parallel: CountOrZero = 0
    """Number of runs at a time. 0 means as many as the GPUs have room for, or one without a GPU.
    With Ray, 0 means as many as the cluster has room for."""
    cpus_per_run: CountOrZero = 0
    """CPUs for each run. 0 divides all CPUs evenly among the parallel runs; with Ray, 0 means 1."""
    runs_per_gpu: Count = 1
    """How many runs share a GPU."""
    retries: CountOrZero = 1
    """How many times a failed run is started again."""


ONE_MACHINE = Launch()
