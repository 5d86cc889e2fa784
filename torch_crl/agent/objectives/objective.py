"""The interface of an objective: what a critic learns from a batch, and how it scores actions.

B batch, A action or chunk of actions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

Aux = dict[str, Tensor]


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
    what `labels` asks the replay for. Nothing may wait for the device, and shapes may not depend on
    values, since updates are captured in CUDA graphs.
    """

    modules: dict[str, nn.Module]
    """The networks that it trains, by the names that their parameters have in checkpoints."""

    @abstractmethod
    def loss(self, batch: TensorDict) -> tuple[Tensor, Aux]:
        """The loss of the critic's parameters and metrics, both without the actor."""

    @abstractmethod
    def score(self, batch: TensorDict, policy: PolicyRows) -> Tensor:
        """How good the policy's actions are [B]; the critic's parameters are constants."""

    def judge(self, batch: TensorDict, policy: PolicyRows) -> Judgement:
        """Both at once; an objective may share computations between them."""
        loss, metrics = self.loss(batch)
        return Judgement(loss, self.score(batch, policy), metrics)

    def to(self, device: torch.device) -> "Objective":
        """Move all networks; returns self."""
        for module in self.modules.values():
            module.to(device)
        return self

    def parameters(self) -> list[Tensor]:
        """All parameters."""
        return [each for module in self.modules.values() for each in module.parameters()]
