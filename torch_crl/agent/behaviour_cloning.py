"""Goal-conditioned behaviour cloning: the actor imitates the actions that led to a goal.

The simplest baseline for contrastive RL: same envs, replay, hindsight goals and actor; no critic.
B batch, S state, G goal, A action.
"""

import torch
from torch import Generator, Tensor

from torch_crl.agent.learner import Batch, Learner
from torch_crl.agent.losses import cloning_loss, load_balance
from torch_crl.agent.networks import ResidualTower, action_distribution, keep_rounded
from torch_crl.agent.optimizer import Descent, adam, load_optimizer_state, optimizer_state
from torch_crl.distributed.ranks import ALONE, Ranks


class BehaviourCloning(Learner):
    """An actor and its optimiser, changed in place by `update` (online, as in arXiv 1912.06088)."""

    def __init__(
        self,
        actor: ResidualTower,
        *,
        learning_rate: float,
        load_balance: float = 0.0,
        ranks: Ranks = ALONE,
    ) -> None:
        """`actor` maps concat(state, goal) [B, S + G] to concat(mean, raw log-std) [B, 2 A]."""
        self.actor = actor
        self.load_balance = load_balance
        self.device = actor.weight.device
        parameters: dict[float, list[Tensor]] = {learning_rate: list(actor.parameters())}
        kernels = actor.compute.other_kernels
        self.optimizer = adam(parameters, self.device, kernels, keep_rounded([actor]))
        self._descent = Descent(self.optimizer, ranks)

    @property
    def generators(self) -> list[Generator]:
        """No generators, since `update` draws no random numbers."""
        return []

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make the batch's actions likelier, given its goals; returns 0-D metrics on the device."""
        inputs = torch.cat([batch["state"], batch["goal"]], dim=-1)
        output_B2A, routes = self.actor.with_routes(inputs)
        mean_BA, log_std_BA = action_distribution(output_B2A)
        loss, aux = cloning_loss(mean_BA, log_std_BA, batch["action"])
        balance = load_balance(routes, self.load_balance)
        self._descent.step(loss, *balance.losses)
        return {"actor_loss": loss.detach()} | aux | balance.metrics

    @property
    def trained(self) -> dict[str, list[Tensor]]:
        """The parameters of the actor."""
        return {"actor": list(self.actor.parameters())}

    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name, such as `actor.weight`."""
        return {f"actor.{name}": parameter for name, parameter in self.actor.named_parameters()}

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, Adam moments and step counts."""
        return optimizer_state(self.named_parameters(), self.optimizer)

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, before or after any number of updates."""
        load_optimizer_state(self.named_parameters(), self.optimizer, tensors)
