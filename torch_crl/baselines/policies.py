"""Policies of Stable-Baselines3 with residual towers in place of the library's own networks.

Depth then means what it means for contrastive RL: an actor is a tower over concat(state, goal),
a critic one over concat(state, goal, action), with the same initial distribution of weights.
Everything else is the library's: distributions, target networks, optimisers. A depth of 0 keeps
the library's networks: two layers of 256 with ReLU for SAC, of 400 and 300 for TD3, two of 64 with
tanh for PPO.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.sac.policies import Actor as GaussianActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as DeterministicActor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from torch_crl.agent.compute import Compute
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.sizes import TowerSizes

# Gain of the last layer of PPO's actor, as in the library: training begins with small actions.
_PPO_ACTION_GAIN = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Towers:
    """Sizes of the towers in place of the library's networks, from the recipe.

    The sizes of inputs and outputs are set when a tower is built.
    """

    actor: TowerSizes | None
    """None keeps the library's network."""
    critic: TowerSizes | None
    compute: Compute

    def build(self, sizes: TowerSizes, inputs: int, outputs: int) -> ResidualTower:
        """A fresh tower, whose weights are drawn by torch's generator, which the library seeds."""
        return ResidualTower(
            replace(sizes, input_size=inputs, output_size=outputs),
            compute=self.compute,
            generator=torch.default_generator,
        )


class StateGoalExtractor(BaseFeaturesExtractor):
    """concat(state, goal) of a goal env's parts; the achieved goal is in the state already."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        """Take the observation space of a `LibraryVecEnv` with `goal_env`."""
        parts = (observation_space["observation"], observation_space["desired_goal"])
        super().__init__(observation_space, sum(part.shape[0] for part in parts if part.shape))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """[B, S + G]."""
        return torch.cat([observations["observation"], observations["desired_goal"]], dim=-1)


def extractor(space: spaces.Space[Any]) -> type[BaseFeaturesExtractor]:
    """The class that turns observations of this space into network inputs."""
    return StateGoalExtractor if isinstance(space, spaces.Dict) else FlattenExtractor


class TowerSACPolicy(SACPolicy):
    """SAC's policy; its actor is like contrastive RL's, one tower to concat(mean, log-std)."""

    def __init__(self, *arguments: Any, towers: Towers, **keywords: Any) -> None:
        """Take `towers` and the arguments of SACPolicy."""
        self.towers = towers
        super().__init__(*arguments, **keywords)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> GaussianActor:
        """The library's actor, with a tower in place of its layers."""
        actor: Any = super().make_actor(features_extractor)
        if self.towers.actor:
            actions = get_action_dim(self.action_space)
            tower = self.towers.build(self.towers.actor, actor.features_dim, 2 * actions)
            actor.latent_pi = nn.Sequential(tower.to(self.device))
            actor.mu, actor.log_std = _Part(0, actions), _Part(actions, 2 * actions)
        exchanged: GaussianActor = actor
        return exchanged

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        """The library's critics, with towers in place of their layers."""
        return _with_towers(super().make_critic(features_extractor), self.towers)


class TowerTD3Policy(TD3Policy):
    """TD3's policy; its actor is one tower to the action before tanh."""

    def __init__(self, *arguments: Any, towers: Towers, **keywords: Any) -> None:
        """Take `towers` and the arguments of TD3Policy."""
        self.towers = towers
        super().__init__(*arguments, **keywords)

    def make_actor(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> DeterministicActor:
        """The library's actor, with a tower in place of its layers."""
        actor = super().make_actor(features_extractor)
        if self.towers.actor:
            actions = get_action_dim(self.action_space)
            tower = self.towers.build(self.towers.actor, actor.features_dim, actions)
            actor.mu = nn.Sequential(tower.to(self.device), nn.Tanh())
        return actor

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        """The library's critics, with towers in place of their layers."""
        return _with_towers(super().make_critic(features_extractor), self.towers)


class TowerPPOPolicy(ActorCriticPolicy):
    """PPO's policy: two towers, the actor's to the mean; log-std is a parameter for each action."""

    def __init__(self, *arguments: Any, towers: Towers, **keywords: Any) -> None:
        """Take `towers` and the arguments of ActorCriticPolicy."""
        self.towers = towers
        super().__init__(*arguments, **keywords)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        towers, inputs = self.towers, self.features_dim
        if towers.actor:
            actions = get_action_dim(self.action_space)
            actor = towers.build(towers.actor, inputs, actions)
            actor.output_weight.data.mul_(_PPO_ACTION_GAIN)
            self.mlp_extractor.policy_net = nn.Sequential(actor)
            self.action_net = nn.Identity()
        if towers.critic:
            critic = towers.build(towers.critic, inputs, 1)
            self.mlp_extractor.value_net = nn.Sequential(critic)
            self.value_net = nn.Identity()  # type: ignore[assignment]
        # The library's optimiser, made first, holds the parameters of the replaced layers.
        make_optimizer: Any = self.optimizer_class
        self.optimizer = make_optimizer(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )


class _Part(nn.Module):
    """A slice of the last axis."""

    def __init__(self, first: int, stop: int) -> None:
        super().__init__()
        self.first, self.stop = first, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.first : self.stop]


def _with_towers(critic: ContinuousCritic, towers: Towers) -> ContinuousCritic:
    if towers.critic:
        for index, network in enumerate(critic.q_networks):
            first = next(network.children())
            assert isinstance(first, nn.Linear)
            tower = towers.build(towers.critic, first.in_features, 1).to(critic.device)
            critic.add_module(f"qf{index}", tower)
            critic.q_networks[index] = tower
    return critic
