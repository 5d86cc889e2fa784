"""What a measurement was made on and with."""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from torch_crl import __version__


def machine() -> dict[str, Any]:
    """Device, versions of what computes, commit (empty without git) and date."""
    import mujoco
    import torch

    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    device = f"{os.cpu_count()} cores, {platform.machine()}"
    if torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name()}, {device}"
    return {
        "device": device,
        "triton": _version("triton"),
        "jax": _version("jax"),
        "torch": torch.__version__,
        "mujoco": mujoco.__version__,
        "torch_crl": __version__,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
