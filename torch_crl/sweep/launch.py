"""How the runs of a sweep, a comparison or a study are spread over a machine or a cluster."""

from dataclasses import dataclass
from typing import Literal

from torch_crl.fields import STRICT, Count, CountOrZero


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Where runs are started, how many at a time, and what each of them may use."""

    __pydantic_config__ = STRICT

    launcher: Literal["local", "ray"] = "local"
    """`local` starts processes on this machine; `ray` starts tasks of a Ray cluster, all of whose
    nodes must see the same file system."""
    address: str = ""
    """Address of the Ray cluster, or `auto`; if empty, a cluster is started on this machine."""
    parallel: CountOrZero = 0
    """Runs at a time. 0 means as many as the GPUs take, or one without a GPU; with Ray as many as
    the cluster has room for."""
    cpus_per_run: CountOrZero = 0
    """CPUs of each run. 0 shares the CPUs evenly among the runs; with Ray it means one."""
    runs_per_gpu: Count = 1
    """How many runs share a GPU."""
    retries: CountOrZero = 1
    """How often a failed run is started again."""


ONE_MACHINE = Launch()
