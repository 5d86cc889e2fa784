"""Contrastive RL: does this goal belong to this state and action? (arXiv 2503.14858)

f(s, a, g) = energy(phi(s, a), psi(g)) is trained to classify which goal of the batch lies in the
future of which step, and is itself the score of an action. B batch, R representation.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from torch_crl.agent.learner import Batch
from torch_crl.agent.losses import CONTRASTIVE_LOSSES, critic_loss
from torch_crl.agent.networks import Networks
from torch_crl.agent.objectives.objective import Aux, Judgement, Objective, PolicyRows, Setup
from torch_crl.distributed.contrast import Gathered, loss_over_all_ranks
from torch_crl.distributed.ranks import ALONE, Ranks
from torch_crl.kernels.infonce import ENERGIES, PairScores, logsumexp_of_columns, pair_scores
from torch_crl.kernels.paired_energies import paired_energies


class ContrastiveObjective(Objective):
    """Energies of all pairs of a batch, and a contrastive loss of them."""

    def __init__(
        self,
        networks: Networks,
        *,
        energy: str,
        contrastive_loss: str,
        logsumexp_penalty: float,
        ranks: Ranks = ALONE,
    ) -> None:
        """`networks` holds the two encoders; the names are those of the recipe's settings.

        With other `ranks`, the goals of all of them are the negatives of each row.
        """
        self.networks = networks
        self.energy = energy
        self.contrastive_loss = contrastive_loss
        self.logsumexp_penalty = logsumexp_penalty
        self.ranks = ranks
        self.modules: dict[str, nn.Module] = {
            "state_action_encoder": networks.state_action_encoder,
            "goal_encoder": networks.goal_encoder,
        }

    @classmethod
    def build(cls, setup: Setup) -> "ContrastiveObjective":
        """The objective with these settings."""
        return cls(
            setup.networks,
            energy=setup.energy,
            contrastive_loss=setup.contrastive_loss,
            logsumexp_penalty=setup.logsumexp_penalty,
            ranks=setup.ranks,
        )

    def judge(self, batch: Batch, policy: PolicyRows) -> Judgement:
        """All inputs of the encoders pass through their towers in one call.

        The goal encoder's output serves both the actor's and the critic's loss.
        """
        taken, chosen = (state_action(batch, each) for each in (batch["action"], policy.action_BA))
        phi_BR, psi_BR, phi_policy_BR = self.networks.encode(taken, batch["goal"], chosen)
        loss, metrics = self.classify(phi_BR, psi_BR, batch)
        return Judgement(loss, self.paired(phi_policy_BR, psi_BR.detach(), policy), metrics)

    def loss(self, batch: Batch) -> tuple[Tensor, Aux]:
        """See `Objective`."""
        taken = state_action(batch, batch["action"])
        phi_BR, psi_BR = self.networks.encode_pairs(taken, batch["goal"])
        return self.classify(phi_BR, psi_BR, batch)

    def score(self, batch: Batch, policy: PolicyRows) -> Tensor:
        """See `Objective`."""
        networks = self.networks
        phi_BR = networks.state_action_encoder(state_action(batch, policy.action_BA), frozen=True)
        with torch.no_grad():
            psi_BR = networks.goal_encoder(batch["goal"])
        return self.paired(phi_BR, psi_BR, policy)

    def paired(self, phi_BR: Tensor, psi_BR: Tensor, policy: PolicyRows) -> Tensor:
        """The energies [B] of the policy's actions and the goals of the actor's loss."""
        return paired_energies(
            phi_BR,
            policy.of_actor(psi_BR),
            energy=self.energy,
            implementation=self._implementation,
        )

    @property
    def _implementation(self) -> Literal["reference", "numba", "triton"]:
        return self.networks.actor.compute.other_kernels

    def classify(self, phi_BR: Tensor, psi_BR: Tensor, batch: Batch) -> tuple[Tensor, Aux]:
        """The contrastive loss of representations [B, R], and its metrics."""
        # 1 where a chunk of actions lies within its trajectory; single actions always do.
        whole_B, weight_B = batch.get("whole"), batch.get("survived")
        # With places, goals of one place are no negatives of each other.
        place_B = batch.get("place")
        if self.ranks.is_alone:
            scores = self._scores(phi_BR, psi_BR, whole_B, place_B)
            return self._loss_of(scores, whole_B, weight_B)
        kind = CONTRASTIVE_LOSSES[self.contrastive_loss]

        def loss_of(every: Gathered) -> tuple[Tensor, Aux]:
            scores = self._scores(
                *(every.phi_BR, every.psi_NR, whole_B, every.place_N), first=every.own.start
            )
            if every.phi_NR is not None:
                own_BR = every.psi_NR[every.own]
                energies_NB = ENERGIES[self.energy].pairwise(every.phi_NR, own_BR)
                of_columns_B = logsumexp_of_columns(
                    energies_NB, every.whole_N, every.place_N, first=every.own.start
                )
                scores = scores._replace(column_logsumexp_B=of_columns_B)
            of_all = every.whole_N
            count = None if of_all is None else of_all.sum().clamp_min(1.0) / self.ranks.size
            return self._loss_of(scores, whole_B, weight_B, count)

        return loss_over_all_ranks(
            phi_BR, psi_BR, whole_B, place_B, loss_of, columns=kind.columns, ranks=self.ranks
        )

    def _scores(
        self,
        phi_BR: Tensor,
        psi_CR: Tensor,
        whole_B: Tensor | None,
        place_C: Tensor | None,
        *,
        first: int = 0,
    ) -> PairScores:
        kind = CONTRASTIVE_LOSSES[self.contrastive_loss]
        return pair_scores(
            phi_BR,
            psi_CR,
            energy=self.energy,
            columns=kind.columns and self.ranks.is_alone,
            softplus=kind.softplus,
            row_mask_B=whole_B,
            group_C=place_C,
            first=first,
            implementation=self._implementation,
        )

    def _loss_of(
        self,
        scores: PairScores,
        whole_B: Tensor | None,
        weight_B: Tensor | None,
        count: Tensor | None = None,
    ) -> tuple[Tensor, Aux]:
        return critic_loss(
            scores,
            contrastive_loss=self.contrastive_loss,
            logsumexp_penalty=self.logsumexp_penalty,
            whole_B=whole_B,
            weight_B=weight_B,
            count=count,
            implementation=self._implementation,
        )


def state_action(batch: Batch, action_BA: Tensor) -> Tensor:
    """The input of the state-action encoder for these actions."""
    return torch.cat([batch["state"], action_BA], dim=-1)
