"""What every benchmark leaves behind: its rows, and what they were measured on and with."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import mujoco
import torch

from torch_crl import __version__


def report(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print one line of JSON, the last of standard output, and write it to `out` if given."""
    document = {"machine": machine(), "rows": rows}
    print(json.dumps(document), flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "device": f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "mujoco": mujoco.__version__,
        "torch_crl": __version__,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }
