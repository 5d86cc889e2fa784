"""N parallel episodes of a Gymnasium goal env, in processes. N envs, S state, G goal, A action."""

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from torch import Tensor

from torch_crl.envs.gymnasium.foreign import EnvGroup, columns, probe
from torch_crl.envs.vector_env import StepResult
from torch_crl.errors import TorchCrlError
from torch_crl.threads import usable_cpus


class ForeignEnvError(TorchCrlError, RuntimeError):
    """A Gymnasium env raised an exception, or its process died; the message names the env."""


class GymnasiumVectorEnv:
    """What `torch_crl.envs.vector_env.VectorEnv` is for our own tasks; on the CPU.

    The envs are spread over one process a CPU and end their episodes themselves; an episode may be
    `terminated` because it reached its goal. Their physics cannot be saved: after
    `load_state_dict` all envs begin fresh episodes, numbered on from the saved ones.
    """

    saves_state = False

    def __init__(
        self, name: str, *, num_envs: int, episode_length: int, seed: int, num_processes: int = 0
    ) -> None:
        """Start the processes (0 is one for every CPU) and begin the first episodes.

        Raises UnsuitableEnvError, or ForeignEnvError with what an env raised.
        """
        self.spec, env_spec = probe(name)
        self.num_envs = num_envs
        self.episode_length = episode_length
        self.state_NS = torch.zeros(num_envs, self.spec.state_size)
        self.goal_NG = torch.zeros(num_envs, self.spec.goal_size)
        self.steps_N = torch.zeros(num_envs, dtype=torch.int32)
        self.trajectory_N = torch.zeros(num_envs, dtype=torch.int32)
        # Theirs to find.
        self.unstable_N, self.unstable_step_N = torch.zeros(2, num_envs, dtype=torch.int32)
        # More bits than this are an error to some random number generators.
        self._seed = seed % 2**31
        self._rows = -(-num_envs // min(num_envs, num_processes or usable_cpus()))
        firsts = range(0, num_envs, self._rows)
        make_group = partial(
            EnvGroup, self.spec, env_spec, rows=self._rows, episode_length=episode_length
        )
        self._action = np.zeros((len(firsts), self._rows, self.spec.action_size), dtype=np.float32)
        self._working = False
        with self._at_work(), _main_module_hidden():
            self._workers = AsyncVectorEnv(
                [partial(make_group, count=min(self._rows, num_envs - first)) for first in firsts],
                copy=False,
                context=_start_method(env_spec),
                autoreset_mode=AutoresetMode.DISABLED,
            )
        # The memory that the processes write to.
        table = torch.from_numpy(self._workers.observations).flatten(0, 1)[:num_envs]
        self._parts = {part: table[:, place] for part, place in columns(self.spec).items()}
        try:
            self.reset()
        except BaseException:
            self.close()
            raise

    def reset(self) -> None:
        """Begin a fresh episode in every env; equal seeds and episode numbers give equal ones."""
        first = self._seed + int(self.trajectory_N.sum())
        seeds: list[int | None] = [first + self._rows * group for group in range(len(self._action))]
        with self._at_work():
            *_, infos = self._workers.reset(seed=seeds)
        self._raise_errors(infos)
        self._read_next()
        self.steps_N.zero_()
        self.trajectory_N += 1

    def step(self, action_NA: Tensor) -> StepResult:
        """Apply float32 actions in [-1, 1], shape [N, A], for one control step."""
        self._action.reshape(-1, self.spec.action_size)[: self.num_envs] = action_NA.numpy()
        with self._at_work():
            *_, infos = self._workers.step(self._action)
        self._raise_errors(infos)
        parts = self._parts
        terminated_N = parts["terminated"][:, 0] > 0
        truncated_N = (parts["truncated"][:, 0] > 0) & ~terminated_N
        ended_N = terminated_N | truncated_N
        self.steps_N += 1
        self.steps_N.masked_fill_(ended_N, 0)
        self.trajectory_N += ended_N
        self._read_next()
        return StepResult(
            final_state_NS=parts["final_state"].clone(),
            distance_N=parts["distance"][:, 0].clone(),
            success={"success": parts["success"][:, 0] > 0},
            terminated_N=terminated_N,
            truncated_N=truncated_N,
            unstable_N=torch.zeros_like(ended_N),
        )

    def check(self) -> None:
        """Nothing to find: what goes wrong in an env is raised by `step`."""

    def close(self) -> None:
        """Close the envs and end their processes; twice is once."""
        workers = self._workers
        if not self._working:
            with suppress(EOFError, OSError):
                workers.close()
        # Who died, or was interrupted in the middle of a step, cannot be asked to leave.
        if not workers.closed:
            for process in workers.processes:
                process.terminate()
                process.join()
            workers.closed = True

    def state_dict(self) -> dict[str, Tensor]:
        """The numbers of the episodes: all that can be saved."""
        return {"trajectory": self.trajectory_N}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Begin the episodes that come after the saved ones."""
        self.trajectory_N.copy_(tensors["trajectory"])
        self.reset()

    def _read_next(self) -> None:
        self.state_NS.copy_(self._parts["state"])
        self.goal_NG.copy_(self._parts["goal"])

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._working = True
        try:
            yield
        except (EOFError, OSError) as error:
            raise ForeignEnvError(f"a process that steps {self.spec.name} died") from error
        self._working = False

    def _raise_errors(self, infos: dict[str, Any]) -> None:
        for message in infos.get("error", []):
            if message is not None:
                raise ForeignEnvError(f"{self.spec.name} raised {message}")


def _start_method(env_spec: EnvSpec) -> str:
    """Processes come from a small server where there is one, and it has imported what they need.

    A fork of this process would inherit locks that its other threads hold.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    entry = env_spec.entry_point
    module = entry.partition(":")[0] if isinstance(entry, str) else entry.__module__
    multiprocessing.set_forkserver_preload([EnvGroup.__module__, module])
    return "forkserver"


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Inside, new processes do not import the user's script: it costs seconds, or trains again.

    What a script defines reaches them all the same: Gymnasium sends it by value.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
