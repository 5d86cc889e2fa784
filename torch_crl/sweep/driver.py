"""Runs trials in processes, here or on a cluster; resumes them, retries and reports failures.

Only the run directories record what is done: a sweep that is started again, however it ended,
runs the trials that have no result.json and no others.
"""

import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch_crl.errors import UsageError, listed
from torch_crl.fields import check
from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.record import Recipe
from torch_crl.sweep.grid import Trial, check_trials
from torch_crl.sweep.launch import ONE_MACHINE, Launch
from torch_crl.sweep.launchers import Job, Launcher, local_launcher
from torch_crl.sweep.progress import SweepProgress
from torch_crl.sweep.ray_launcher import ray_launcher
from torch_crl.sweep.results import collect, write
from torch_crl.sweep.worker import is_finished, log_of, other_run_in
from torch_crl.system.files import DamagedFileError, exists, read_end
from torch_crl.system.ray_cluster import missing_ray
from torch_crl.system.stopping import StopSignals

RESULTS = "results.json"
_SECONDS_BETWEEN_LOOKS = 0.1
_TOLD_LINES, _TOLD_BYTES = 8, 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """How the trials of a sweep ended."""

    finished: tuple[Path, ...]
    """Run directories, in the order of the trials."""
    failed: dict[str, str]
    """Name of each trial that failed after all its retries, to the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attempt:
    trial: Trial
    number: int
    job: Job
    log_begin: int
    """Size of the log in bytes when this attempt started; earlier attempts wrote that part."""


def run_trials(
    trials: Sequence[Trial],
    folder: str | Path,
    *,
    launch: Launch = ONE_MACHINE,
    launcher: Launcher | None = None,
    show: bool = True,
) -> SweepResult:
    """Train every trial to its end in FOLDER/<name>, with its output in FOLDER/<name>.log.

    Finished trials are left alone. Unfinished ones are resumed if their algorithm allows it, else
    started again. The results of all trials are written to FOLDER/results.json, beside those of
    other trials that are there already.

    Args:
        launch: where the runs are started, how many at a time, and how often a failed one again.
        launcher: starts the workers in place of the one that `launch` names.
        show: whether to show progress on standard error.

    Raises:
        UsageError: a value of `launch` is out of its range.
        RecipeError: every problem of every trial and its directory, before anything is started.
        KeyboardInterrupt, SystemExit: after Ctrl-C or a termination signal, once the workers have
            saved what can be saved and exited.
    """
    if problems := check(Launch, asdict(launch)):
        raise UsageError(f"launch: {listed([str(problem) for problem in problems])}")
    folder = Path(folder).absolute()
    check_plan(trials, folder, with_ray=launcher is None and launch.launcher == "ray")
    unfinished = [trial for trial in trials if not is_finished(folder / trial.name)]
    if launcher is None:
        launcher = _launcher(launch, [trial.recipe for trial in unfinished])
    folder.mkdir(parents=True, exist_ok=True)
    progress = SweepProgress(
        folder, trials=len(trials), finished=len(trials) - len(unfinished), show=show
    )
    sweep = _Sweep(folder=folder, launcher=launcher, retries=launch.retries, progress=progress)
    try:
        with closing(launcher), progress, StopSignals(progress.announce) as stop:
            sweep.run(unfinished, stop)
            if stop.requested:
                progress.announce("stopped; the same command goes on from here")
                stop.leave()
    finally:
        try:
            write(collect(trials, folder, failed=sweep.failed), folder / RESULTS)
        # The run directories hold everything that is in this file.
        except OSError as error:
            progress.announce(f"warning: {folder / RESULTS} cannot be written ({error.strerror})")
    finished = [folder / trial.name for trial in trials if trial.name not in sweep.failed]
    return SweepResult(finished=tuple(finished), failed=sweep.failed)


def _launcher(launch: Launch, recipes: Sequence[Recipe]) -> Launcher:
    # A cluster is not started if there is nothing to run.
    if launch.launcher == "ray" and recipes:
        return ray_launcher(
            recipes,
            parallel=launch.parallel,
            cpus_per_run=launch.cpus_per_run,
            runs_per_gpu=launch.runs_per_gpu,
            address=launch.address,
        )
    return local_launcher(
        recipes,
        parallel=launch.parallel,
        cpus_per_run=launch.cpus_per_run,
        runs_per_gpu=launch.runs_per_gpu,
    )


def check_plan(trials: Sequence[Trial], folder: Path, *, with_ray: bool) -> None:
    """Raise RecipeError, before anything is started, with all reasons why trials cannot be run.

    Reasons are problems of a recipe, a run directory that holds something else, and missing Ray.
    """
    check_trials(trials)
    found = [(trial.name, other_run_in(folder / trial.name, trial.recipe)) for trial in trials]
    problems = [f"{name}: {problem}" for name, problem in found if problem]
    if problems := problems + (missing_ray("--launcher ray") if with_ray else []):
        raise RecipeError(problems)


@dataclass(kw_only=True)
class _Sweep:
    """The loop that starts waiting trials and handles the end of running ones."""

    folder: Path
    launcher: Launcher
    retries: int
    progress: SweepProgress
    failed: dict[str, str] = field(default_factory=dict)
    _waiting: deque[tuple[Trial, int]] = field(default_factory=deque)
    _running: list[_Attempt] = field(default_factory=list)

    def run(self, trials: Sequence[Trial], stop: StopSignals) -> None:
        """Run until all trials have ended or, once a stop is requested, all workers have exited."""
        self._waiting.extend((trial, 1) for trial in trials)
        asked_to_stop = False
        try:
            while self._running or (self._waiting and not stop.requested):
                if stop.requested and not asked_to_stop:
                    asked_to_stop = True
                    for attempt in self._running:
                        attempt.job.stop()
                while not stop.requested and self._has_room():
                    self._start(*self._waiting.popleft())
                for attempt in list(self._running):
                    status = attempt.job.status()
                    if status is not None:
                        self._running.remove(attempt)
                        self._end(attempt, status, stopped=stop.requested)
                self.progress.refresh(attempt.trial for attempt in self._running)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            for attempt in self._running:
                attempt.job.kill()

    def _has_room(self) -> bool:
        return bool(self._waiting) and len(self._running) < self.launcher.parallel

    def _start(self, trial: Trial, number: int) -> None:
        run_dir = self.folder / trial.name
        try:
            log = log_of(run_dir)
            log_begin = log.stat().st_size if exists(log) else 0
            job = self.launcher.start(run_dir, trial.recipe)
        # For example, there is no space for its log. Trials that already run go on.
        except OSError as error:
            self._fail(trial, number, reason=f"could not be started: {error}")
            return
        self._running.append(_Attempt(trial=trial, number=number, job=job, log_begin=log_begin))
        self.progress.started(trial)

    def _end(self, attempt: _Attempt, status: int, *, stopped: bool) -> None:
        trial = attempt.trial
        run_dir = self.folder / trial.name
        try:
            finished = is_finished(run_dir)
        # For example, a network file system is gone. Trials that still run go on.
        except OSError as error:
            self._fail(trial, attempt.number, reason=f"its result cannot be looked for: {error}")
            return
        # Whatever the exit status is, the result is there.
        if finished:
            self.progress.ended(trial, outcome="finished")
            return
        if stopped:
            self.progress.ended(trial, outcome="stopped")
            return
        lines = _last_lines(log_of(run_dir), begin=attempt.log_begin)
        reason = "; ".join([_ending(status), *lines[-1:]])
        self.progress.announce(
            f"{trial.name}: {_ending(status)}; {log_of(run_dir)}:", *(f"  {line}" for line in lines)
        )
        self._fail(trial, attempt.number, reason=reason)

    def _fail(self, trial: Trial, number: int, *, reason: str) -> None:
        if number <= self.retries:
            self._waiting.append((trial, number + 1))
            self.progress.ended(trial, outcome="to retry")
        else:
            self.failed[trial.name] = reason
            self.progress.ended(trial, outcome="failed")


def _ending(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if status == 0:
        return "ended without a result"
    return f"exit status {status}"


def _last_lines(log: Path, *, begin: int) -> list[str]:
    """The last lines of what was printed after the first `begin` bytes of the log."""
    try:
        text = read_end(log, most=_TOLD_BYTES, begin=begin).decode(errors="replace")
    except DamagedFileError as error:
        return [str(error)]
    return [line for line in text.splitlines() if line.strip()][-_TOLD_LINES:]
