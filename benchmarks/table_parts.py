"""What the generated tables share: where results are, and how a machine is named."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def read_result(name: str) -> dict[str, Any]:
    """Read a JSON document of benchmarks/results."""
    document: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return document


def machine_line(machine: dict[str, Any]) -> str:
    """Device, versions, commit and date in one line."""
    return (
        f"{machine['device']}, torch {machine['torch']}, mujoco {machine['mujoco']}, "
        f"commit {machine['commit']}, {machine['date']}."
    )
