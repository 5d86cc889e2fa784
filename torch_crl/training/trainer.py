"""Training from the first step to the evaluated policy: `train` reads top to bottom."""

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
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe, differences, extended
from torch_crl.runs.directory import RunDirectory, default_run_dir
from torch_crl.runs.metrics import DivergenceError, RunLog, UpdateMetrics, first_not_finite
from torch_crl.runs.plots import save_learning_curve
from torch_crl.runs.weights_and_biases import missing_wandb
from torch_crl.system.checkpoint import CheckpointError
from torch_crl.system.machine import machine
from torch_crl.system.stopping import StopSignals
from torch_crl.system.threads import torch_threads, usable_cpus
from torch_crl.system.torch_defaults import torch_defaults
from torch_crl.training.clock import Clock
from torch_crl.training.crl_run import build_run
from torch_crl.training.evaluation import evaluate
from torch_crl.training.run import Run, stream_seed
from torch_crl.training.saving import best_so_far, commit, moment_of, restore, save_best
from torch_crl.training.stability import DivergenceMonitor

_BEST_BY = "time_at_goal_share"
# Below this a second thread gains nothing; measured in benchmarks/LOG.md.
_SHARED_LAYER_FLOP = 3e6
_WARP_NOTE = "physics by MuJoCo Warp, which compiles for up to a minute at the first use of a task"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run reached."""

    run_dir: Path
    evaluation: dict[str, float]
    """The last evaluation, see `torch_crl.evaluate`."""
    learning_curve: Path | None
    """A PNG; None if it could not be drawn."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a callback of `train` is told after an evaluation."""

    run_dir: Path
    recipe: Recipe
    metrics: Mapping[str, float]
    """`env_steps`, `updates`, `seconds`, and what `torch_crl.evaluate` returns."""
    policy: Policy
    """The policy that was evaluated; it follows the updates."""


Callback = Callable[[Evaluated], Mapping[str, float] | None]


@dataclass(frozen=True, kw_only=True)
class _Session:
    """One process's part of a run: what collects, updates, writes and tells."""

    run: Run
    directory: RunDirectory
    log: RunLog
    clock: Clock
    evaluations: list[dict[str, float]]
    """Of the whole run so far."""
    callback: Callback | None

    @property
    def counters(self) -> dict[str, float]:
        """Where the run is, as every record has it."""
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
    """Train `recipe` into `run_dir` (algorithm of arXiv 2503.14858).

    What it writes is told in `torch_crl.runs.directory`; a run is finished if it has result.json.
    One process at a time writes in a run directory.

    Args:
        run_dir: `default_run_dir` if not given.
        resume: go on from the newest readable checkpoint; on the CPU the result equals that of an
            uninterrupted run bit for bit. A recipe with more `env_steps` than the run's makes the
            run longer, with evaluations and checkpoints as far apart as before.
        overwrite: delete an earlier run in `run_dir` first.
        show: progress on standard error.
        callback: called after every evaluation with an `Evaluated`; numbers that it returns by
            name are logged with the evaluation's own.
        wandb: project of Weights & Biases that gets every record too; nothing that happens there
            ends the run. Needs the extra `wandb`.

    Raises:
        RecipeError: every problem of the recipe and the directory, before anything is built.
        DirectoryInUseError: another process began to write in the directory at the same time.
        DivergenceError: a loss or a parameter became NaN or infinite; the last good checkpoint
            stays.
        NotFiniteError: a task or the policy gave NaN, infinity or nearly that.
        ForeignEnvError: a Gymnasium env did, raised an exception, hung or died.
        SimulatorError: the simulator cannot run the task here, or physics diverged too often.
        CheckpointError: nothing to resume from, or the last checkpoint could not be written.
        KeyboardInterrupt, SystemExit: after Ctrl-C or another signal of `StopSignals`, once a
            checkpoint is written or, on a full disk, told to be missing.
    """
    given = run_dir or default_run_dir(recipe)
    directory = given if isinstance(given, RunDirectory) else RunDirectory(given)
    recipe = find_problems(recipe, directory, resume=resume, overwrite=overwrite, wandb=wandb)
    with directory.owned() as notes:
        # Somebody else may have begun here since the check.
        if problems := directory.problems(resume=resume, overwrite=overwrite):
            raise checks.RecipeError(problems)
        with closing(build(recipe)) as run:
            # Now, since a run that has come to its end must not fail for want of it.
            described = machine(run.device)
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
    """From where the run is to its end, or until a signal asks it to stop."""
    run, log, clock, recipe = session.run, session.log, session.clock, session.run.recipe
    metrics = UpdateMetrics()
    stability = DivergenceMonitor(run.env)
    with StopSignals(log.announce) as stop:
        log.announce(
            f"{recipe.task.name} on {run.device} ({run.description}), run directory "
            f"{session.directory}",
            *([_WARP_NOTE] if recipe.system.simulator == "warp" else []),
            *notes,
        )
        while run.updates_done < recipe.total_updates:
            episodes = {}
            # A run that was stopped between two updates goes on with the updates.
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
        # The record of a run that goes on at its end may have been damaged.
        if not session.evaluations or session.evaluations[-1]["env_steps"] != run.env_steps:
            _evaluate(session)


def find_problems(
    recipe: Recipe,
    directory: RunDirectory,
    *,
    resume: bool,
    overwrite: bool,
    wandb: str = "",
) -> Recipe:
    """The recipe that `train` would run, which a resumed run may make longer.

    Raises RecipeError if it could not start; nothing is built or written.
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
    """The run at its beginning, whoever's algorithm it is."""
    if recipe.by_library:
        # Here, because the library is an extra and takes a second to import.
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


def thread_count(recipe: Recipe) -> int:
    """As asked; else every CPU, or one where a layer is too small for sharing to pay.

    Threads that wait for each other at every operation crawl as soon as something else runs.
    """
    flop_per_layer = 2 * recipe.algorithm.batch_size * recipe.networks.width**2
    every = min(torch.get_num_threads(), usable_cpus())
    automatic = every if flop_per_layer >= _SHARED_LAYER_FLOP else 1
    return recipe.system.torch_threads or automatic


def _is_due(run: Run, times: int) -> bool:
    """Whether one of `times` evenly spaced events falls on the present collection."""
    done, total = run.collections_done - run.recipe.prefill_collections, run.recipe.collections
    return done > 0 and done * times // total > (done - 1) * times // total


def _flush(session: _Session, metrics: UpdateMetrics, first_update: int) -> dict[str, float]:
    """Mean losses of the updates just made, and how large the last of them was.

    Raises DivergenceError, naming step and tensor.
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
    """What the user's callback returns, checked: it is logged under the names that it gives."""
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
    """A Gymnasium env that raises, hangs or dies ends the run, but loses no updates."""
    try:
        yield
    except ForeignEnvError:
        session.run.forget_collection()
        _save(session, must_succeed=False)
        session.log.announce(_after_a_stop(session))
        raise


def _save(session: _Session, *, must_succeed: bool) -> None:
    """Write checkpoint and policy; a failure is only told unless it `must_succeed`."""
    session.run.seconds = session.clock.seconds
    # Its records come before a checkpoint; where they cannot be written, the checkpoint still can.
    with _only_told(session.log, "they are written when they can be"):
        session.log.sync()
    with nullcontext() if must_succeed else _only_told(session.log, "earlier ones are kept"):
        commit(session.run, session.directory)


@contextmanager
def _only_told(log: RunLog, consolation: str) -> Iterator[None]:
    """What cannot be written is told, and the run goes on."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        log.announce(f"warning: {error}; {consolation}")


def _draw(directory: RunDirectory, log: RunLog) -> Path | None:
    try:
        return save_learning_curve(directory.path)
    # The picture is made of what is on the disk; whatever keeps it from being drawn ends no run.
    except Exception as error:
        log.announce(f"warning: no learning curve was drawn: {type(error).__name__}: {error}")
        return None
