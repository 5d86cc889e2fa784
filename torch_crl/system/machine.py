"""The machine that a measurement was made on, and the versions it was made with."""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_crl import __version__

if TYPE_CHECKING:
    import torch

_ROOT = Path(__file__).resolve().parents[2]


def machine(device: "torch.device | None" = None) -> dict[str, Any]:
    """Device, versions of what computes, commit and date.

    `device` is what was computed on; if not given, all that the machine has is named. What cannot
    be found out is None, or empty for the commit: a description never ends what it describes.
    """
    import mujoco
    import torch

    parts = [f"{os.cpu_count()} cores, {platform.machine()}"]
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


def _gpu_name(device: "torch.device | None") -> str:
    import torch

    try:
        return torch.cuda.get_device_name(device)
    # A driver that is half there raises whatever it likes.
    except Exception:
        return "CUDA device of unknown name"


def _commit() -> str:
    # An installed copy may lie within the repository of somebody's own project.
    if not (_ROOT / ".git").exists():
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    # There may be no git, or one that waits for a file system.
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    # Files of a half removed package are missing in more than one way.
    except Exception:
        return None
