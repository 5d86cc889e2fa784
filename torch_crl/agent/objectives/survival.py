"""Survival RL: how long until this goal is reached? (arXiv 2605.31273, as its code has it)

The critic is a distribution of the time to the goal, as discrete hazards, trained by maximum
likelihood on first arrivals within the success radius; there is no contrast and no bootstrapping.
The actor maximises minus the expected discounted time. B batch, R representation, K steps.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from torch_crl.agent.learner import Batch
from torch_crl.agent.losses import mean_over
from torch_crl.agent.networks import Networks, ResidualTower, read, run_towers
from torch_crl.agent.objectives.crl import state_action
from torch_crl.agent.objectives.objective import (
    Aux,
    HitLabels,
    Judgement,
    Objective,
    PolicyRows,
    Setup,
)
from torch_crl.agent.objectives.time_to_goal import hazard_nll, hazard_value
from torch_crl.agent.sizes import HAZARD_RANK
from torch_crl.distributed.ranks import ALONE, Ranks

_FILM = 0.1
"""Size of the modulation by the goal at the start."""


class Hazards(NamedTuple):
    """What the head says about pairs of a state-action and a goal."""

    start_B: Tensor
    """Logit of being at the goal already."""
    hazard_BK: Tensor
    """Logits of arriving in each step."""
    occupancy_BO: Tensor
    """Logits of the share of each bin of offsets that is spent at the goal; O may be 0."""


class HazardHead(nn.Module):
    """From phi and psi [B, R] to hazards: modulation by the goal, a residual tower, a time basis.

    z = (1 + 0.1 A psi) phi + 0.1 B psi; the tower maps concat(z, psi, z - psi, z psi) to the logit
    of being there, coefficients u of the basis and the occupancy. A hazard's logit is u . basis_k +
    bias_k.
    """

    def __init__(self, tower: ResidualTower, *, steps: int, generator: Generator) -> None:
        """`tower` takes 4 R numbers and returns 1, the coefficients and O more."""
        super().__init__()
        size = tower.sizes.input_size // 4
        bound = math.sqrt(1.0 / size)
        film = torch.empty(2 * size, size).uniform_(-bound, bound, generator=generator)
        self.film_weight = nn.Parameter(film)
        self.film_bias = nn.Parameter(torch.zeros(2 * size))
        self.tower = tower
        self.basis = nn.Parameter(0.02 * torch.randn(steps, HAZARD_RANK, generator=generator))
        self.bias = nn.Parameter(torch.zeros(steps))

    def forward(self, phi_BR: Tensor, psi_BR: Tensor, *, frozen: bool = False) -> Hazards:
        """`frozen`: no gradient for the parameters."""
        mixed = self._mixed(phi_BR, psi_BR, frozen=frozen)
        return self._split(self.tower(mixed, frozen=frozen), frozen=frozen)

    def both(
        self, critic: tuple[Tensor, Tensor], actor: tuple[Tensor, Tensor]
    ) -> tuple[Hazards, Hazards]:
        """Of two pairs (phi, psi), the second without gradient for the parameters, in one pass."""
        mixed, frozen = self._mixed(*critic, frozen=False), self._mixed(*actor, frozen=True)
        ours, theirs = run_towers([mixed], [self.tower], frozen=frozen)
        return self._split(ours, frozen=False), self._split(theirs, frozen=True)

    def _mixed(self, phi_BR: Tensor, psi_BR: Tensor, *, frozen: bool) -> Tensor:
        weight, bias = (read(each, frozen=frozen) for each in (self.film_weight, self.film_bias))
        gain_BR, shift_BR = functional.linear(psi_BR, weight, bias).chunk(2, -1)
        z_BR = (1.0 + _FILM * gain_BR) * phi_BR + _FILM * shift_BR
        return torch.cat([z_BR, psi_BR, z_BR - psi_BR, z_BR * psi_BR], dim=-1)

    def _split(self, output: Tensor, *, frozen: bool) -> Hazards:
        basis, bias = (read(each, frozen=frozen) for each in (self.basis, self.bias))
        coefficients = output[:, 1 : 1 + HAZARD_RANK]
        hazard_BK = functional.linear(coefficients, basis, bias)
        return Hazards(output[:, 0], hazard_BK, output[:, 1 + HAZARD_RANK :])


class SurvivalObjective(Objective):
    """Hazards of the first arrival, from encoders with a LayerNorm at their ends."""

    failures = True
    counts_steps = True

    def __init__(
        self,
        networks: Networks,
        head: HazardHead,
        *,
        labels: HitLabels,
        value_discount: float,
        ranks: Ranks = ALONE,
    ) -> None:
        """`labels` says what the replay has to tell about arrivals.

        With other `ranks`, the loss is a mean over the rows of all of them that count.
        """
        self.networks = networks
        self.head = head
        self.labels = self.hits = labels
        self.value_discount = value_discount
        self.ranks = ranks
        self.norms = self._make_norms(networks.goal_encoder.sizes.output_size)
        self.modules: dict[str, nn.Module] = {
            "state_action_encoder": networks.state_action_encoder,
            "goal_encoder": networks.goal_encoder,
            "head": head,
            **self.norms,
        }

    @classmethod
    def build(cls, setup: Setup) -> "SurvivalObjective":
        """The objective with these settings, with a hazard for every step of the window."""
        head = HazardHead(setup.tower("head"), steps=setup.window, generator=setup.generator)
        labels = HitLabels(
            window=setup.window,
            radius=setup.radius,
            distance=setup.distance,
            never=setup.never,
            edges=cls._edges(setup),
        )
        return cls(
            setup.networks,
            head,
            labels=labels,
            value_discount=setup.value_discount,
            ranks=setup.ranks,
        )

    @classmethod
    def _edges(cls, setup: Setup) -> list[int]:
        """Edges of the bins whose occupancy is learned."""
        del setup
        return []

    def judge(self, batch: Batch, policy: PolicyRows) -> Judgement:
        """See `Objective`. Encoders and head each take all their inputs in one call."""
        taken, chosen = (state_action(batch, each) for each in (batch["action"], policy.action_BA))
        encoded = self.networks.encode(taken, batch["goal"], chosen)
        phi_BR, psi_BR = self._norm("phi", encoded[0]), self._norm("psi", encoded[1])
        phi_policy_BR = self._norm("phi", encoded[2], frozen=True)
        of_actor = (phi_policy_BR, policy.of_actor(psi_BR.detach()))
        hazards, of_policy = self.head.both((phi_BR, psi_BR), of_actor)
        loss, metrics = self._loss(batch, phi_BR, psi_BR, hazards)
        return Judgement(loss, self._score(batch, of_policy), metrics)

    def loss(self, batch: Batch) -> tuple[Tensor, Aux]:
        """See `Objective`."""
        taken = state_action(batch, batch["action"])
        encoded = self.networks.encode_pairs(taken, batch["goal"])
        phi_BR, psi_BR = self._norm("phi", encoded[0]), self._norm("psi", encoded[1])
        return self._loss(batch, phi_BR, psi_BR, self.head(phi_BR, psi_BR))

    def score(self, batch: Batch, policy: PolicyRows) -> Tensor:
        """See `Objective`."""
        networks = self.networks
        chosen = state_action(batch, policy.action_BA)
        phi_BR = self._norm("phi", networks.state_action_encoder(chosen, frozen=True), frozen=True)
        with torch.no_grad():
            psi_BR = self._norm("psi", networks.goal_encoder(batch["goal"]))
        return self._score(batch, self.head(phi_BR, policy.of_actor(psi_BR), frozen=True))

    def _loss(
        self, batch: Batch, phi_BR: Tensor, psi_BR: Tensor, hazards: Hazards
    ) -> tuple[Tensor, Aux]:
        """The loss of the critic, and metrics, from the batch's representations and hazards."""
        del phi_BR, psi_BR
        return self._likelihood(batch, hazards)

    def _score(self, batch: Batch, hazards: Hazards) -> Tensor:
        """What the actor maximises."""
        del batch
        return hazard_value(
            hazards.start_B,
            hazards.hazard_BK,
            discount=self.value_discount,
            implementation=self.head.tower.compute.other_kernels,
        )

    def _likelihood(self, batch: Batch, hazards: Hazards) -> tuple[Tensor, Aux]:
        each_B = hazard_nll(
            hazards.start_B,
            hazards.hazard_BK,
            event_B=batch["event"],
            time_B=batch["time"],
            censor_B=batch["censor"],
            implementation=self.head.tower.compute.other_kernels,
        )
        whole_B = batch.get("whole")
        count = None
        if whole_B is not None and not self.ranks.is_alone:
            count = self.ranks.sum_(whole_B.sum()).clamp_min(1.0) / self.ranks.size
        loss = mean_over(whole_B, None, count)(each_B)
        arrived, there = torch.stack([batch["event"], batch["time"] == 0]).float().mean(1)
        return loss, {"hazard_loss": loss.detach(), "arrivals": arrived, "there_already": there}

    def _make_norms(self, size: int) -> dict[str, nn.Module]:
        return {"phi_norm": nn.LayerNorm(size), "psi_norm": nn.LayerNorm(size)}

    def _norm(self, which: str, x_BR: Tensor, *, frozen: bool = False) -> Tensor:
        norm = self.norms.get(f"{which}_norm")
        if norm is None:
            return x_BR
        assert isinstance(norm, nn.LayerNorm)
        weight, bias = (read(each, frozen=frozen) for each in (norm.weight, norm.bias))
        return functional.layer_norm(x_BR, weight.shape, weight, bias, norm.eps)
