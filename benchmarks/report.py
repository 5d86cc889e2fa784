"""What every benchmark leaves behind: its rows, and what they were measured on and with."""

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
    """The rows and the machine as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
