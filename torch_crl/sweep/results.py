"""Results of the trials of a sweep, as records, as a file and as a table."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.table import Table

from torch_crl.runs.curves import SCORED_EVALUATIONS, CurveError, read_curve, score
from torch_crl.runs.directory import RunDirectory
from torch_crl.sweep.grid import Trial
from torch_crl.sweep.worker import is_finished
from torch_crl.system.files import read_bytes, write_text
from torch_crl.system.terminal import NameCell


def collect(
    trials: Sequence[Trial], folder: Path, *, failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A record for each trial: its `status` finished, failed or unfinished, and its numbers.

    A failed trial has a `reason`. `score` and `success_any` are means over the last five
    evaluations: of the share of the time at the goal, and of the share of episodes that reached it
    at least once. `seconds` is wall-clock.
    """
    records = []
    for trial in trials:
        run_dir = folder / trial.name
        record: dict[str, Any] = {"trial": trial.name, "status": "unfinished"}
        if is_finished(run_dir):
            record["status"] = "finished"
        elif trial.name in failed:
            record |= {"status": "failed", "reason": failed[trial.name]}
        # A run that has not been evaluated yet has no curve.
        with suppress(CurveError):
            curve = read_curve(run_dir)
            record |= {
                "score": score(curve, "time_at_goal_share"),
                "success_any": score(curve, "success_any"),
                "evaluations": len(curve.env_steps_E),
                "env_steps": int(curve.env_steps_E[-1]),
                "seconds": float(curve.seconds_E[-1]),
            }
        records.append(record)
    return records


def write(records: list[dict[str, Any]], path: Path) -> None:
    """Write the records as JSON; the file is written whole or not at all.

    Records of other trials that the file held before, whose run directories are still there, stand
    after them: a folder may hold the runs of several sweeps.
    """
    others = _others({record["trial"] for record in records}, path)
    write_text(path, json.dumps({"trials": records + others}, indent=2) + "\n")


def _others(names: Collection[str], path: Path) -> list[dict[str, Any]]:
    """Records in the file of runs beside it that have none of these names."""
    try:
        return [
            record
            for record in json.loads(read_bytes(path))["trials"]
            if record["trial"] not in names and _may_hold_run(path.parent / record["trial"])
        ]
    # There is no such file yet, or it is not one of ours.
    except (ValueError, KeyError, TypeError):
        return []


def _may_hold_run(run_dir: Path) -> bool:
    """Whether there is a run, or it cannot be seen now whether there is one."""
    try:
        return RunDirectory(run_dir).holds_run
    except OSError:
        return True


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each trial; one that did not finish shows its status instead of its numbers."""
    found = Table(
        title=f"means of the last (up to) {SCORED_EVALUATIONS} evaluations; score: share of time "
        "at the goal",
        title_justify="left",
    )
    for heading in ("trial", "score", "success_any", "minutes"):
        left = heading == "trial"
        found.add_column(heading, justify="left" if left else "right", no_wrap=not left)
    for record in records:
        if record["status"] == "finished" and "score" in record:
            cells = (f"{record['score']:.3f}", f"{record['success_any']:.3f}")
            found.add_row(NameCell(record["trial"]), *cells, f"{record['seconds'] / 60:.1f}")
        else:
            found.add_row(NameCell(record["trial"]), record["status"], "", "")
    return found
