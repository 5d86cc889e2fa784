"""What a remote collector is in its own process: its part of the envs, and what acts there."""

import os

import numpy as np
import torch
from torch import Generator, nn

from torch_crl.agent.networks import ResidualTower
from torch_crl.envs.registry import UnknownTaskError, task_spec
from torch_crl.experience.collector import Collector
from torch_crl.experience.overlap import Staging
from torch_crl.experience.remote import Part, Weights
from torch_crl.goals.pictures import PictureReader
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.policies import load_policy
from torch_crl.system.checkpoint import CheckpointError
from torch_crl.system.torch_defaults import torch_defaults
from torch_crl.training.goal_spaces import build_goal_space
from torch_crl.training.run import make_training_env, stream_seed
from torch_crl.training.stability import DivergenceMonitor


class NotBegunError(RuntimeError):
    """The process is new, and has not been told which incarnation it is."""


class CollectingProcess:
    """Collects what it is asked for, with the weights that it is sent."""

    def __init__(self, recipe: Recipe, *, number: int) -> None:
        """Collector `number` of those that the recipe asks for."""
        system = recipe.system
        self._recipe = with_changes(
            recipe,
            task={"num_envs": recipe.task.num_envs // system.collectors},
            system={"device": "cpu"},
        )
        self._number = number
        self._actor = _actor(recipe)
        self._goals = build_goal_space(self._recipe, torch.device("cpu"))
        self._takes_weights = not system.collector_policy
        self._collector: Collector | None = None
        self._incarnation = 0
        self._steps = 0

    @torch_defaults()
    def begin(self, incarnation: int, trajectory_M: np.ndarray) -> None:
        """Begin fresh episodes, whose numbers follow those of the columns so far."""
        if self._collector is not None:
            self._collector.close()
        stream = f"collector{self._number}/{incarnation}"
        env = make_training_env(
            self._recipe,
            torch.device("cpu"),
            f"starts/{stream}",
            places=self._goals.places,
        )
        env.trajectory_N += torch.from_numpy(trajectory_M.copy())
        self._staging = Staging.of(env, rows=self._recipe.budget.unroll_length)
        seed = stream_seed(self._recipe.system.seed, f"exploration/{stream}")
        self._collector = Collector(
            env,
            self._actor,
            self._staging,
            generator=Generator().manual_seed(seed),
            chunk=self._recipe.algorithm.chunk,
            goals=self._goals,
        )
        self._stability = DivergenceMonitor(env)
        self._incarnation, self._steps = incarnation, 0

    @torch_defaults()
    @torch.no_grad()
    def collect(self, weights: Weights, updates: int, rows: int) -> Part:
        """Take `rows` control steps in every env.

        Raises NotBegunError before `begin`; SimulatorError and NotFiniteError as a run does.
        """
        if self._collector is None:
            raise NotBegunError
        if self._takes_weights:
            for name, parameter in self._actor.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name].copy()))
        episodes = self._collector.collect(rows)
        self._steps += rows * self._collector.env.num_envs
        self._stability.report(self._steps)
        steps = {name: part.numpy().copy() for name, part in self._staging.state_dict().items()}
        self._staging.filled = 0
        return Part(incarnation=self._incarnation, updates=updates, steps=steps, episodes=episodes)

    def process(self) -> int:
        """The number of this process on its machine."""
        return os.getpid()

    def close(self) -> None:
        """Release the envs."""
        if self._collector is not None:
            self._collector.close()


def _actor(recipe: Recipe) -> ResidualTower:
    """The network that acts: the run's own, or that of a policy which is smaller or ready-made."""
    if not recipe.system.collector_policy:
        return ResidualTower(recipe.network_sizes.actor, generator=None).requires_grad_(False)
    actor: nn.Module = load_policy(recipe.system.collector_policy).actor
    assert isinstance(actor, ResidualTower)
    return actor.requires_grad_(False)


def policy_problems(recipe: Recipe) -> list[str]:
    """The reasons why collectors cannot act with the policy that the recipe names for them."""
    path = recipe.system.collector_policy
    if not (recipe.system.collectors and path):
        return []
    try:
        policy, spec = load_policy(path), task_spec(recipe.task.name)
    except CheckpointError as error:
        return [f"--collector-policy: {error}"]
    except UnknownTaskError:
        return []  # Reported by the checks of the task.
    draws = isinstance(policy.actor, ResidualTower) and policy.head == "squashed_gaussian"
    if not draws or policy.camera is not None:
        return [
            f"--collector-policy {path} must be a tower that sees states and draws actions from a "
            "Gaussian, such as one of --algo crl or gcbc or a student of it"
        ]
    reader = policy.reader
    goals = "pictures" if isinstance(reader, PictureReader) else "words" if reader else "state"
    compared = {
        "state_size": (policy.state_size, spec.state_size),
        "goals": (goals, recipe.goal_space.goals),
        "goal_size": (reader.size if reader else policy.goal_size, recipe.goal_size),
        "action_size": (policy.action_size, spec.action_size),
        "chunk": (policy.chunk, recipe.algorithm.chunk),
    }
    told = [
        f"{name} {theirs} and not {ours}"
        for name, (theirs, ours) in compared.items()
        if theirs != ours
    ]
    return [f"--collector-policy {path} does not fit this run: {', '.join(told)}"] if told else []
