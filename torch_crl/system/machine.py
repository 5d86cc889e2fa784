"""The machine and the software versions with which a measurement was made."""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_crl import __version__
from torch_crl.system.files import exists

if TYPE_CHECKING:
    import torch

PROCESSORS = Path("/proc/cpuinfo")
"""Where Linux tells of the processors."""
_ROOT = Path(__file__).resolve().parents[2]

_QUIET = 0.5
"""A larger load average before a measurement is told."""


def busy() -> list[str]:
    """A line for the user if other processes slow down what is measured on this machine.

    To be asked before measuring, which is a load too.
    """
    try:
        load = os.getloadavg()[0]
    # Not every system tells it.
    except (AttributeError, OSError):
        return []
    told = f"the load average is {load:.1f}; what else runs here makes times longer"
    return [told] if load > _QUIET else []


def machine(device: "torch.device | None" = None) -> dict[str, Any]:
    """Device, versions of the libraries that compute, commit and date.

    `device` is the device that was used; without it, all devices of the machine are named. What
    cannot be found out is None, or empty for the commit, and never an error.
    """
    import mujoco
    import torch

    parts = [f"{os.cpu_count()} cores, {_processor()}"]
    if device.type == "cuda" if device else torch.cuda.is_available():
        parts.insert(0, _gpu_name(device))
    return {
        "device": ", ".join(parts),
        "triton": _version("triton"),
        "jax": _version("jax"),
        "torch": torch.__version__,
        "mujoco": mujoco.__version__,
        "torch_crl": __version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    """Name of the processor as Linux tells it, else its architecture: makers differ in speed.

    Some virtual machines hide the number of the type; family and model of x86 tell it all the same.
    """
    try:
        lines = PROCESSORS.read_text().splitlines()
    except OSError:
        return platform.machine()
    pairs = (line.partition(":")[::2] for line in lines)
    # The first processor is named; all of a machine are alike.
    facts = {name.strip(): value.strip() for name, value in reversed(list(pairs))}
    name = facts.get("model name", "")
    if name and "cpu family" in facts and not any(map(str.isdigit, name)):
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return name or platform.machine()


def _gpu_name(device: "torch.device | None") -> str:
    import torch

    try:
        return torch.cuda.get_device_name(device)
    # An incomplete driver may raise any exception.
    except Exception:
        return "CUDA device of unknown name"


def _commit() -> str:
    # An installed copy may lie within the git repository of another project.
    if not exists(_ROOT / ".git"):
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    # git may be missing, or may wait for a file system.
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    # A package that was removed incompletely may raise different exceptions.
    except Exception:
        return None
