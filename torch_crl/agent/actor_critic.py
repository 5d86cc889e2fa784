"""One gradient update of actor, temperature and critic: the algorithm box of arXiv 2503.14858.

What the critic learns is an `Objective`. B batch, S state, G goal, A action or chunk of actions.
"""

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor

from torch_crl.agent.learner import Batch, Learner
from torch_crl.agent.losses import Balance, load_balance, policy_losses
from torch_crl.agent.networks import ResidualTower, keep_rounded
from torch_crl.agent.objectives.objective import Objective, PolicyRows
from torch_crl.agent.optimizer import Descent, adam, load_optimizer_state, optimizer_state
from torch_crl.distributed.ranks import ALONE, Ranks
from torch_crl.kernels.squashed_gaussian import squashed_gaussian

if TYPE_CHECKING:
    from torch_crl.agent.compiled import CompiledUpdate


class ActorCritic(Learner):
    """Actor, temperature, critic and their optimisers, changed in place by `update`."""

    def __init__(
        self,
        actor: ResidualTower,
        objective: Objective,
        *,
        target_entropy: float,
        actor_learning_rate: float,
        critic_learning_rate: float,
        temperature_learning_rate: float,
        initial_temperature: float = 1.0,
        actor_goals: Literal["own", "mixed"] = "own",
        update_order: Literal["together", "critic_first"] = "together",
        load_balance: float = 0.0,
        generator: Generator,
        ranks: Ranks = ALONE,
    ) -> None:
        """See the recipe's settings of these names.

        Args:
            actor: maps concat(state, goal) [B, S + G] to concat(mean, raw log-std) [B, 2 A].
            target_entropy: of the whole action, or chunk of actions, in nats.
            generator: draws the actor's noise; it must be on the networks' device.
            ranks: those that train the same networks on batches of their own.
        """
        self.actor = actor
        self.objective = objective
        self.generator = generator
        self.target_entropy = target_entropy
        self.actor_goals = actor_goals
        self.update_order = update_order
        self.load_balance = load_balance
        self.device = device = actor.weight.device
        self.log_alpha = torch.tensor(
            math.log(initial_temperature),
            dtype=actor.weight.dtype,
            device=device,
            requires_grad=True,
        )
        # Equal learning rates share a parameter group, so that one step launches few kernels.
        of_actor = _groups(
            (actor_learning_rate, list(actor.parameters())),
            (critic_learning_rate, objective.parameters() if update_order == "together" else []),
            (temperature_learning_rate, [self.log_alpha]),
        )
        kernels = actor.compute.other_kernels
        rounded = []
        if kernels == "triton":
            # The actor's are apart: what is written into a tensor counts for all that read it.
            rounded = keep_rounded([actor]) + keep_rounded(objective.towers())
        self.optimizer = adam(of_actor, device, kernels, rounded)
        """Steps everything, or with the critic first the actor and the temperature."""
        self._compiled: CompiledUpdate | None = None
        self.critic_optimizer = (
            adam({critic_learning_rate: objective.parameters()}, device, kernels, rounded)
            if update_order == "critic_first"
            else None
        )
        self._is_alone = ranks.is_alone
        self._descent = Descent(self.optimizer, ranks)
        self._critic_descent = (
            Descent(self.critic_optimizer, ranks) if self.critic_optimizer else None
        )

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Improve actor, temperature and critic on one batch; returns 0-D metrics on the device.

        With the order `together`, all losses use the networks from before the update, so the actor
        never follows a critic that was already fitted to the same batch, as in the published code.
        Each loss has a gradient for its own parameters only: the actor's loss treats the critic's
        parameters as constants, and the temperature's loss depends on no network's parameters. One
        backward pass of the sum therefore gives every parameter the gradient of its own loss.

        With `critic_first`, the critic takes its step before the actor's loss is computed.
        """
        if compiled := self._compiled_for(batch):
            return compiled(batch, self._noise(batch))
        if self._critic_descent is not None:
            critic, metrics = self.objective.loss(batch)
            self._critic_descent.step(critic)
            policy, log_prob_B, balance = self._act(batch)
            score_B = self.objective.score(batch, policy)
            trained_later: list[Tensor] = []
        else:
            policy, log_prob_B, balance = self._act(batch)
            critic, score_B, metrics = self.objective.judge(batch, policy)
            trained_later = [critic]
        of_policy, policy_metrics = policy_losses(
            score_B,
            log_prob_B,
            self.log_alpha,
            target_entropy=self.target_entropy,
            implementation=self.actor.compute.other_kernels,
        )
        self._descent.step(of_policy, *trained_later, *balance.losses)
        if self.objective.counts_steps:
            metrics = metrics | {"value": score_B.detach().mean()}
        return {"critic_loss": critic.detach()} | policy_metrics | metrics | balance.metrics

    def _compiled_for(self, batch: Batch) -> "CompiledUpdate | None":
        """The whole update as one function for a CPU core, where there is one."""
        whole = self._is_alone and self.critic_optimizer is None
        if self.actor.compute.tower != "numba" or self.actor.is_mixture or not whole:
            return None
        if self._compiled is not None and self._compiled.is_for(batch):
            return self._compiled
        # Imported here, so that numba is needed only if its kernels are requested.
        from torch_crl.agent.compiled import CompiledUpdate

        tensors = (batch["state"], self.log_alpha, self.actor.weight)
        self._compiled = None
        if CompiledUpdate.takes(self.objective, tensors):
            self._compiled = CompiledUpdate(
                self.actor,
                self.objective,
                log_alpha=self.log_alpha,
                target_entropy=self.target_entropy,
                optimizer=self.optimizer,
                goal_of_B=self._goals_of_actor(torch.arange(len(batch["state"]))),
            )
        return self._compiled

    def _act(self, batch: Batch) -> tuple[PolicyRows, Tensor, Balance]:
        """Sampled actions for the goals of the actor's loss, their log-densities [B], and how even
        the use of the actor's experts is.
        """
        actor = self.actor
        goal_BG = self._goals_of_actor(batch["goal"])
        output_B2A, routes = actor.with_routes(torch.cat([batch["state"], goal_BG], dim=-1))
        action_BA, log_prob_B = squashed_gaussian(
            output_B2A, self._noise(batch), implementation=actor.compute.other_kernels
        )
        policy = PolicyRows(action_BA, self._goals_of_actor)
        return policy, log_prob_B, load_balance(routes, self.load_balance)

    def _noise(self, batch: Batch) -> Tensor:
        """Standard normal numbers [B, A], from which an update makes the policy's actions."""
        action_BA = batch["action"]
        drawn_BA = torch.randn(action_BA.shape, generator=self.generator, device=self.device)
        return drawn_BA.to(action_BA.dtype)

    def _goals_of_actor(self, goal_BX: Tensor) -> Tensor:
        """Goals, or their representations, as the actor's loss takes them."""
        if self.actor_goals == "own":
            return goal_BX
        # The steps of a batch are in random order, so a neighbour's goal is a random one.
        half = len(goal_BX) // 2
        return torch.cat([goal_BX[:half], goal_BX[half:].roll(1, 0)])

    @property
    def generators(self) -> list[Generator]:
        """The random number generators that `update` draws from."""
        return [self.generator]

    @property
    def trained(self) -> dict[str, list[Tensor]]:
        """The parameters of the actor, and of all networks of the critic."""
        return {"actor": list(self.actor.parameters()), "critic": self.objective.parameters()}

    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name, such as `actor.weight` and `log_alpha`."""
        named = {
            f"{module_name}.{name}": parameter
            for module_name, module in {"actor": self.actor, **self.objective.modules}.items()
            for name, parameter in module.named_parameters()
        }
        return named | {"log_alpha": self.log_alpha}

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, Adam moments and step counts, and the state of the noise generator."""
        trained: dict[str, Tensor] = {}
        for optimizer, named in self._steps():
            trained |= optimizer_state(named, optimizer)
        return {"generator": self.generator.get_state()} | trained

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, before or after any number of updates."""
        self.generator.set_state(tensors["generator"].cpu())
        # It holds the moments that are replaced here.
        self._compiled = None
        for optimizer, named in self._steps():
            load_optimizer_state(named, optimizer, tensors)

    def _steps(self) -> list[tuple[torch.optim.Optimizer, dict[str, Tensor]]]:
        """Each optimiser, and the parameters that it steps by name."""
        named = self.named_parameters()
        if self.critic_optimizer is None:
            return [(self.optimizer, named)]
        critic = {id(parameter) for parameter in self.objective.parameters()}
        of_critic = {name: each for name, each in named.items() if id(each) in critic}
        others = {name: each for name, each in named.items() if id(each) not in critic}
        return [(self.optimizer, others), (self.critic_optimizer, of_critic)]


def _groups(*rates: tuple[float, list[Tensor]]) -> dict[float, list[Tensor]]:
    """The parameters of each learning rate."""
    groups: dict[float, list[Tensor]] = {}
    for rate, parameters in rates:
        if parameters:
            groups.setdefault(rate, []).extend(parameters)
    return groups
