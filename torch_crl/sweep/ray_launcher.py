"""Starts workers with Ray, on a cluster with a shared file system or on this machine."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_crl.errors import UsageError
from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.record import Recipe
from torch_crl.sweep.launchers import (
    WORKER,
    Job,
    certain_gpu_problems,
    start_worker,
    thread_limits,
)
from torch_crl.sweep.worker import log_of
from torch_crl.system.ray_cluster import connect, missing_ray
from torch_crl.system.threads import usable_cpus

_STOPPED = 143
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(kw_only=True)
class RayLauncher:
    """Starts a Ray task for each run; the task starts the same worker as `LocalLauncher`."""

    parallel: int
    cpus_per_run: int
    gpus_per_run: float
    """GPUs that Ray reserves for each run; a fraction if runs share one."""
    worker: Sequence[str] = WORKER
    shut_down: bool = True
    """Whether `close` disconnects from the cluster and ends it if it was started for this sweep."""

    def start(self, run_dir: Path, recipe: Recipe) -> Job:
        import ray

        wants_gpu = recipe.system.device != "cpu"
        # The sweep retries failed runs itself and reports them.
        task = ray.remote(
            num_cpus=self.cpus_per_run,
            num_gpus=self.gpus_per_run if wants_gpu else 0,
            max_retries=0,
        )(_work_in_ray)
        limits = thread_limits(self.cpus_per_run)
        arguments = (str(run_dir), recipe.to_json(), list(self.worker), limits, os.getcwd())
        return _RayJob(task.remote(*arguments), log_of(run_dir))

    def close(self) -> None:
        import ray

        if self.shut_down:
            ray.shutdown()


class _RayJob:
    """A Ray task that runs a worker."""

    def __init__(self, reference: Any, log: Path) -> None:
        self._reference, self._log = reference, log

    def status(self) -> int | None:
        import ray

        if not ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return int(ray.get(self._reference))
        except ray.exceptions.TaskCancelledError:
            return _STOPPED
        except ray.exceptions.RayError as error:
            # For example, the node is gone or does not see the folder.
            with self._log.open("a") as file:
                file.write(f"Ray: {error}\n")
            return 1

    def stop(self) -> None:
        import ray

        ray.cancel(self._reference)

    def kill(self) -> None:
        # With force=True Ray would kill its own process and leave the worker running.
        self.stop()


def ray_launcher(
    recipes: Sequence[Recipe],
    *,
    parallel: int = 0,
    cpus_per_run: int = 0,
    runs_per_gpu: int = 1,
    address: str = "",
    worker: Sequence[str] = WORKER,
) -> RayLauncher:
    """Connect to a Ray cluster, or start one on this machine if `address` is empty.

    Args:
        parallel: number of runs handed to Ray at a time; 0 is all, and Ray starts those that fit.
        cpus_per_run: CPUs that Ray reserves for each run; 0 is one.
        runs_per_gpu: how many runs share a GPU, if the cluster has GPUs and the recipe may use one.
        address: address of the cluster, or `auto` for the one that this machine belongs to.
        worker: arguments of the Python interpreter on the node that runs it.

    Raises RecipeError if Ray is missing, there is no cluster, or no node is large enough.
    """
    if problems := missing_ray("--launcher ray") + certain_gpu_problems(recipes):
        raise RecipeError(problems)
    import ray

    cpus = cpus_per_run or 1
    connected = ray.is_initialized()
    if not connected:
        try:
            connect(address, flag="--address", cpus=usable_cpus())
        except UsageError as error:
            raise RecipeError([str(error)]) from None
    largest = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    if cpus > largest:
        if not connected:
            ray.shutdown()
        problem = f"--cpus-per-run {cpus} is more than any node of the cluster has: {largest}"
        raise RecipeError([problem])
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    return RayLauncher(
        parallel=parallel or len(recipes),
        cpus_per_run=cpus,
        gpus_per_run=1 / runs_per_gpu if has_gpus else 0,
        worker=worker,
        shut_down=not connected,
    )


def _work_in_ray(
    run_dir: str, recipe: str, worker: list[str], environment: dict[str, str], folder: str
) -> int:
    """Run the worker on the node that Ray chose; returns its exit status.

    Ray cancels a task by raising KeyboardInterrupt, which is passed on as a termination signal.
    """
    process = start_worker(
        Path(run_dir), recipe, worker=worker, environment=environment, folder=folder
    )
    try:
        while process.poll() is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        process.terminate()
    return process.wait()
