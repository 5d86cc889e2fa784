"""What the campaigns share: a run of a second, in a process that may be killed, and its outcome."""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.recipes import tiny
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.system import checkpoint
from torch_crl.training.trainer import train

WALL_CLOCK = {"seconds", "collected_steps_per_second", "updates_per_second"} | {
    "collect_seconds_median",
    "collect_seconds_slowest",
}


def short_recipe() -> Recipe:
    """Ants that fall and begin again, in a replay that wraps; three checkpoints, so that old ones
    are removed, and an evaluation at each.
    """
    budget = {"env_steps": 400, "checkpoints": 3, "evaluations": 3, "replay_rows": 16}
    system = {"device": "cpu", "torch_threads": 1, "simulator_threads": 1}
    task = {"num_envs": 4, "episode_length": 12}
    return tiny("ant", task=task, budget=budget, system=system)


def bring_to_an_end(run_dir: Path) -> None:
    """Start the run, or resume it where one was begun, as a user would."""
    train(short_recipe(), run_dir, resume=RunDirectory(run_dir).holds_run, show=False)


def in_child(work: Callable[[], object]) -> int:
    """Do the work in a fork of this process, which has imported everything; its exit status.

    Negative for the signal that ended it, as in `subprocess`.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            work()
            status = 0
        finally:
            # Not sys.exit: what the parent has open is the parent's to close.
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(run_dir: Path) -> dict[str, Any]:
    """All files of a run with what they say, but for wall-clock and what pictures look like."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*")):
        name = str(path.relative_to(run_dir))
        if path.is_dir() or name.startswith("tensorboard/"):
            continue
        found[name] = None
        if path.name == "metrics.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == checkpoint.META:
            found[name] = _timeless(json.loads(path.read_text())["meta"])
        elif path.name in ("recipe.json", "result.json"):
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The first file in which two outcomes differ; empty if none."""
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            return f"{name} is in one of them only"
        if ours[name] != theirs[name]:
            return f"{name} differs"
    return ""


def try_every_point(
    whole_run: Callable[[Path], tuple[int, dict[str, Any]]],
    lost_at: Callable[[int, Path, dict[str, Any]], str],
    *,
    what: str,
) -> None:
    """Every point of a run, or with --every N each N-th; ends with status 1 if any loses something.

    `whole_run` tells how many points there are and what the run leaves, `lost_at` what a run that
    was ended at one of them has lost.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    every = parser.parse_args().every
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total, whole = whole_run(folder)
        points = range(1, total + 1, every)
        lost = {point: lost_at(point, folder, whole) for point in points}
    lost = {point: told for point, told in lost.items() if told}
    for point, told in lost.items():
        print(f"{what} {point} of {total}: {told}")
    print(f"{what} 1 to {total}, {len(points)} tried: {len(lost)} lost something")
    sys.exit(bool(lost))


def _timeless(record: Any) -> Any:
    if not isinstance(record, dict):
        return record
    return {name: _timeless(value) for name, value in record.items() if name not in WALL_CLOCK}
