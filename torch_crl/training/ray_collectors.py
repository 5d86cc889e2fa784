"""Remote collectors as Ray actors, which Ray places on machines and starts again when they die."""

from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from torch_crl.experience.remote import CollectorLostError, Part
from torch_crl.recipe.record import Recipe
from torch_crl.system.ray_cluster import connect
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
    if not ray.is_initialized():
        enough = max(usable_cpus(), system.collectors)
        connect(system.collector_address, flag="--collector-address", cpus=enough)
    cpus = system.simulator_threads or 1
    return [RayHost(recipe, number=each, cpus=cpus) for each in range(system.collectors)]
