"""What the trials of a sweep reached, as records, a file and a table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from torch_crl.metrics import read_metrics
from torch_crl.study.grid import Trial
from torch_crl.study.worker import is_finished

# The published single-number score is the mean of the last five evaluations.
_LAST = 5


def collect(
    trials: Sequence[Trial], folder: Path, *, failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A record a trial: `status` finished, failed (with `reason`) or unfinished, and its numbers.

    `score` and `success_any` are means over the last five evaluations, of the share of the time
    at the goal and of the episodes that were there at least once; `seconds` is wall-clock.
    """
    records = []
    for trial in trials:
        run_dir = folder / trial.name
        record: dict[str, Any] = {"trial": trial.name, "status": "unfinished"}
        if is_finished(run_dir):
            record["status"] = "finished"
        elif trial.name in failed:
            record |= {"status": "failed", "reason": failed[trial.name]}
        evaluations = read_metrics(run_dir, "evaluation")
        if evaluations:
            last = evaluations[-_LAST:]
            record |= {
                "score": _mean(last, "time_at_goal_share"),
                "success_any": _mean(last, "success_any"),
                "evaluations": len(evaluations),
                "env_steps": evaluations[-1]["env_steps"],
                "seconds": evaluations[-1]["seconds"],
            }
        records.append(record)
    return records


def write(records: list[dict[str, Any]], path: Path) -> None:
    """JSON, written aside and renamed."""
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps({"trials": records}, indent=2) + "\n")
    aside.replace(path)


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """A row a trial; what did not finish says so instead of its numbers."""
    found = Table(
        title="mean of the last five evaluations; score: share of the time at the goal",
        title_justify="left",
    )
    for heading in ("trial", "score", "success_any", "minutes"):
        left = heading == "trial"
        found.add_column(heading, justify="left" if left else "right", overflow="fold")
    for record in records:
        if record["status"] == "finished":
            cells = (f"{record['score']:.3f}", f"{record['success_any']:.3f}")
            found.add_row(record["trial"], *cells, f"{record['seconds'] / 60:.1f}")
        else:
            found.add_row(record["trial"], record["status"], "", "")
    return found


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(record[name]) for record in records) / len(records)
