"""Training from the first step to the evaluated policy; begin reading at `train`."""

from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from torch_crl.distributed.equality import broadcast
from torch_crl.distributed.ranks import Ranks, join
from torch_crl.envs.registry import task_files
from torch_crl.errors import UsageError
from torch_crl.recipe import checks
from torch_crl.recipe.compute_choice import choose_compute, thread_count
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.share import share
from torch_crl.runs.directory import Moment, RunDirectory, default_run_dir
from torch_crl.runs.metrics import RunLog, SilentLog, UpdateMetrics
from torch_crl.runs.plots import save_learning_curve
from torch_crl.system.machine import machine
from torch_crl.system.stopping import StopSignals
from torch_crl.system.terminal import print_line
from torch_crl.system.threads import torch_threads
from torch_crl.system.torch_defaults import torch_defaults
from torch_crl.training.clock import Clock
from torch_crl.training.run import Run
from torch_crl.training.saving import moment_of, restore
from torch_crl.training.session import Callback, Session
from torch_crl.training.stability import DivergenceMonitor
from torch_crl.training.starting import build, check_seen_by_all, find_problems

_UPDATES_BETWEEN_STOPS = 50
"""Of several ranks, which are ended half a minute after a signal."""
_WARP_NOTE = "physics by MuJoCo Warp, which compiles for up to a minute at the first use of a task"
_NUMBA_NOTE = "compiling kernels for this processor, which takes some ten seconds once"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run."""

    run_dir: Path
    evaluation: dict[str, float]
    """Metrics of the last evaluation, see `torch_crl.evaluate`."""
    learning_curve: Path | None
    """A PNG file; None if it could not be drawn."""


@torch_defaults()
@torch.enable_grad()
def train(
    recipe: Recipe,
    run_dir: str | Path | RunDirectory | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reshard: bool = False,
    show: bool = True,
    callback: Callback | None = None,
    wandb: str = "",
) -> Result:
    """Train with the settings of `recipe`, and write the run to `run_dir` (arXiv 2503.14858).

    `torch_crl.runs.directory` lists the files; a run is finished if it has result.json. Only one
    process at a time may write in a run directory. In processes that torchrun has started, the call
    is the same in each of them, and they train one run together.

    Args:
        run_dir: `default_run_dir` if not given.
        resume: go on from the newest readable checkpoint; on the CPU the result equals that of an
            uninterrupted run bit for bit. A recipe with more `env_steps` than the run's makes the
            run longer, with evaluations and checkpoints as far apart as before.
        overwrite: delete an earlier run in `run_dir` first.
        reshard: with `resume`, go on with another number of ranks than before.
        show: show progress on standard error.
        callback: called after every evaluation with an `Evaluated`; it may return a dict from name
            to number, which is logged with the evaluation's metrics. An exception of it ends the
            run, which is saved before. With several ranks the first one calls it, while the others
            wait, for ten minutes at most.
        wandb: project of Weights & Biases to which every record is sent too; a failure there does
            not end the run. Needs the extra `wandb`.

    Raises:
        UsageError: the recipe is no Recipe, or the callback no function.
        RecipeError: every problem of the recipe and the directory, before anything is built.
        DirectoryInUseError: another process began to write in the directory at the same time.
        RankError: what ended the run on another rank, which the message names.
        RanksDifferError: the ranks hold different networks.
        DivergenceError: a loss or a parameter became NaN or infinite; the last good checkpoint
            is kept.
        NotFiniteError: a task or the policy gave NaN, infinity or a number too large for fp32.
        ForeignEnvError: a Gymnasium env gave such a number, raised an exception, hung or died.
        SimulatorError: the simulator cannot run the task here, or physics diverged too often.
        CheckpointError: nothing to resume from, or the last checkpoint could not be written.
        KeyboardInterrupt, SystemExit: after Ctrl-C or another signal of `StopSignals`, once a
            checkpoint is written or, on a full disk, a warning says that it is missing.
    """
    _require(recipe, callback)
    ranks = join()
    given = run_dir or ranks.of_first(lambda: default_run_dir(recipe))
    directory = given if isinstance(given, RunDirectory) else RunDirectory(given)
    recipe = ranks.of_first(
        lambda: find_problems(
            recipe, directory, resume=resume, overwrite=overwrite, wandb=wandb, ranks=ranks
        )
    )
    with ExitStack() as stack:
        with ranks.together():
            notes = _owned(directory, stack, resume, overwrite) if ranks.is_first else []
        check_seen_by_all(directory, ranks)
        if show and recipe.system.collectors:
            print_line(f"starting {recipe.system.collectors} collectors by Ray", stderr=True)
        with ranks.together():
            run = stack.enter_context(closing(build(recipe, ranks)))
            # Read now, so that a failure to do so cannot end a run that has been trained.
            described = machine(run.device) | {"computed": run.description}
            if not ranks.is_alone:
                described["ranks"] = ranks.size
        broadcast(run.named_parameters(), ranks)
        if resume:
            notes += restore(run, directory, ranks, reshard=reshard)
        ranks.of_first(lambda: _begin(directory, recipe, described, resume=resume))
        resumed_at = moment_of(run) if resume else None
        log = _log(run, directory, ranks, resumed_at=resumed_at, show=show, wandb=wandb)
        session = _session(run, directory, log, ranks, callback)
        with session.log, torch_threads(thread_count(share(recipe, ranks))):
            _train(session, notes)
        return _finish(session, described)


def _require(recipe: object, callback: object) -> None:
    """Raise UsageError for what is no recipe or no callback."""
    if not hasattr(recipe, "algorithm"):
        raise UsageError(f"recipe must be a Recipe, such as preset('reacher'), got {recipe!r}")
    if callback is not None and not callable(callback):
        raise UsageError(f"callback must be a function of an Evaluated, got {callback!r}")


def _owned(directory: RunDirectory, stack: ExitStack, resume: bool, overwrite: bool) -> list[str]:
    """Keep other processes out of the directory until the stack ends; returns what to tell."""
    notes = stack.enter_context(directory.owned())
    # Another process may have begun a run here since the check.
    if problems := directory.problems(resume=resume, overwrite=overwrite):
        raise checks.RecipeError(problems)
    return notes


def _begin(
    directory: RunDirectory, recipe: Recipe, described: dict[str, Any], *, resume: bool
) -> None:
    """Write what a run begins with, or the recipe of one that is now to be longer."""
    if not resume:
        files = task_files(recipe.own_code)
        began = datetime.now(UTC).isoformat()
        directory.begin(recipe, machine={"begun": began, "machine": described, "task_files": files})
    elif directory.read_recipe() != recipe:
        directory.extend(recipe)


def _log(
    run: Run,
    directory: RunDirectory,
    ranks: Ranks,
    *,
    resumed_at: Moment | None,
    show: bool,
    wandb: str,
) -> RunLog:
    with ranks.together():
        if not ranks.is_first:
            return SilentLog()
        total = run.recipe.total_env_steps
        return RunLog(directory, total=total, resumed_at=resumed_at, show=show, wandb=wandb)


def _session(
    run: Run, directory: RunDirectory, log: RunLog, ranks: Ranks, callback: Callback | None
) -> Session:
    return Session(
        run=run,
        directory=directory,
        log=log,
        clock=Clock(run),
        evaluations=ranks.of_first(lambda: directory.read_metrics("evaluation")),
        callback=callback,
        episodes=dict(run.round.episodes),
        metrics=UpdateMetrics(run.round.sums, run.round.updates),
        ranks=ranks,
    )


def _finish(session: Session, described: dict[str, Any]) -> Result:
    """Draw the learning curve and mark the run as finished; no rank leaves before that."""
    directory, ranks = session.directory, session.ranks
    (*_, last) = session.evaluations
    evaluation = {name: value for name, value in last.items() if name != "kind"}
    learning_curve = None
    if ranks.is_first:
        learning_curve = _draw(directory, session.log)
        directory.finish({"evaluation": evaluation, "machine": described})
    ranks.wait()
    return Result(run_dir=directory.path, evaluation=evaluation, learning_curve=learning_curve)


def _train(session: Session, notes: list[str]) -> None:
    """Train from the current moment to the end, or until a signal requests to stop."""
    run, log, clock, recipe = session.run, session.log, session.clock, session.run.recipe
    ranks = session.ranks
    stability = DivergenceMonitor(run.env)
    with StopSignals(log.announce) as stop, _told_of_compiling(run, log):
        log.announce(
            f"{recipe.task.name} on {run.device} ({run.description}), {_ranks_told(ranks)}run "
            f"directory {session.directory}",
            *([_WARP_NOTE] if recipe.system.simulator == "warp" else []),
            *notes,
        )
        # The record of an evaluation may be damaged, or the evaluation itself may have failed.
        if _evaluation_is_missing(session):
            session.evaluate()
        while run.updates_done < recipe.total_updates:
            # A run that was stopped between two updates continues with updates.
            if run.updates_done == run.updates_due:
                clock.show("collecting", log)
                with clock.collecting():
                    session.collect()
                with ranks.together(), session.saved_if_an_env_fails(counted=True):
                    diverged = stability.report(run.env_steps // ranks.size)
                log.announce(*ranks.lines(diverged))
                run.collect_ahead()

            first_update = run.updates_done
            with clock.updating():
                while run.updates_done < run.updates_due:
                    if _may_stop(run, ranks) and stop.agree(ranks.largest):
                        break
                    session.metrics.add(run.update())
                    clock.show("training", log)
                session.sum_up(first_update)

            if run.updates_done == run.updates_due:
                session.log_round()
                if _is_due(run, recipe.budget.evaluations):
                    session.evaluate()
                if _is_due(run, recipe.budget.checkpoints):
                    session.save(must_succeed=run.updates_done == recipe.total_updates)
            if stop.agree(ranks.largest):
                session.stop()
                stop.leave()


def _evaluation_is_missing(session: Session) -> bool:
    """Whether a run that is resumed stands where an evaluation was due and has no record."""
    run = session.run
    if run.updates_done < run.updates_due or not _is_due(run, run.recipe.budget.evaluations):
        return False
    return not session.evaluations or session.evaluations[-1]["env_steps"] != run.env_steps


def _may_stop(run: Run, ranks: Ranks) -> bool:
    """Whether a run may stop before its next update; ranks ask each other now and then."""
    return ranks.is_alone or run.updates_done % _UPDATES_BETWEEN_STOPS == 0


def _ranks_told(ranks: Ranks) -> str:
    return "" if ranks.is_alone else f"{ranks.size} ranks, "


def _told_of_compiling(run: Run, log: RunLog) -> AbstractContextManager[object]:
    """Announces it when the first kernel is compiled, which updates wait for."""
    if choose_compute(run.recipe).tower != "numba":
        return nullcontext()
    # Imported here, so that numba is needed only if its kernels are requested.
    from torch_crl.kernels.cpu import when_compiling

    return when_compiling(lambda: log.announce(_NUMBA_NOTE))


def _is_due(run: Run, times: int) -> bool:
    """Whether one of `times` evenly spaced events is due after the newest collection."""
    done, total = run.collections_done - run.recipe.prefill_collections, run.recipe.collections
    return done > 0 and done * times // total > (done - 1) * times // total


def _draw(directory: RunDirectory, log: RunLog) -> Path | None:
    try:
        return save_learning_curve(directory.path)
    # The picture can be drawn later from the files; no failure to draw it may end the run.
    except Exception as error:
        log.announce(f"warning: no learning curve was drawn: {type(error).__name__}: {error}")
        return None
