"""What every benchmark leaves behind: its rows, and what they were measured on and with."""

import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import mujoco
import torch

from torch_crl import __version__


def report(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print one line of JSON, the last of standard output, and write it to `out` if given."""
    print(json.dumps({"machine": machine(), "rows": rows}), flush=True)
    if out:
        write_report(rows, out)


def write_report(rows: list[dict[str, Any]], out: Path) -> None:
    """The rows and the machine as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
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
