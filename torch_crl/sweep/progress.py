"""What a sweep shows on standard error: bars on a terminal, lines elsewhere."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from torch_crl.runs.directory import RunDirectory
from torch_crl.sweep.grid import Trial

_SECONDS_BETWEEN_LOOKS = 1.0
_TAIL_BYTES = 4096


class SweepProgress:
    """A bar for the sweep, with the time left, and one for every trial that runs."""

    def __init__(self, folder: Path, *, trials: int, finished: int, show: bool) -> None:
        """`finished` of the `trials` were so before."""
        self._folder, self._trials = folder, trials
        self._finished, self._failed = finished, 0
        self._console = Console(stderr=True, quiet=not show, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(compact=True),
            TextColumn("left{task.fields[note]}"),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        # Only what is done now says how long the rest takes.
        self._total = self._progress.add_task("sweep", total=trials - finished, note="")
        self._bars: dict[str, TaskID] = {}
        self._done = 0.0
        self._looked_at = 0.0

    def __enter__(self) -> Self:
        """Start the display."""
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()

    def announce(self, *lines: str) -> None:
        """Show lines above the bars."""
        for line in lines:
            self._console.print(line, soft_wrap=True, markup=False)

    def started(self, trial: Trial) -> None:
        """A worker of this trial runs."""
        self._bars[trial.name] = self._progress.add_task(f"  {trial.name}", total=1.0, note="")
        if not self._console.is_terminal:
            self.announce(f"started   {trial.name}")

    def ended(self, trial: Trial, *, outcome: str) -> None:
        """Its worker has ended; `outcome` is finished, failed or another word for the line."""
        self._progress.remove_task(self._bars.pop(trial.name))
        self._finished += outcome == "finished"
        self._failed += outcome == "failed"
        self._done += outcome in ("finished", "failed")
        self._looked_at = 0.0
        failed = f", {self._failed} failed" if self._failed else ""
        self.announce(
            f"{outcome:<9} {trial.name} ({self._finished} of {self._trials} finished{failed})"
        )

    def look(self, running: Iterable[Trial]) -> None:
        """Move the bars to what the runs have logged, at most once a second."""
        if self._progress.disable or time.monotonic() - self._looked_at < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked_at = time.monotonic()
        done = self._done
        for trial in running:
            steps = logged_env_steps(self._folder / trial.name)
            share = min(1.0, steps / trial.recipe.total_env_steps)
            self._progress.update(self._bars[trial.name], completed=share)
            done += share
        failed = f", {self._failed} failed" if self._failed else ""
        note = f"   {self._finished} of {self._trials} finished{failed}"
        self._progress.update(self._total, completed=done, note=note)


def logged_env_steps(run_dir: Path) -> int:
    """Env steps of the last whole record in a run's metrics.jsonl; 0 before the first."""
    try:
        with RunDirectory(run_dir).metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    # What follows the last newline is half a line, and so may be the first.
    for line in reversed(lines[:-1]):
        try:
            return int(json.loads(line)["env_steps"])
        except ValueError:
            continue
    return 0
