"""Wall-clock time of a run, and its speed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch_crl.runs.metrics import RunLog
from torch_crl.training.run import Run

_SECONDS_BETWEEN_DISPLAYS = 0.05


class Clock:
    """Wall-clock time of a run over all its sessions, and the rates of its newest collection."""

    def __init__(self, run: Run) -> None:
        """The clock starts at the run's `seconds`."""
        self._run = run
        self._begin = time.perf_counter() - run.seconds
        self._collect_rate = self._update_rate = 0.0
        self._updates_begin: tuple[float, int] | None = None
        self._first_update = run.updates_done + 1
        self._shown_phase, self._shown_at = "", 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sessions."""
        return time.perf_counter() - self._begin

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Context around one collection, which measures its rate."""
        begin = time.perf_counter()
        yield
        self._collect_rate = self._run.recipe.steps_per_collection / (time.perf_counter() - begin)

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Context around the updates after a collection, which measures their rate."""
        begin, before = self._updates_begin = (time.perf_counter(), self._run.updates_done)
        yield
        self._update_rate = self._present_update_rate()
        if not self._update_rate:
            # A round of a single update, and the first one.
            done = self._run.updates_done - before
            self._update_rate = done / (time.perf_counter() - begin)
        self._updates_begin = None

    def show(self, phase: str, log: RunLog) -> None:
        """Refresh the display of progress, unless it showed this phase a moment ago."""
        now, run = time.perf_counter(), self._run
        # The first update of a session may compile and capture; it tells nothing about the others.
        if self._updates_begin and run.updates_done == self._first_update:
            self._updates_begin = now, run.updates_done
            return
        # Drawing takes as long as launching a small update.
        if phase == self._shown_phase and now - self._shown_at < _SECONDS_BETWEEN_DISPLAYS:
            return
        self._shown_phase, self._shown_at = phase, now
        log.progress(
            phase,
            completed=run.progress,
            updates=run.updates_done,
            seconds=self.seconds,
            rates=self.rates(),
        )

    def rates(self) -> dict[str, float]:
        """Rates of collecting and updating; inside `updating`, the rate of the updates so far.

        0 before there is any; the first update of a session counts only in a round of its own.
        """
        return {
            "collected_steps_per_second": self._collect_rate,
            "updates_per_second": self._present_update_rate(),
        }

    def _present_update_rate(self) -> float:
        if self._updates_begin is None:
            return self._update_rate
        begin, before = self._updates_begin
        done = self._run.updates_done - before
        return done / (time.perf_counter() - begin) if done else self._update_rate
