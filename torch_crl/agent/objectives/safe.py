"""Failure-aware contrastive RL (Safe-CRL, arXiv 2608.26571).

Hindsight goals come from the futures that did not fail, so a contrastive critic does not know how
much of the future a failure takes away. That share, Z(s, a) = E[1 - discount^L] for a failure L
steps later, belongs into the value of an action: the actor maximises f + log Z. B batch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from torch_crl.agent.learner import Batch
from torch_crl.agent.networks import Networks, ResidualTower, run_towers
from torch_crl.agent.objectives.crl import ContrastiveObjective, state_action
from torch_crl.agent.objectives.objective import Aux, Judgement, PolicyRows, Setup


class SafeObjective(ContrastiveObjective):
    """Contrastive RL with rows weighted by what a failure leaves, and a network that predicts it.

    The batch has `survived` [B], see `Replay.sample`. Its expectation is Z, so the cross-entropy
    of the prediction with it has the gradient, on average, of one with a drawn horizon.
    """

    failures = True

    def __init__(self, networks: Networks, survival: ResidualTower, **options: Any) -> None:
        """`survival` maps concat(state, action) [B, S + A] to a logit [B, 1]."""
        super().__init__(networks, **options)
        self.survival = survival
        self.modules["survival"] = survival

    @classmethod
    def build(cls, setup: Setup) -> "SafeObjective":
        """The objective with these settings."""
        return cls(
            setup.networks,
            setup.tower("survival"),
            energy=setup.energy,
            contrastive_loss=setup.contrastive_loss,
            logsumexp_penalty=setup.logsumexp_penalty,
            ranks=setup.ranks,
        )

    def judge(self, batch: Batch, policy: PolicyRows) -> Judgement:
        """See `Objective`."""
        critic, score_B, metrics = super().judge(batch, policy)
        taken, chosen = (state_action(batch, each) for each in (batch["action"], policy.action_BA))
        logit_B1, of_policy_B1 = run_towers([taken], [self.survival], frozen=chosen)
        survival, more = self._survival_loss(batch, logit_B1)
        score_B = score_B + functional.logsigmoid(of_policy_B1[:, 0])
        return Judgement(critic + survival, score_B, metrics | more)

    def loss(self, batch: Batch) -> tuple[Tensor, Aux]:
        """See `Objective`."""
        critic, metrics = super().loss(batch)
        logit_B1 = self.survival(state_action(batch, batch["action"]))
        survival, more = self._survival_loss(batch, logit_B1)
        return critic + survival, metrics | more

    def score(self, batch: Batch, policy: PolicyRows) -> Tensor:
        """See `Objective`."""
        logit_B1 = self.survival(state_action(batch, policy.action_BA), frozen=True)
        return super().score(batch, policy) + functional.logsigmoid(logit_B1[:, 0])

    def _survival_loss(self, batch: Batch, logit_B1: Tensor) -> tuple[Tensor, Aux]:
        logit_B = logit_B1[:, 0]
        loss = functional.binary_cross_entropy_with_logits(logit_B, batch["survived"])
        means = torch.stack([logit_B.detach().sigmoid(), batch["survived"]]).mean(1)
        predicted, seen = means
        metrics = {"survival_loss": loss.detach(), "survival": predicted, "survival_seen": seen}
        return loss, metrics
