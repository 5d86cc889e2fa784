"""The interface of an objective: what a critic learns from a batch, and how it scores actions.

B batch, A action or chunk of actions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from torch_crl.agent.learner import Batch
from torch_crl.agent.networks import Networks, ResidualTower
from torch_crl.agent.sizes import TowerSizes
from torch_crl.distributed.ranks import ALONE, Ranks

Aux = dict[str, Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]
"""(achieved goal [N, G], goal [N, G]) to distance [N]."""


@dataclass(frozen=True, kw_only=True)
class HitLabels:
    """What a replay tells about the arrivals of a batch's steps at their goals."""

    window: int
    """Number W of offsets, from the step's own state on, that are looked at."""
    radius: float
    """An offset at which the achieved goal is nearer than this to the goal is an arrival."""
    distance: Distance
    """What "near" means."""
    future: float = 0.85
    """Share of the goals from the step's future; the others are drawn as below."""
    own: float = 0.05
    """Share of the goals that are the step's own; the rest is from any step of the replay."""
    never: bool = False
    """Count a step whose trajectory was cut before its arrival as one that never arrives."""
    edges: list[int] = field(default_factory=list)
    """Edges of the bins of offsets whose occupancy is wanted; none if empty."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an objective is built from; each takes what it needs. See the recipe's settings."""

    networks: Networks
    """The actor and both encoders."""
    towers: Mapping[str, TowerSizes]
    """Sizes of the further towers of the objective."""
    generator: Generator
    """Draws the initial weights of what the objective adds."""
    energy: str = "norm"
    contrastive_loss: str = "forward_info_nce"
    logsumexp_penalty: float = 0.1
    value_discount: float = 0.999
    window: int = 1000
    """Control steps of an episode."""
    radius: float = 0.0
    """The task's success radius; 0 if it has none."""
    distance: Distance
    """The task's distance, of which that is the radius."""
    never: bool = False
    """Whether trajectories that were cut count as never arriving."""
    ranks: Ranks = ALONE
    """The ranks whose batches the loss is of; `ALONE` with local negatives."""

    def tower(self, name: str) -> ResidualTower:
        """A new tower, computed as the actor is."""
        compute = self.networks.actor.compute
        return ResidualTower(self.towers[name], generator=self.generator, compute=compute)


class PolicyRows(NamedTuple):
    """What the actor would do in the states of a batch."""

    action_BA: Tensor
    """Sampled actions; the score's gradient flows into them."""
    of_actor: Callable[[Tensor], Tensor]
    """Rearranges the rows of goals [B, ...] of the batch, or of what was computed from them, so
    that each row has the goal that the actor was given."""


class Judgement(NamedTuple):
    """What an update needs of a critic."""

    loss: Tensor
    """0-D; its gradient flows into the critic's parameters only."""
    score_B: Tensor
    """The actor maximises its mean; its gradient flows into the policy's actions only."""
    metrics: Aux
    """0-D numbers, without gradient."""


class Objective(ABC):
    """A critic of actions (or chunks of actions) for goals, trained on hindsight goals.

    A batch has float32 `state` [B, S], `action` [B, A], `goal` [B, G], for chunks `whole` [B], and
    what `failures` and `labels` ask for, see `Replay.sample`. Nothing may wait for the device, be
    copied to it, or depend in its shape on values, since CUDA graphs capture updates.
    """

    failures: bool = False
    """Whether the replay has to tell failed trajectories from others."""
    labels: HitLabels | None = None
    """What the replay has to tell about arrivals at goals."""
    counts_steps: bool = False
    """Whether minus the score is an expected number of steps, and not an energy in nats."""
    modules: dict[str, nn.Module]
    """The networks that it trains, by the names that their parameters have in checkpoints."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Aux]:
        """The loss of the critic's parameters and metrics, both without the actor."""

    @abstractmethod
    def score(self, batch: Batch, policy: PolicyRows) -> Tensor:
        """How good the policy's actions are [B]; the critic's parameters are constants."""

    def judge(self, batch: Batch, policy: PolicyRows) -> Judgement:
        """Both at once; an objective may share computations between them."""
        loss, metrics = self.loss(batch)
        return Judgement(loss, self.score(batch, policy), metrics)

    def to(self, device: torch.device) -> "Objective":
        """Move all networks; returns self."""
        for module in self.modules.values():
            module.to(device)
        return self

    def towers(self) -> list[ResidualTower]:
        """All towers in its networks."""
        parts = (part for module in self.modules.values() for part in module.modules())
        return [part for part in parts if isinstance(part, ResidualTower)]

    def parameters(self) -> list[Tensor]:
        """All parameters."""
        return [each for module in self.modules.values() for each in module.parameters()]
