"""Remote collectors as Ray actors, which Ray places on machines and starts again when they die."""

import importlib.util
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from torch_crl.errors import UsageError
from torch_crl.experience.remote import CollectorLostError, Part
from torch_crl.recipe.record import Recipe
from torch_crl.system.threads import usable_cpus
from torch_crl.training.collecting_process import CollectingProcess, NotBegunError


class RayHost:
    """See `Host`."""

    def __init__(self, recipe: Recipe, *, number: int, cpus: int) -> None:
        """Place the collector on a machine with so many free CPUs, now or when there is one."""
        import ray

        placed = ray.remote(CollectingProcess).options(
            num_cpus=cpus,
            max_restarts=-1,
            runtime_env={"env_vars": {"TORCH_CRL_THREADS": str(cpus), "OMP_NUM_THREADS": "1"}},
        )
        self._process = placed.remote(recipe, number=number)
        self._parts: deque[Any] = deque()
        self._begun: Any = None
        self._lost = False

    def begin(self, incarnation: int, trajectory_M: np.ndarray) -> None:
        """See `Host`."""
        import ray

        self._parts.clear()
        # Tried again while Ray starts a process in place of one that died.
        begin = self._process.begin.options(max_task_retries=-1)
        self._begun = begin.remote(incarnation, trajectory_M)
        if self._lost:
            # What is asked of a process that is still being started would be lost again.
            ray.get(self._begun)
            self._lost = False

    def ask(self, weights: object, updates: int, rows: int) -> None:
        """See `Host`."""
        self._parts.append(self._process.collect.remote(weights, updates, rows))

    def take(self) -> Part:
        """See `Host`. Raises the errors of the collector's own work too."""
        import ray

        try:
            ray.get(self._begun)
            part: Part = ray.get(self._parts.popleft())
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, NotBegunError):
                self._lost = True
                raise CollectorLostError from error
            raise error.cause from None
        except ray.exceptions.RayError as error:
            self._lost = True
            raise CollectorLostError from error
        return part

    def close(self) -> None:
        """See `Host`."""
        import ray

        with suppress(Exception):
            ray.kill(self._process)


def ray_hosts(recipe: Recipe) -> list[RayHost]:
    """The collectors of a recipe, on the Ray cluster that it names or on this machine.

    Raises UsageError if there is no such cluster.
    """
    import ray

    system = recipe.system
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if system.collector_address:
            try:
                ray.init(address=system.collector_address, **quiet)
            except ConnectionError as error:
                raise UsageError(
                    f"--collector-address {system.collector_address}: no Ray cluster there "
                    f"({error}); `ray start --head` starts one"
                ) from None
        else:
            cpus = max(usable_cpus(), system.collectors)
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    cpus = system.simulator_threads or 1
    return [RayHost(recipe, number=each, cpus=cpus) for each in range(system.collectors)]


def collector_problems(recipe: Recipe) -> list[str]:
    """The reasons why a recipe's collectors cannot work, each with its cure."""
    system = recipe.system
    if not system.collectors:
        given = [name for name in ("address", "policy") if getattr(system, f"collector_{name}")]
        return [f"--collector-{name} is for --collectors of at least 1" for name in given]
    problems = []
    if importlib.util.find_spec("ray") is None:
        problems.append("--collectors needs Ray: pip install 'torch_crl[study]'")
    if recipe.task.num_envs % system.collectors:
        problems.append(
            f"--collectors {system.collectors} divide the training envs, and --num-envs "
            f"{recipe.task.num_envs} is no multiple of them"
        )
    if system.overlap == "on":
        problems.append("--overlap on is what --collectors do anyway; leave it out")
    if system.simulator != "cpu":
        problems.append("--collectors have physics on CPUs; leave out --simulator warp")
    if system.collector_policy and not Path(system.collector_policy).exists():
        problems.append(f"--collector-policy {system.collector_policy} does not exist")
    return problems
