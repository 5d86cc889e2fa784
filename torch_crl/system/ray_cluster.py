"""Connecting to Ray, which is an extra: to a cluster, or to one that is started on this machine."""

import importlib.util
import os
from typing import Any

from torch_crl.errors import UsageError
from torch_crl.system.extras import install


def missing_ray(flag: str) -> list[str]:
    """Why this installation cannot use Ray for what the flag asks; empty if it can."""
    if importlib.util.find_spec("ray") is not None:
        return []
    return [f"{flag} needs Ray: {install('study')}"]


def connect(address: str, *, flag: str, cpus: int) -> None:
    """Connect to the cluster at `address`, which `flag` names; if empty, start one with these CPUs.

    Raises UsageError if there is no cluster.
    """
    import ray

    # Keeps Ray's own messages out of ours.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise UsageError(
            f"{flag} {address}: no Ray cluster there ({error}); `ray start --head` starts one, and "
            f"without {flag} one is started on this machine"
        ) from None
