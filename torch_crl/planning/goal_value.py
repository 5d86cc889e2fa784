"""What a trained run thinks of its own way to a goal: V(s, g) = f(s, pi(s, g), g), and distances.

Source of the distance: successor distance, arXiv 2406.17098. B batch, S state, G goal, P states.
"""

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from torch_crl.agent.networks import build_networks
from torch_crl.agent.objectives.objective import Objective, PolicyRows
from torch_crl.agent.policy import Policy
from torch_crl.envs.registry import task_spec
from torch_crl.errors import UsageError
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.finding import is_in_zoo
from torch_crl.runs.policies import find_policy
from torch_crl.runs.zoo import command_of
from torch_crl.system import checkpoint
from torch_crl.system.torch_defaults import torch_defaults
from torch_crl.training.building import build_objective

_AT_ONCE = 4096
"""Rows that pass through the networks together."""
_LEARNER = "parameter."


@dataclass(frozen=True, kw_only=True)
class GoalValue:
    """How a critic judges what a policy would do in a state for a goal."""

    policy: Policy
    objective: Objective
    discount: float

    @torch_defaults()
    @torch.no_grad()
    def __call__(self, state_BS: Tensor, goal_BG: Tensor) -> Tensor:
        """V(s, g) [B]: the critic's score of the deterministic action."""
        values = []
        for state, goal in zip(state_BS.split(_AT_ONCE), goal_BG.split(_AT_ONCE), strict=True):
            action = self.policy.plan(state, goal).flatten(1)
            # No state of a plan has failed; only the objective `chrono` asks.
            failed = torch.zeros(len(state), dtype=torch.bool)
            batch = {"state": state, "goal": goal, "failed": failed}
            values.append(self.objective.score(batch, PolicyRows(action, lambda rows: rows)))
        return torch.cat(values)

    @torch_defaults()
    @torch.no_grad()
    def regret(self, other: Policy, state_BS: Tensor, goal_BG: Tensor) -> float:
        """Mean of f(s, a, g) - f(s, a', g) for this policy's actions a and those a' of another."""
        theirs = dataclasses.replace(self, policy=other)
        return float((self(state_BS, goal_BG) - theirs(state_BS, goal_BG)).mean())

    def steps(self, value: Tensor, at_goal: Tensor) -> Tensor:
        """Distance in control steps, at least 1, from V(s, g) and from V of a state at that goal.

        Energies are logarithms of ratios of discounted visits, so their difference is as many nats
        as -log(discount) gives per step. They order distances well and exaggerate long ones.
        Objectives that predict the time to the goal say it themselves; theirs is discounted.
        """
        if self.objective.counts_steps:
            return (-value).clamp_min(1.0)
        return ((at_goal - value) / -math.log(self.discount)).clamp_min(1.0)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters of the critic, by the names that they have in checkpoints."""
        return {
            f"{module}.{name}": parameter.detach()
            for module, network in self.objective.modules.items()
            for name, parameter in network.named_parameters()
        }


class TrainedRun(NamedTuple):
    """What planning needs of a run."""

    recipe: Recipe
    value: GoalValue
    visited_PS: Tensor
    """States of the replay, in random order."""
    passed_over: list[str]
    """Why newer checkpoints could not be read."""


def goal_value(recipe: Recipe, policy: Policy, tensors: dict[str, Tensor]) -> GoalValue:
    """The critic with these parameters, which `GoalValue.tensors` returned, for this policy.

    Raises ValueError if they do not fit the recipe.
    """
    generator = Generator().manual_seed(0)
    networks = build_networks(recipe.network_sizes, generator=generator)
    objective = build_objective(recipe, networks, task_spec(recipe.task.name), generator)
    value = GoalValue(policy=policy, objective=objective, discount=recipe.algorithm.discount)
    ours = value.tensors()
    checkpoint.check_tensors(tensors, ours)
    for name, tensor in ours.items():
        tensor.copy_(tensors[name])
    return value


@torch_defaults()
def load_trained_run(directory: RunDirectory, *, states: int) -> TrainedRun:
    """Policy, critic and at most so many visited states of a run.

    Raises UsageError for runs without a critic of goals or without a checkpoint, and
    CheckpointError.
    """
    recipe = directory.read_recipe()
    if recipe.algorithm.algo != "crl":
        raise UsageError(
            f"this run was trained with --algo {recipe.algorithm.algo}, whose critic tells no "
            "distances to goals; those of --algo crl do"
        )
    if recipe.goal_space.goals != "state":
        raise UsageError(
            f"this run was trained with --goals {recipe.goal_space.goals}, and distances are told "
            "between goals of the state only"
        )
    if is_in_zoo(directory):
        raise UsageError(
            "the policies of the zoo come without critic and replay; a run of your own has them: "
            f"{command_of(recipe)}"
        )
    if not directory.saved_checkpoints:
        raise UsageError(
            f"{directory} has no checkpoint, and with it neither critic nor replay; give the "
            "directory of a run as `torch-crl train` left it, not a copy of its policies"
        )
    folder, tensors, _, failures = checkpoint.load_newest(directory.saved_checkpoints, rank=0)
    if "replay/state" not in tensors:
        raise UsageError(
            f"{directory} holds a policy that was made of another one, with neither critic nor "
            "replay; give the run that was trained, and this one as --controller of `plan`"
        )
    policy = _policy_at(directory, folder.name)
    of_learner = checkpoint.part_of(tensors, "learner")
    parameters = {
        name.removeprefix(_LEARNER): tensor
        for name, tensor in of_learner.items()
        if name.startswith(_LEARNER)
    }
    of_critic = {
        name: tensor
        for name, tensor in parameters.items()
        if name != "log_alpha" and not name.startswith("actor.")
    }
    try:
        value = goal_value(recipe, policy, of_critic)
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{folder} does not fit this run: {error}") from error
    visited_PS = _some(tensors["replay/state"].flatten(0, 1), states)
    return TrainedRun(recipe, value, visited_PS, failures)


def _policy_at(directory: RunDirectory, moment: str) -> Policy:
    """The policy that was saved with a checkpoint; the newest if that one is lost."""
    with suppress(checkpoint.CheckpointError):
        return find_policy(directory.policies / moment).policy
    return find_policy(directory.path).policy


def _some(state_PS: Tensor, count: int) -> Tensor:
    generator = Generator().manual_seed(0)
    rows = torch.randperm(len(state_PS), generator=generator)[:count]
    return state_PS[rows].float()
