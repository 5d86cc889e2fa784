"""Training from the first step to the evaluated policy; begin reading at `train`."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import SupportsFloat

import torch

from torch_crl.agent.policy import Policy
from torch_crl.envs.gymnasium.errors import ForeignEnvError
from torch_crl.envs.registry import task_files
from torch_crl.errors import UsageError
from torch_crl.recipe import checks
from torch_crl.recipe.compute_choice import choose_compute, thread_count
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe, differences, extended
from torch_crl.runs.directory import RunDirectory, default_run_dir
from torch_crl.runs.metrics import DivergenceError, RunLog, UpdateMetrics, first_not_finite
from torch_crl.runs.plots import save_learning_curve
from torch_crl.runs.weights_and_biases import missing_wandb
from torch_crl.system.checkpoint import CheckpointError
from torch_crl.system.machine import machine
from torch_crl.system.stopping import StopSignals
from torch_crl.system.threads import torch_threads
from torch_crl.system.torch_defaults import torch_defaults
from torch_crl.training.clock import Clock
from torch_crl.training.crl_run import build_run
from torch_crl.training.evaluation import evaluate
from torch_crl.training.run import Run, stream_seed
from torch_crl.training.saving import best_so_far, commit, moment_of, restore, save_best
from torch_crl.training.stability import DivergenceMonitor

_BEST_BY = "time_at_goal_share"
_WARP_NOTE = "physics by MuJoCo Warp, which compiles for up to a minute at the first use of a task"
_NUMBA_NOTE = "the towers are compiled at the first update, once for this machine, in some seconds"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run."""

    run_dir: Path
    evaluation: dict[str, float]
    """Metrics of the last evaluation, see `torch_crl.evaluate`."""
    learning_curve: Path | None
    """A PNG file; None if it could not be drawn."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The argument of a callback of `train`, which is called after every evaluation."""

    run_dir: Path
    recipe: Recipe
    metrics: Mapping[str, float]
    """`env_steps`, `updates`, `seconds`, and what `torch_crl.evaluate` returns."""
    policy: Policy
    """The policy that was evaluated; later updates change it."""


Callback = Callable[[Evaluated], Mapping[str, float] | None]


@dataclass(frozen=True, kw_only=True)
class _Session:
    """The objects with which one process trains a run, from its start or from a checkpoint."""

    run: Run
    directory: RunDirectory
    log: RunLog
    clock: Clock
    evaluations: list[dict[str, float]]
    """Records of all evaluations of the run so far."""
    callback: Callback | None

    @property
    def counters(self) -> dict[str, float]:
        """The current moment of the run, as contained in every record."""
        moment = moment_of(self.run)._asdict()
        return {**moment, "seconds": self.clock.seconds}


@torch_defaults()
@torch.enable_grad()
def train(
    recipe: Recipe,
    run_dir: str | Path | RunDirectory | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    show: bool = True,
    callback: Callback | None = None,
    wandb: str = "",
) -> Result:
    """Train with the settings of `recipe`, and write the run to `run_dir` (arXiv 2503.14858).

    `torch_crl.runs.directory` lists the files; a run is finished if it has result.json. Only one
    process at a time may write in a run directory.

    Args:
        run_dir: `default_run_dir` if not given.
        resume: go on from the newest readable checkpoint; on the CPU the result equals that of an
            uninterrupted run bit for bit. A recipe with more `env_steps` than the run's makes the
            run longer, with evaluations and checkpoints as far apart as before.
        overwrite: delete an earlier run in `run_dir` first.
        show: show progress on standard error.
        callback: called after every evaluation with an `Evaluated`; it may return a dict from name
            to number, which is logged with the evaluation's metrics.
        wandb: project of Weights & Biases to which every record is sent too; a failure there does
            not end the run. Needs the extra `wandb`.

    Raises:
        RecipeError: every problem of the recipe and the directory, before anything is built.
        DirectoryInUseError: another process began to write in the directory at the same time.
        DivergenceError: a loss or a parameter became NaN or infinite; the last good checkpoint
            is kept.
        NotFiniteError: a task or the policy gave NaN, infinity or a number too large for fp32.
        ForeignEnvError: a Gymnasium env gave such a number, raised an exception, hung or died.
        SimulatorError: the simulator cannot run the task here, or physics diverged too often.
        CheckpointError: nothing to resume from, or the last checkpoint could not be written.
        KeyboardInterrupt, SystemExit: after Ctrl-C or another signal of `StopSignals`, once a
            checkpoint is written or, on a full disk, a warning says that it is missing.
    """
    given = run_dir or default_run_dir(recipe)
    directory = given if isinstance(given, RunDirectory) else RunDirectory(given)
    recipe = find_problems(recipe, directory, resume=resume, overwrite=overwrite, wandb=wandb)
    with directory.owned() as notes:
        # Another process may have begun a run here since the check.
        if problems := directory.problems(resume=resume, overwrite=overwrite):
            raise checks.RecipeError(problems)
        with closing(build(recipe)) as run:
            # Read now, so that a failure to do so cannot end a run that has been trained.
            described = machine(run.device) | {"computed": run.description}
            if resume:
                notes += restore(run, directory)
                if directory.read_recipe() != recipe:
                    directory.extend(recipe)
            else:
                files = task_files([recipe.task.name, recipe.task.eval_name])
                began = datetime.now(UTC).isoformat()
                directory.begin(
                    recipe, machine={"begun": began, "machine": described, "task_files": files}
                )
            resumed_at = moment_of(run) if resume else None
            session = _Session(
                run=run,
                directory=directory,
                log=RunLog(
                    directory,
                    total=recipe.total_env_steps,
                    resumed_at=resumed_at,
                    show=show,
                    wandb=wandb,
                ),
                clock=Clock(run),
                evaluations=directory.read_metrics("evaluation"),
                callback=callback,
            )
            with session.log, torch_threads(thread_count(recipe)):
                _train(session, notes)
        learning_curve = _draw(directory, session.log)
        (*_, last) = session.evaluations
        evaluation = {name: value for name, value in last.items() if name != "kind"}
        directory.finish({"evaluation": evaluation, "machine": described})
    return Result(run_dir=directory.path, evaluation=evaluation, learning_curve=learning_curve)


def _train(session: _Session, notes: list[str]) -> None:
    """Train from the current moment to the end, or until a signal requests to stop."""
    run, log, clock, recipe = session.run, session.log, session.clock, session.run.recipe
    metrics = UpdateMetrics()
    stability = DivergenceMonitor(run.env)
    with StopSignals(log.announce) as stop:
        log.announce(
            f"{recipe.task.name} on {run.device} ({run.description}), run directory "
            f"{session.directory}",
            *([_WARP_NOTE] if recipe.system.simulator == "warp" else []),
            *_numba_note(run),
            *notes,
        )
        while run.updates_done < recipe.total_updates:
            episodes = {}
            # A run that was stopped between two updates continues with updates.
            if run.updates_done == run.updates_due:
                clock.show("collecting", log)
                with clock.collecting(), _saved_if_an_env_fails(session):
                    episodes = run.collect()
                log.announce(*stability.report(run.env_steps))
                run.collect_ahead()

            first_update = run.updates_done
            with clock.updating():
                while run.updates_done < run.updates_due and not stop.requested:
                    metrics.add(run.update())
                    clock.show("training", log)
                learned = _flush(session, metrics, first_update)

            if run.updates_done == run.updates_due:
                log.train(session.counters | clock.rates() | episodes | learned)
                if _is_due(run, recipe.budget.evaluations):
                    _evaluate(session)
                if _is_due(run, recipe.budget.checkpoints):
                    _save(session, must_succeed=run.updates_done == recipe.total_updates)
            if stop.requested:
                _save(session, must_succeed=False)
                log.announce(_after_a_stop(session))
                stop.leave()
        # In a run that is resumed at its end, the record of the last evaluation may be damaged.
        if not session.evaluations or session.evaluations[-1]["env_steps"] != run.env_steps:
            _evaluate(session)


def _numba_note(run: Run) -> list[str]:
    """A line where the first update will compile kernels, and so take long."""
    if choose_compute(run.recipe).tower != "numba":
        return []
    # Imported here, so that numba is needed only if its kernels are requested.
    from torch_crl.kernels.cpu import is_on_disk
    from torch_crl.kernels.tower.cpu import backward_tower

    return [] if is_on_disk(backward_tower) else [_NUMBA_NOTE]


def find_problems(
    recipe: Recipe,
    directory: RunDirectory,
    *,
    resume: bool,
    overwrite: bool,
    wandb: str = "",
) -> Recipe:
    """The recipe that `train` would run; for a resumed run it may be longer than the saved one.

    Raises RecipeError if the run could not start. Nothing is built or written.
    """
    problems = directory.problems(resume=resume, overwrite=overwrite)
    if resume and not problems:
        saved = directory.read_recipe()
        if saved.by_library:
            problems = [
                f"--resume: a run of {saved.algorithm.algo} keeps no checkpoints to go on from; "
                "--overwrite starts it again"
            ]
        elif recipe.budget.env_steps < saved.budget.env_steps:
            problems = [
                f"--resume can make a run longer and not shorter: --env-steps is "
                f"{saved.budget.env_steps}, got {recipe.budget.env_steps}"
            ]
        else:
            longer = extended(saved, recipe.budget.env_steps)
            asked = with_changes(
                recipe,
                budget={
                    name: getattr(longer.budget, name)
                    for name in ("evaluations", "checkpoints")
                    if getattr(recipe.budget, name) == getattr(saved.budget, name)
                },
            )
            changed = "; ".join(differences(longer, asked))
            if changed:
                problems = [f"--resume keeps the recipe of the run; asked to change {changed}"]
            recipe = asked
    checks.check(recipe, run_problems=problems + (missing_wandb() if wandb else []))
    return recipe


def build(recipe: Recipe) -> Run:
    """The run at its beginning, of an algorithm of ours or of Stable-Baselines3."""
    if recipe.by_library:
        # Imported here, because the library is an extra and takes a second to import.
        from torch_crl.baselines.run import build_baseline

        return build_baseline(recipe)
    return build_run(recipe)


def _after_a_stop(session: _Session) -> str:
    run = session.run
    if run.resumable:
        return (
            f"stopped; `torch-crl train --resume --run-dir {session.directory}` goes on from here"
        )
    return f"stopped; a run of {run.recipe.algorithm.algo} cannot be resumed, only started again"


def _is_due(run: Run, times: int) -> bool:
    """Whether one of `times` evenly spaced events is due after the newest collection."""
    done, total = run.collections_done - run.recipe.prefill_collections, run.recipe.collections
    return done > 0 and done * times // total > (done - 1) * times // total


def _flush(session: _Session, metrics: UpdateMetrics, first_update: int) -> dict[str, float]:
    """Mean losses of the updates since `first_update`, and the size of the last one.

    Raises DivergenceError, which names update and tensor.
    """
    run = session.run
    try:
        losses = metrics.flush(first_update=first_update)
        name = first_not_finite(run.named_parameters()) if losses else None
        if name is not None:
            raise DivergenceError(f"{name} is not finite after update {run.updates_done}")
    except DivergenceError as error:
        saved = [str(folder) for folder in session.directory.saved_checkpoints[:1]]
        raise DivergenceError(
            f"{error} ({run.env_steps:,} env steps); the run stops, its last good checkpoint is "
            f"{''.join(saved) or 'none yet'}"
        ) from None
    if not losses:
        return {}
    return losses | {name: value.item() for name, value in run.update_sizes.items()}


def _evaluate(session: _Session) -> None:
    run, log, recipe = session.run, session.log, session.run.recipe
    session.clock.show("evaluating", log)
    result = evaluate(
        run.policy,
        recipe.task.eval_name,
        num_envs=recipe.task.num_eval_envs,
        episode_length=recipe.task.episode_length,
        seed=stream_seed(recipe.system.seed, f"evaluation/{run.collections_done}"),
        simulator=recipe.system.simulator,
        num_threads=recipe.system.simulator_threads,
        device=run.device,
        env_timeout=recipe.system.env_timeout,
    )
    record = session.counters | result
    record |= _called_back(session, record)
    if record[_BEST_BY] > best_so_far(session.directory, _BEST_BY):
        with _only_told(log, "the best policy before is kept"):
            save_best(run, session.directory, record)
    log.evaluation(record)
    session.evaluations.append(record)


def _called_back(session: _Session, record: dict[str, float]) -> dict[str, float]:
    """The numbers that the user's callback returns, checked; they are logged by their names."""
    if session.callback is None:
        return {}
    run = session.run
    known = Evaluated(
        run_dir=session.directory.path, recipe=run.recipe, metrics=record, policy=run.policy
    )
    returned = session.callback(known) or {}
    for name, value in returned.items():
        if name == "kind" or name in record:
            raise UsageError(f"the callback returned {name!r}, which is logged already")
        if not isinstance(value, SupportsFloat) or not math.isfinite(value):
            raise UsageError(
                f"the callback returned {name!r} as {value!r}; what is logged must be finite "
                "numbers by name"
            )
    return {name: float(value) for name, value in returned.items()}


@contextmanager
def _saved_if_an_env_fails(session: _Session) -> Iterator[None]:
    """Save the run before the error of a Gymnasium env ends it, so that no updates are lost."""
    try:
        yield
    except ForeignEnvError:
        session.run.forget_collection()
        _save(session, must_succeed=False)
        session.log.announce(_after_a_stop(session))
        raise


def _save(session: _Session, *, must_succeed: bool) -> None:
    """Write checkpoint and policy; unless it `must_succeed`, a failure is only reported."""
    session.run.seconds = session.clock.seconds
    # Records are written before the checkpoint; if that fails, the checkpoint is still written.
    with _only_told(session.log, "they are written when they can be"):
        session.log.sync()
    with nullcontext() if must_succeed else _only_told(session.log, "earlier ones are kept"):
        commit(session.run, session.directory)


@contextmanager
def _only_told(log: RunLog, consolation: str) -> Iterator[None]:
    """Inside, a failure to write is reported, and the run goes on."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        log.announce(f"warning: {error}; {consolation}")


def _draw(directory: RunDirectory, log: RunLog) -> Path | None:
    try:
        return save_learning_curve(directory.path)
    # The picture can be drawn later from the files; no failure to draw it may end the run.
    except Exception as error:
        log.announce(f"warning: no learning curve was drawn: {type(error).__name__}: {error}")
        return None
