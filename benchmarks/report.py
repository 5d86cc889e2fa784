"""The output of every benchmark: its rows, with the machine and the versions that gave them."""

import json
from pathlib import Path
from typing import Any

from torch_crl.system.machine import machine


def report(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print one line of JSON, the last of standard output, and write it to `out` if given."""
    print(json.dumps({"machine": machine(), "rows": rows}), flush=True)
    if out:
        write_report(rows, out)


def write_report(rows: list[dict[str, Any]], out: Path) -> None:
    """Write the rows and the machine as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
