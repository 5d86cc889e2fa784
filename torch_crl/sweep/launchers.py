"""Starts the workers of a sweep: what launchers have in common, and the one for this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.record import Recipe
from torch_crl.sweep.worker import log_of
from torch_crl.system.devices import resolve_device
from torch_crl.system.threads import THREADS, usable_cpus

WORKER = ("-P", "-m", "torch_crl.sweep.worker")
"""Arguments of the Python interpreter; the run directory follows. Without -P, a folder torch_crl in
the current directory would be imported instead of the package that starts the worker."""


class Job(Protocol):
    """A worker that was started."""

    def status(self) -> int | None:
        """None while it runs, then its exit status; minus the signal's number if one killed it."""

    def stop(self) -> None:
        """Ask it to save its state and exit."""

    def kill(self) -> None:
        """End it at once, without saving."""


class Launcher(Protocol):
    """Starts workers."""

    parallel: int
    """Largest number of workers that may be started and not yet ended at a time."""

    def start(self, run_dir: Path, recipe: Recipe) -> Job:
        """Start a worker that trains `recipe` in `run_dir`."""

    def close(self) -> None:
        """Release what the launcher holds."""


@dataclass(kw_only=True)
class LocalLauncher:
    """Starts processes on this machine, each with a number of CPUs and one of the GPUs."""

    parallel: int
    cpus_per_run: int
    gpus: Sequence[str] = ()
    """Values for CUDA_VISIBLE_DEVICES, one for each GPU; runs take them in turns."""
    worker: Sequence[str] = WORKER
    _slots: dict[int, "_Process"] = field(default_factory=dict)

    def start(self, run_dir: Path, recipe: Recipe) -> Job:
        slot = next(
            slot
            for slot in range(self.parallel)
            if slot not in self._slots or self._slots[slot].status() is not None
        )
        environment = thread_limits(self.cpus_per_run)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        process = start_worker(
            run_dir, recipe.to_json(), worker=self.worker, environment=environment
        )
        self._slots[slot] = _Process(process)
        return self._slots[slot]

    def close(self) -> None:
        """Do nothing: this launcher holds nothing."""


class _Process:
    """A worker on this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def status(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def local_launcher(
    recipes: Sequence[Recipe],
    *,
    parallel: int = 0,
    cpus_per_run: int = 0,
    runs_per_gpu: int = 1,
    worker: Sequence[str] = WORKER,
) -> LocalLauncher:
    """Make a launcher of processes on this machine for these recipes.

    Args:
        parallel: number of runs at a time; 0 is as many as the GPUs have room for, or one if
            updates are on the CPU.
        cpus_per_run: CPUs for each run; 0 divides them evenly among the runs at a time.
        runs_per_gpu: how many runs share a GPU, if updates are on one.
        worker: arguments of the Python interpreter.

    Raises RecipeError if `parallel` is more than the GPUs have room for, or if a recipe names one
    certain GPU.
    """
    gpus = _visible_gpus() if any(_wants_gpu(recipe) for recipe in recipes) else []
    problems = certain_gpu_problems(recipes)
    room = len(gpus) * runs_per_gpu
    if gpus and parallel > room:
        problems.append(
            f"--parallel {parallel} is more than {len(gpus)} GPUs with {runs_per_gpu} runs each; "
            "raise --runs-per-gpu or lower --parallel"
        )
    if problems:
        raise RecipeError(problems)
    parallel = parallel or room or 1
    return LocalLauncher(
        parallel=parallel,
        cpus_per_run=cpus_per_run or max(1, usable_cpus() // parallel),
        gpus=gpus,
        worker=worker,
    )


def certain_gpu_problems(recipes: Sequence[Recipe]) -> list[str]:
    """A message for each device that is one certain GPU: the launcher assigns GPUs itself."""
    named = sorted({r.system.device for r in recipes if r.system.device.startswith("cuda:")})
    return [
        f"--device {device}: a sweep hands out the GPUs itself; use cuda or auto, and "
        "CUDA_VISIBLE_DEVICES to narrow the choice"
        for device in named
    ]


def thread_limits(cpus: int) -> dict[str, str]:
    """Environment variables with which a run uses this many CPUs if its recipe says all CPUs."""
    return {THREADS: str(cpus), "OMP_NUM_THREADS": str(cpus)}


def start_worker(
    run_dir: Path,
    recipe: str,
    *,
    worker: Sequence[str],
    environment: Mapping[str, str],
    folder: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a worker with its recipe as JSON on standard input and its output in its log.

    Its working directory is `folder` (the current one if not given), where modules of the user's
    own tasks are found. It has a session of its own, so that Ctrl-C in the terminal reaches only
    the driver, which passes it on once.
    """
    with log_of(run_dir).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *worker, str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
            cwd=folder,
        )
    # A recipe fits into the pipe's buffer, so writing does not block. If the worker exits before it
    # reads the recipe, its exit status shows that.
    with suppress(BrokenPipeError), process.stdin as given:  # type: ignore[union-attr]
        given.write(recipe.encode())
    return process


def _wants_gpu(recipe: Recipe) -> bool:
    return resolve_device(recipe.system.device).type == "cuda"


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]
