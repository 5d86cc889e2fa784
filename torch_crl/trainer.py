"""Training from the first step to the evaluated policy: `train` reads top to bottom."""

import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from torch_crl import __version__, checkpoint, validation
from torch_crl.evaluation import evaluate
from torch_crl.machine import machine
from torch_crl.metrics import (
    RESULT_FILE,
    DivergenceError,
    RunLog,
    UpdateMetrics,
    first_not_finite,
    read_metrics,
)
from torch_crl.native_run import build_run
from torch_crl.plots import save_learning_curve
from torch_crl.recipe import Recipe, differences
from torch_crl.run import Run, stream_seed
from torch_crl.stability import StabilityWatch
from torch_crl.stopping import StopSignals
from torch_crl.threads import torch_threads, usable_cpus

# The newest may be the one that a crash damaged.
_KEPT_CHECKPOINTS = 2
# Below this a second thread gains nothing; measured in benchmarks/LOG.md.
_SHARED_LAYER_FLOP = 3e6
_SECONDS_BETWEEN_DISPLAYS = 0.05
_WARP_NOTE = "physics by MuJoCo Warp, which compiles for up to a minute at the first use of a task"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run reached."""

    run_dir: Path
    evaluation: dict[str, float]
    """The last evaluation, see `torch_crl.evaluate`."""
    learning_curve: Path
    """A PNG."""


def default_run_dir(recipe: Recipe) -> Path:
    """`runs/TASK_seedN_DATE-TIME`, with a number behind it where that exists."""
    task = re.sub("[:/]", "_", recipe.task.name)
    name = f"{task}_seed{recipe.system.seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    names = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def train(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    show: bool = True,
) -> Result:
    """Train `recipe` into `run_dir` (algorithm of arXiv 2503.14858).

    Writes recipe.json, metrics.jsonl, tensorboard/, checkpoints/, policies/, learning_curve.png,
    and at its very end result.json: a run is finished if that exists.

    Args:
        run_dir: `default_run_dir` if not given.
        resume: go on from the newest readable checkpoint; on the CPU the result equals that of an
            uninterrupted run bit for bit.
        overwrite: delete an earlier run in `run_dir` first.
        show: progress on standard error.

    Raises:
        RecipeError: every problem of the recipe and the directory, before anything is built.
        DivergenceError: a loss or a parameter became NaN or infinite; the last good checkpoint
            stays.
        SimulatorError: the simulator cannot run the task here, or physics diverged too often.
        CheckpointError: nothing to resume from, or the last checkpoint could not be written.
        KeyboardInterrupt, SystemExit: after Ctrl-C or a termination signal, once a checkpoint is
            written.
    """
    run_dir = Path(run_dir or default_run_dir(recipe))
    find_problems(recipe, run_dir, resume=resume, overwrite=overwrite)
    run = _build(recipe)
    if not resume:
        _start_directory(recipe, run_dir, overwrite=overwrite)
    notes = _restore(run, run_dir) if resume else []
    resumed_at = (run.env_steps, run.updates_done) if resume else None
    log = RunLog(run_dir, total=recipe.total_env_steps, resumed_at=resumed_at, show=show)
    threads = _thread_count(recipe)
    with log, closing(run), torch_threads(threads), StopSignals(log.announce) as stop:
        log.announce(
            f"{recipe.task.name} on {run.device} ({run.description}), run directory {run_dir}",
            *([_WARP_NOTE] if recipe.system.simulator == "warp" else []),
            *notes,
        )
        clock = _Clock(run)
        metrics = UpdateMetrics()
        stability = StabilityWatch(run.env)

        while run.updates_done < recipe.total_updates:
            episodes = {}
            # A run that was stopped between two updates goes on with the updates.
            if run.updates_done == run.updates_due:
                clock.show("collecting", log)
                with clock.collecting():
                    episodes = run.collect()
                log.announce(*stability.look(run.env_steps))
                run.collect_ahead()

            first_update = run.updates_done
            with clock.updating():
                while run.updates_done < run.updates_due and not stop.requested:
                    metrics.add(run.update())
                    clock.show("training", log)
                losses = _flush(metrics, run, run_dir, first_update)

            if run.updates_done == run.updates_due:
                log.train(clock.counters() | clock.rates() | episodes | losses)
                if _is_due(run, recipe.budget.evaluations):
                    _evaluate(run, log, clock)
                if _is_due(run, recipe.budget.checkpoints):
                    last = run.updates_done == recipe.total_updates
                    _save(run, run_dir, log, clock, must_succeed=last)
            if stop.requested:
                _save(run, run_dir, log, clock, must_succeed=True)
                log.announce(_after_a_stop(run, run_dir))
                stop.leave()

    learning_curve = save_learning_curve(run_dir)
    record = read_metrics(run_dir, "evaluation")[-1]
    evaluation = {name: value for name, value in record.items() if name != "kind"}
    result = {"evaluation": evaluation, "machine": machine()}
    checkpoint.write_text(run_dir / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    return Result(run_dir=run_dir, evaluation=evaluation, learning_curve=learning_curve)


def find_problems(recipe: Recipe, run_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise RecipeError if `train` could not start; nothing is built or written."""
    problems = validation.run_directory_problems(run_dir, resume=resume, overwrite=overwrite)
    if resume and not problems:
        saved = Recipe.from_json((run_dir / "recipe.json").read_text())
        changed = "; ".join(differences(saved, recipe))
        if saved.by_library:
            problems = [
                f"--resume: a run of {saved.algorithm.algo} keeps no checkpoints to go on from; "
                "--overwrite starts it again"
            ]
        elif changed:
            problems = [f"--resume keeps the recipe of the run; asked to change {changed}"]
    validation.check(recipe, run_problems=problems)


def _build(recipe: Recipe) -> Run:
    if recipe.by_library:
        # Here, because the library is an extra and takes a second to import.
        from torch_crl.baselines.run import build_baseline

        return build_baseline(recipe)
    return build_run(recipe)


def _after_a_stop(run: Run, run_dir: Path) -> str:
    if run.resumable:
        return f"stopped; `torch-crl train --resume --run-dir {run_dir}` goes on from here"
    return f"stopped; a run of {run.recipe.algorithm.algo} cannot be resumed, only started again"


def _thread_count(recipe: Recipe) -> int:
    """As asked; else every CPU, or one where a layer is too small for sharing to pay.

    Threads that wait for each other at every operation crawl as soon as something else runs.
    """
    flop_per_layer = 2 * recipe.algorithm.batch_size * recipe.networks.width**2
    every = min(torch.get_num_threads(), usable_cpus())
    automatic = every if flop_per_layer >= _SHARED_LAYER_FLOP else 1
    return recipe.system.torch_threads or automatic


def _start_directory(recipe: Recipe, run_dir: Path, *, overwrite: bool) -> None:
    if overwrite and run_dir.exists():
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    # "x" fails if another run has begun here since the check.
    with (run_dir / "recipe.json").open("x") as file:
        file.write(recipe.to_json())


def _restore(run: Run, run_dir: Path) -> list[str]:
    """Load the newest readable checkpoint; returns what to tell the user."""
    parent = run_dir / "checkpoints"
    if not checkpoint.folders(parent):
        return ["no checkpoint was written before; starting from the beginning"]
    folder, tensors, counters, failures = checkpoint.load_newest(parent)
    device = run.device.type
    if counters["device"] != device:
        raise checkpoint.CheckpointError(
            f"{folder} was written on {counters['device']} and this run is on {device}; random "
            "numbers differ between them, so a run goes on where it began"
        )
    run.load_state_dict(tensors, counters)
    skipped = [f"passed over: {failure}" for failure in failures]
    resumed = f"resumed from {folder}: {run.env_steps:,} steps, {run.updates_done:,} updates"
    if not run.env.saves_state:
        resumed += f"; {run.recipe.task.name} cannot be saved and begins fresh episodes"
    return [*skipped, resumed]


def _is_due(run: Run, times: int) -> bool:
    """Whether one of `times` evenly spaced events falls on the present collection."""
    done, total = run.collections_done - run.recipe.prefill_collections, run.recipe.collections
    return done > 0 and done * times // total > (done - 1) * times // total


def _flush(metrics: UpdateMetrics, run: Run, run_dir: Path, first_update: int) -> dict[str, float]:
    """Mean losses of the updates just made. Raises DivergenceError, naming step and tensor."""
    try:
        losses = metrics.flush(first_update=first_update)
        name = first_not_finite(run.named_parameters()) if losses else None
        if name is not None:
            raise DivergenceError(f"{name} is not finite after update {run.updates_done}")
    except DivergenceError as error:
        saved = [str(folder) for folder in checkpoint.folders(run_dir / "checkpoints")[:1]]
        raise DivergenceError(
            f"{error} ({run.env_steps:,} env steps); the run stops, its last good checkpoint is "
            f"{''.join(saved) or 'none yet'}"
        ) from None
    return losses


def _evaluate(run: Run, log: RunLog, clock: "_Clock") -> None:
    clock.show("evaluating", log)
    recipe = run.recipe
    result = evaluate(
        run.policy,
        recipe.task.eval_name,
        num_envs=recipe.task.num_eval_envs,
        episode_length=recipe.task.episode_length,
        seed=stream_seed(recipe.system.seed, f"evaluation/{run.collections_done}"),
        simulator=recipe.system.simulator,
        num_threads=recipe.system.simulator_threads,
        device=run.device,
    )
    log.evaluation(clock.counters() | result)


def _save(run: Run, run_dir: Path, log: RunLog, clock: "_Clock", *, must_succeed: bool) -> None:
    """Write checkpoint and policy; a failure is only told unless it `must_succeed`."""
    run.seconds = clock.seconds
    parent = run_dir / "checkpoints"
    meta = {"task": run.env.spec.name, "env_steps": run.env_steps, "updates": run.updates_done}
    meta |= {"torch_crl": __version__, "torch": torch.__version__}
    meta |= {"device": run.device.type}
    moment = (run.env_steps, run.updates_done)
    try:
        log.sync()
        if run.resumable:
            tensors, counters = run.state_dict()
            checkpoint.save(checkpoint.step_folder(parent, *moment), tensors, meta | counters)
            checkpoint.prune(parent, keep=_KEPT_CHECKPOINTS)
        run.policy.save(checkpoint.step_folder(run_dir / "policies", *moment), meta)
    except (checkpoint.CheckpointError, OSError) as error:
        if must_succeed:
            raise
        log.announce(f"warning: {error}; the run goes on, earlier checkpoints are kept")


class _Clock:
    """Wall-clock of a run, over all of its sessions, and the rates of its newest collection."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._begin = time.perf_counter() - run.seconds
        self._collect_rate = self._update_rate = 0.0
        self._updates_begin: tuple[float, int] | None = None
        self._shown_phase, self._shown_at = "", 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    @contextmanager
    def collecting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._collect_rate = self._run.recipe.steps_per_collection / (time.perf_counter() - begin)

    @contextmanager
    def updating(self) -> Iterator[None]:
        self._updates_begin = (time.perf_counter(), self._run.updates_done)
        yield
        self._update_rate = self._present_update_rate()
        self._updates_begin = None

    def counters(self) -> dict[str, float]:
        run = self._run
        return {"env_steps": run.env_steps, "updates": run.updates_done, "seconds": self.seconds}

    def show(self, phase: str, log: RunLog) -> None:
        now, run = time.perf_counter(), self._run
        # Drawing costs as much as launching a small update.
        if phase == self._shown_phase and now - self._shown_at < _SECONDS_BETWEEN_DISPLAYS:
            return
        self._shown_phase, self._shown_at = phase, now
        log.progress(phase, completed=run.progress, updates=run.updates_done, rates=self.rates())

    def rates(self) -> dict[str, float]:
        return {
            "collected_steps_per_second": self._collect_rate,
            "updates_per_second": self._present_update_rate(),
        }

    def _present_update_rate(self) -> float:
        if self._updates_begin is None:
            return self._update_rate
        begin, before = self._updates_begin
        return (self._run.updates_done - before) / (time.perf_counter() - begin)
