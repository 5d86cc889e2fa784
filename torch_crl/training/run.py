"""What the trainer drives: a run that collects and updates, whoever's algorithm it is."""

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from torch_crl.agent.policy import Policy
from torch_crl.envs.make import make_vector_env
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.recipe.record import Recipe


class Run(ABC):
    """Everything that changes while a run goes on. All counters follow from the first two."""

    resumable: bool
    """Whether `state_dict` holds all that a run needs to go on."""

    def __init__(self, recipe: Recipe) -> None:
        """At its beginning."""
        self.recipe = recipe
        self.collections_done = 0
        self.updates_done = 0
        self.seconds = 0.0
        """Wall-clock of training so far, over all sessions."""
        self.update_sizes: dict[str, Tensor] = {}
        """Of the last update that a collection asked for, see
        `torch_crl.agent.optimizer.UpdateSizes`; empty where an algorithm does not measure them."""

    @property
    def env_steps(self) -> int:
        """Control steps taken by all training envs together."""
        return self.collections_done * self.recipe.steps_per_collection

    @property
    def updates_due(self) -> int:
        """Updates that the collections so far ask for."""
        after_prefill = max(0, self.collections_done - self.recipe.prefill_collections)
        return after_prefill * self.recipe.updates_per_collection

    @property
    def progress(self) -> float:
        """Env steps whose updates are done: the present collection counts in proportion."""
        waiting = (self.updates_due - self.updates_done) / self.recipe.updates_per_collection
        return self.env_steps - waiting * self.recipe.steps_per_collection

    @property
    @abstractmethod
    def env(self) -> VectorEnv:
        """The training envs."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the updates are computed."""

    @property
    @abstractmethod
    def description(self) -> str:
        """How the updates are computed, for people."""

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """The present deterministic policy; it follows the updates."""

    @abstractmethod
    def collect(self) -> dict[str, float]:
        """One unroll in every env; returns what the episodes showed."""

    @abstractmethod
    def update(self) -> dict[str, Tensor]:
        """One gradient update, or a few that belong together; 0-D metrics, for a moment only."""

    @abstractmethod
    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name."""

    def forget_collection(self) -> None:
        """Go back to before a collection that has failed, as far as that can be saved."""
        return

    def collect_ahead(self) -> None:
        """Begin the next collection early, where the run can."""
        return

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and counters of a checkpoint, if `resumable`."""
        raise NotImplementedError

    def check_state(
        self, tensors: dict[str, Tensor], *, collections_done: int, updates_done: int
    ) -> None:
        """Raise ValueError unless this is a state of such a run after so many of both."""
        raise NotImplementedError

    def load_state_dict(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Go on where the run that wrote this was, if `resumable`."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the envs hold."""
        self.env.close()


def make_training_env(recipe: Recipe, device: torch.device) -> VectorEnv:
    """The training envs; Warp's physics runs on `device`."""
    return make_vector_env(
        recipe.task.name,
        num_envs=recipe.task.num_envs,
        episode_length=recipe.task.episode_length,
        seed=stream_seed(recipe.system.seed, "starts"),
        simulator=recipe.system.simulator,
        num_threads=recipe.system.simulator_threads,
        device=device,
        cached_starts=recipe.algorithm.parity == "reference",
        env_timeout=recipe.system.env_timeout,
    )


def stream_seed(seed: int, stream: str) -> int:
    """An independent seed for each named stream of random numbers of a run."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
