"""The generated tables of what was measured on GPUs."""

from typing import Any

from torch_crl.benchmarks.scenario import Row, unusual
from torch_crl.benchmarks.table_parts import RESULTS, machine_line, read_result


def gpu_table() -> str:
    """Updates of the usual sizes, ours and the peers', and floors, in every gpu_*.json."""
    lines = [
        "| commit | depth | by | computed | ms (20 to 80 %) | times ours | TFLOP/s | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    machines = []
    for document in _documents():
        machines.append(machine_line(document["machine"]))
        rows = [
            row
            for row in document["rows"]
            if row["kind"] in ("update", "floor", "baseline") and "ms_p50" in row
            if row["implementation"] != "ours" or not unusual(row)
        ]
        ours = _ours(rows)
        rows.sort(key=lambda row: row["depth"])
        lines += [_line(row, ours, document["machine"]["commit"]) for row in rows]
    return "\n".join([*lines, "", *machines])


def _documents() -> list[dict[str, Any]]:
    return [read_result(path.name) for path in sorted(RESULTS.glob("gpu_*.json"))]


def _ours(rows: list[Row]) -> dict[int, float]:
    """Depth to the time of our update of usual sizes."""
    return {
        row["depth"]: row["ms_p50"]
        for row in rows
        if (row["kind"], row.get("implementation")) == ("update", "ours") and not unusual(row)
    }


def _line(row: Row, ours: dict[int, float], commit: str) -> str:
    by = "floor" if row["kind"] == "floor" else row["implementation"]
    cells = [
        *(commit, row["depth"], by, row["compute"]),
        f"{row['ms_p50']:.3g} ({row['ms_p20']:.3g} to {row['ms_p80']:.3g})",
        f"{row['ms_p50'] / ours[row['depth']]:.2g}",
        f"{row['tflop_per_second']:.3g}" if "tflop_per_second" in row else "",
        f"{row['peak_gb']:.2g}" if row.get("peak_gb") and by != "floor" else "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def gpu_changes_table() -> str:
    """Our updates with other objectives, sizes and settings, in every gpu_*.json."""
    lines = [
        "| commit | depth | changed | computed | ms | times the usual | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for document in _documents():
        ours = _ours(document["rows"])
        for row in document["rows"]:
            changes = unusual(row)
            if row["kind"] != "update" or row.get("implementation") != "ours" or not changes:
                continue
            cells = [
                *(document["machine"]["commit"], row["depth"]),
                ", ".join(f"{name} {value}" for name, value in changes.items()),
                *(row["compute"], f"{row['ms_p50']:.3g}"),
                f"{row['ms_p50'] / ours[row['depth']]:.2f}",
                f"{row['peak_gb']:.2g}",
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
