"""The interface between the trainer and an algorithm: a run that collects and updates."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_crl.agent.policy import Policy
from torch_crl.envs.make import make_vector_env
from torch_crl.envs.places import GoalPoints
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.fields import STRICT, StepsOrZero
from torch_crl.recipe.record import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """A collection and the updates after it so far, which are logged when all of them are done."""

    __pydantic_config__ = STRICT

    episodes: dict[str, float] = field(default_factory=dict)
    """Metrics of the collection."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the updates' metrics."""
    updates: StepsOrZero = 0
    """The number of updates in the sums."""


class Run(ABC):
    """The state of a run. All step counters follow from `collections_done` and `updates_done`."""

    resumable: bool
    """Whether `state_dict` contains all that a run needs to be resumed."""

    def __init__(self, recipe: Recipe) -> None:
        """A run at its beginning."""
        self.recipe = recipe
        self.collections_done = 0
        self.updates_done = 0
        self.seconds = 0.0
        """Wall-clock time of training so far, over all sessions."""
        self.round = Round()
        """What was not logged when the run was saved."""
        self.update_sizes: dict[str, Tensor] = {}
        """Gradient norms and sizes of the last update after a collection, see
        `torch_crl.agent.optimizer.UpdateSizes`; empty if an algorithm does not measure them."""

    @property
    def env_steps(self) -> int:
        """Control steps taken by all training envs together."""
        return self.collections_done * self.recipe.steps_per_collection

    @property
    def updates_due(self) -> int:
        """Updates to be done after the collections so far."""
        after_prefill = max(0, self.collections_done - self.recipe.prefill_collections)
        return after_prefill * self.recipe.updates_per_collection

    @property
    def progress(self) -> float:
        """Env steps whose updates are done; the newest collection counts in proportion."""
        waiting = (self.updates_due - self.updates_done) / self.recipe.updates_per_collection
        return self.env_steps - waiting * self.recipe.steps_per_collection

    @property
    @abstractmethod
    def env(self) -> VectorEnv:
        """The training envs."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device on which the updates are computed."""

    @property
    @abstractmethod
    def description(self) -> str:
        """How the updates are computed, as text for the user."""

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """The current deterministic policy; later updates change it."""

    @abstractmethod
    def collect(self) -> dict[str, float]:
        """Collect one unroll in every env; returns metrics of the episodes."""

    @abstractmethod
    def update(self) -> dict[str, Tensor]:
        """One gradient update, or a few that belong together.

        Returns 0-D metrics, valid until the next call overwrites them.
        """

    @abstractmethod
    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name."""

    def forget_collection(self, *, counted: bool) -> None:  # noqa: ARG002
        """Drop the data of a collection that has failed, where a checkpoint would contain it.

        `counted` tells whether it is among those done, since it failed only afterwards.
        """
        return

    def collect_ahead(self) -> None:
        """Start the next collection early, if the run can."""
        return

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and counters for a checkpoint, if `resumable`."""
        raise NotImplementedError

    def check_state(
        self, tensors: dict[str, Tensor], *, collections_done: int, updates_done: int
    ) -> None:
        """Raise ValueError unless this can be the state of this run after so many of both."""
        raise NotImplementedError

    def load_state_dict(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Restore the state of the run that wrote this, if `resumable`."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Release the resources of the envs."""


def make_training_env(
    recipe: Recipe,
    device: torch.device,
    stream: str = "starts",
    *,
    places: GoalPoints | None = None,
) -> VectorEnv:
    """The training envs; Warp's physics runs on `device`, and `stream` draws starts and goals.

    `places` are the points at which goals are commanded, if not at those of the task.
    """
    return make_vector_env(
        recipe.task.name,
        num_envs=recipe.task.num_envs,
        episode_length=recipe.task.episode_length,
        seed=stream_seed(recipe.system.seed, stream),
        simulator=recipe.system.simulator,
        num_threads=recipe.system.simulator_threads,
        device=device,
        cached_starts=recipe.algorithm.parity == "reference",
        goal_redraw=recipe.algorithm.goal_redraw,
        places=places,
        env_timeout=recipe.system.env_timeout,
    )


def stream_seed(seed: int, stream: str) -> int:
    """An independent seed for each named stream of random numbers of a run."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
