"""Progress of a sweep on standard error: bars on a terminal, lines of text elsewhere."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from torch_crl.runs.directory import RunDirectory
from torch_crl.sweep.grid import Trial
from torch_crl.system.terminal import console, plain

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_OF_SILENCE = 60.0


class SweepProgress:
    """A progress bar for the sweep, with the time left, and one for every running trial."""

    def __init__(self, folder: Path, *, trials: int, finished: int, show: bool) -> None:
        """`finished` of the `trials` were already finished before this sweep."""
        self._folder, self._trials = folder, trials
        self._finished, self._failed = finished, 0
        self._console = console(stderr=True, quiet=not show)
        on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(compact=True),
            TextColumn("left{task.fields[note]}"),
            console=self._console,
            disable=not (show and on_terminal),
        )
        # Without trials that were finished before: the time left follows from this sweep's speed.
        self._total = self._progress.add_task("sweep", total=trials - finished, note="")
        self._bars: dict[str, TaskID] = {}
        self._done = 0.0
        self._looked_at = self._spoke_at = time.monotonic()

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
            self._spoke_at = time.monotonic()
            self._console.print(plain(line), soft_wrap=True)

    def started(self, trial: Trial) -> None:
        """Show that a worker of this trial was started."""
        self._bars[trial.name] = self._progress.add_task(
            f"  {plain(trial.name)}", total=1.0, note=""
        )
        if self._progress.disable:
            self.announce(f"started   {trial.name}")

    def ended(self, trial: Trial, *, outcome: str) -> None:
        """Show that its worker ended; `outcome` is finished, failed or another word to print."""
        if trial.name in self._bars:
            self._progress.remove_task(self._bars.pop(trial.name))
        self._finished += outcome == "finished"
        self._failed += outcome == "failed"
        self._done += outcome in ("finished", "failed")
        self._looked_at = -_SECONDS_BETWEEN_LOOKS
        failed = f", {self._failed} failed" if self._failed else ""
        self.announce(
            f"{outcome:<9} {trial.name} ({self._finished} of {self._trials} finished{failed})"
        )

    def refresh(self, running: Iterable[Trial]) -> None:
        """Set the bars to what the runs have logged, at most once a second.

        Without a terminal, print a line whenever nothing else was printed for a minute.
        """
        now = time.monotonic()
        since, pause = self._looked_at, _SECONDS_BETWEEN_LOOKS
        if self._progress.disable:
            since, pause = self._spoke_at, _SECONDS_OF_SILENCE
        if now - since < pause:
            return
        self._looked_at = now
        done = self._done
        shares = []
        for trial in running:
            steps = RunDirectory(self._folder / trial.name).logged_env_steps
            share = min(1.0, steps / trial.recipe.total_env_steps)
            self._progress.update(self._bars[trial.name], completed=share)
            done += share
            shares.append(f"{trial.name} {share:.0%}")
        failed = f", {self._failed} failed" if self._failed else ""
        note = f"{self._finished} of {self._trials} finished{failed}"
        self._progress.update(self._total, completed=done, note=f"   {note}")
        if self._progress.disable:
            self.announce(f"{note}; {', '.join(shares)}")
