"""One gradient update of contrastive RL: the algorithm box of arXiv 2503.14858.

B batch, S state, G goal, A action or chunk of actions, R representation.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from torch_crl.agent.learner import Learner
from torch_crl.agent.losses import (
    CONTRASTIVE_LOSSES,
    ENERGIES,
    actor_loss,
    critic_loss,
    temperature_loss,
)
from torch_crl.agent.networks import Networks
from torch_crl.agent.optimizer import adam, load_optimizer_state, optimizer_state
from torch_crl.kernels.infonce import pair_scores
from torch_crl.kernels.squashed_gaussian import squashed_gaussian


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the learner minimises."""

    energy: str
    contrastive_loss: str
    logsumexp_penalty: float
    target_entropy: float
    """Target entropy of the whole action, or chunk of actions, in nats."""
    actor_goals: Literal["own", "mixed"] = "own"
    """`own`: the actor's loss is on each step's own future goal; `mixed`: half of the steps take
    the goal of another step, which need not be in their future."""


class ContrastiveLearner(Learner):
    """Networks, temperature and their optimiser, changed in place by `update`."""

    def __init__(
        self,
        networks: Networks,
        objective: Objective,
        *,
        actor_learning_rate: float,
        critic_learning_rate: float,
        temperature_learning_rate: float,
        initial_temperature: float = 1.0,
        generator: Generator,
    ) -> None:
        """The generator must live on the networks' device; it draws the actor's noise."""
        self.networks = networks
        self.objective = objective
        self.generator = generator
        self.actor = networks.actor
        self.device = networks.actor.weight.device
        self.log_alpha = torch.tensor(
            math.log(initial_temperature), device=self.device, requires_grad=True
        )
        # Equal learning rates share a parameter group, so that one step launches few kernels.
        groups: dict[float, list[Tensor]] = {}
        for rate, parameters in (
            (actor_learning_rate, networks.actor.parameters()),
            (critic_learning_rate, networks.state_action_encoder.parameters()),
            (critic_learning_rate, networks.goal_encoder.parameters()),
            (temperature_learning_rate, [self.log_alpha]),
        ):
            groups.setdefault(rate, []).extend(parameters)
        self.optimizer = adam(groups, self.device)

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """Improve actor, temperature and critic on one batch; returns 0-D metrics on the device.

        All three losses use the networks from before the update, so the actor never follows a
        critic that was already fitted to the same batch, as in the published code. Each loss has a
        gradient for its own parameters only: the actor's loss treats the critic's parameters as
        constants, and the temperature's loss depends on no network's parameters. One backward
        pass of the sum therefore gives every parameter the gradient of its own loss. The goal
        encoder's output serves both the actor's and the critic's loss, and all inputs of the
        critic's encoders pass through their towers in one call.
        """
        objective, energy = self.objective, ENERGIES[self.objective.energy]
        state_BS, action_BA, goal_BG = batch["state"], batch["action"], batch["goal"]
        # 1 where a chunk of actions lies within its trajectory; single actions always do.
        whole_B = batch.get("whole")
        policy_BA, log_prob_B = self._sample_action(state_BS, self._actor_goals(goal_BG))
        phi_BR, psi_BR, phi_policy_BR = self.networks.encode(
            torch.cat([state_BS, action_BA], dim=-1),
            goal_BG,
            torch.cat([state_BS, policy_BA], dim=-1),
        )
        policy_energy_B = energy.paired(phi_policy_BR, self._actor_goals(psi_BR.detach()))
        actor, actor_aux = actor_loss(policy_energy_B, log_prob_B, self.log_alpha)
        temperature, temperature_aux = temperature_loss(
            log_prob_B, self.log_alpha, target_entropy=objective.target_entropy
        )
        kind = CONTRASTIVE_LOSSES[objective.contrastive_loss]
        scores = pair_scores(
            phi_BR,
            psi_BR,
            energy=objective.energy,
            columns=kind.columns,
            softplus=kind.softplus,
            row_mask_B=whole_B,
            implementation=self.actor.compute.other_kernels,
        )
        critic, critic_aux = critic_loss(
            scores,
            contrastive_loss=objective.contrastive_loss,
            logsumexp_penalty=objective.logsumexp_penalty,
            whole_B=whole_B,
        )

        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(actor + temperature + critic)
        self.optimizer.step()
        losses = {"actor_loss": actor, "temperature_loss": temperature, "critic_loss": critic}
        detached = {name: loss.detach() for name, loss in losses.items()}
        return detached | actor_aux | temperature_aux | critic_aux

    def _actor_goals(self, goal_BX: Tensor) -> Tensor:
        """Goals, or their representations, as the actor's loss takes them."""
        if self.objective.actor_goals == "own":
            return goal_BX
        # The steps of a batch are in random order, so a neighbour's goal is a random one.
        half = len(goal_BX) // 2
        return torch.cat([goal_BX[:half], goal_BX[half:].roll(1, 0)])

    def _sample_action(self, state_BS: Tensor, goal_BG: Tensor) -> tuple[Tensor, Tensor]:
        actor = self.actor
        output_B2A = actor(torch.cat([state_BS, goal_BG], dim=-1))
        batch, outputs = output_B2A.shape
        noise_BA = torch.randn(batch, outputs // 2, generator=self.generator, device=self.device)
        return squashed_gaussian(output_B2A, noise_BA, implementation=actor.compute.other_kernels)

    @property
    def generators(self) -> list[Generator]:
        """The random number generators that `update` draws from."""
        return [self.generator]

    @property
    def trained(self) -> dict[str, list[Tensor]]:
        """The parameters of the actor, and of the critic's two encoders."""
        networks = self.networks
        encoders = (networks.state_action_encoder, networks.goal_encoder)
        return {
            "actor": list(networks.actor.parameters()),
            "critic": [parameter for encoder in encoders for parameter in encoder.parameters()],
        }

    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name, such as `actor.weight` and `log_alpha`."""
        named = {
            f"{network_name}.{name}": parameter
            for network_name, network in self.networks.named().items()
            for name, parameter in network.named_parameters()
        }
        return named | {"log_alpha": self.log_alpha}

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, Adam moments and step counts, and the state of the noise generator."""
        trained = optimizer_state(self.named_parameters(), self.optimizer)
        return {"generator": self.generator.get_state()} | trained

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, before or after any number of updates."""
        self.generator.set_state(tensors["generator"].cpu())
        load_optimizer_state(self.named_parameters(), self.optimizer, tensors)
