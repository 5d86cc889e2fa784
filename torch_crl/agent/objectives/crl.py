"""Contrastive RL: does this goal belong to this state and action? (arXiv 2503.14858)

f(s, a, g) = energy(phi(s, a), psi(g)) is trained to classify which goal of the batch lies in the
future of which step, and is itself the score of an action. B batch, R representation.
"""

from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from torch_crl.agent.losses import CONTRASTIVE_LOSSES, critic_loss
from torch_crl.agent.networks import Networks
from torch_crl.agent.objectives.objective import Aux, Judgement, Objective, PolicyRows, Setup
from torch_crl.kernels.infonce import pair_scores
from torch_crl.kernels.paired_energies import paired_energies


class ContrastiveObjective(Objective):
    """Energies of all pairs of a batch, and a contrastive loss of them."""

    def __init__(
        self, networks: Networks, *, energy: str, contrastive_loss: str, logsumexp_penalty: float
    ) -> None:
        """`networks` holds the two encoders; the names are those of the recipe's settings."""
        self.networks = networks
        self.energy = energy
        self.contrastive_loss = contrastive_loss
        self.logsumexp_penalty = logsumexp_penalty
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
        )

    def judge(self, batch: TensorDict, policy: PolicyRows) -> Judgement:
        """All inputs of the encoders pass through their towers in one call.

        The goal encoder's output serves both the actor's and the critic's loss.
        """
        taken, chosen = (state_action(batch, each) for each in (batch["action"], policy.action_BA))
        phi_BR, psi_BR, phi_policy_BR = self.networks.encode(taken, batch["goal"], chosen)
        loss, metrics = self.classify(phi_BR, psi_BR, batch)
        return Judgement(loss, self.paired(phi_policy_BR, psi_BR.detach(), policy), metrics)

    def loss(self, batch: TensorDict) -> tuple[Tensor, Aux]:
        """See `Objective`."""
        taken = state_action(batch, batch["action"])
        phi_BR, psi_BR = self.networks.encode_pairs(taken, batch["goal"])
        return self.classify(phi_BR, psi_BR, batch)

    def score(self, batch: TensorDict, policy: PolicyRows) -> Tensor:
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

    def classify(self, phi_BR: Tensor, psi_BR: Tensor, batch: TensorDict) -> tuple[Tensor, Aux]:
        """The contrastive loss of representations [B, R], and its metrics."""
        kind = CONTRASTIVE_LOSSES[self.contrastive_loss]
        # 1 where a chunk of actions lies within its trajectory; single actions always do.
        whole_B = batch.get("whole")
        scores = pair_scores(
            phi_BR,
            psi_BR,
            energy=self.energy,
            columns=kind.columns,
            softplus=kind.softplus,
            row_mask_B=whole_B,
            implementation=self._implementation,
        )
        return critic_loss(
            scores,
            contrastive_loss=self.contrastive_loss,
            logsumexp_penalty=self.logsumexp_penalty,
            whole_B=whole_B,
            weight_B=batch.get("survived"),
            implementation=self._implementation,
        )


def state_action(batch: TensorDict, action_BA: Tensor) -> Tensor:
    """The input of the state-action encoder for these actions."""
    return torch.cat([batch["state"], action_BA], dim=-1)
