"""A run of Stable-Baselines3, driven by our trainer: same loop, evaluation, log and directory."""

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from torch import Tensor, nn

from torch_crl.agent.policy import Policy
from torch_crl.baselines.policies import (
    TowerPPOPolicy,
    Towers,
    TowerSACPolicy,
    TowerTD3Policy,
    extractor,
)
from torch_crl.baselines.vec_env import LibraryVecEnv
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.recipe.baseline_checks import ppo_epochs
from torch_crl.recipe.compute_choice import choose_compute
from torch_crl.recipe.record import Recipe
from torch_crl.system.devices import resolve_device
from torch_crl.system.threads import torch_threads
from torch_crl.training.run import Run, make_training_env, stream_seed

# TD3 updates its actor at every second update, so two belong together.
_UPDATES_AT_ONCE = 2
# Standard deviation of TD3's noise on actions in [-1, 1], as published (arXiv 1802.09477).
_TD3_NOISE = 0.1
# Seeds are below this, since NumPy raises an error for a seed of too many bits.
_LARGEST_SEED = 2**31


class BaselineRun(Run):
    """PPO, SAC or TD3 of Stable-Baselines3; its replay buffer and optimisers are not saved."""

    resumable = False

    def __init__(self, recipe: Recipe, model: PPO | SAC | TD3, env: LibraryVecEnv) -> None:
        """Take a model that has not learned yet, and the env that it was built with."""
        super().__init__(recipe)
        self.model = model
        self._vec_env = env
        # The library's own logger would leave a folder in the temporary directory.
        model.set_logger(Logger(None, []))
        # The first part of `learn`. The rest is not used: our trainer runs the loop.
        _, self._callback = model._setup_learn(recipe.total_env_steps, None)
        self._metrics: dict[str, Tensor] = {}

    @property
    def env(self) -> VectorEnv:
        """The training envs."""
        return self._vec_env.env

    @property
    def device(self) -> torch.device:
        """The device of the library's networks."""
        return torch.device(self.model.device)

    @property
    def description(self) -> str:
        """The algorithm, its reward and its networks."""
        networks = self.recipe.networks
        depths = (networks.actor_depth, networks.critic_depth)
        kind = f"towers of {depths[0]} / {depths[1]} layers" if any(depths) else "its own networks"
        reward = self.recipe.baseline.reward
        return f"{self.recipe.algorithm.algo} of Stable-Baselines3, {reward} reward, {kind}"

    @property
    def policy(self) -> Policy:
        """The deterministic policy; it shares its weights with the model and changes with it."""
        spec = self.env.spec
        actor, head = _actor(self.model)
        return Policy(actor, state_size=spec.state_size, goal_size=spec.goal_size, head=head)

    @torch_threads(1)
    def collect(self) -> dict[str, float]:
        """One unroll in every env; returns the shares of steps at the goal and of failures."""
        env, model, rows = self._vec_env, self.model, self.recipe.budget.unroll_length
        env.at_goal = env.failures = 0.0
        if isinstance(model, OffPolicyAlgorithm):
            assert model.replay_buffer is not None
            model.collect_rollouts(
                env,
                self._callback,
                TrainFreq(rows, TrainFrequencyUnit.STEP),
                model.replay_buffer,
                action_noise=model.action_noise,
                learning_starts=model.learning_starts,
            )
        else:
            model.collect_rollouts(env, self._callback, model.rollout_buffer, rows)
        self.collections_done += 1
        steps = self.recipe.steps_per_collection
        return {
            "collected_at_goal": env.at_goal / steps,
            "collected_failures": env.failures / steps,
        }

    def update(self) -> dict[str, Tensor]:
        """Two updates of SAC or TD3, or all the updates of PPO on a rollout."""
        waiting = self.updates_due - self.updates_done
        if isinstance(self.model, OffPolicyAlgorithm):
            count = min(_UPDATES_AT_ONCE, waiting)
            self.model.train(gradient_steps=count, batch_size=self.recipe.algorithm.batch_size)
        else:
            count = waiting
            self.model.train()
        self.updates_done += count
        logged = self.model.logger.name_to_value
        for name in _METRICS[type(self.model)]:
            if f"train/{name}" in logged:
                self._metrics[name] = torch.tensor(float(logged[f"train/{name}"]))
        return self._metrics

    def close(self) -> None:
        """Release the resources of the envs."""
        self.env.close()

    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by the library's name."""
        return dict(self.model.policy.named_parameters())


_METRICS: dict[type, tuple[str, ...]] = {
    PPO: ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction"),
    SAC: ("actor_loss", "critic_loss", "ent_coef"),
    TD3: ("actor_loss", "critic_loss"),
}


def build_baseline(recipe: Recipe) -> BaselineRun:
    """A run at its beginning. The recipe must have passed `checks.check`."""
    algo, device = recipe.algorithm.algo, resolve_device(recipe.system.device)
    env = LibraryVecEnv(
        make_training_env(recipe, device),
        reward=recipe.baseline.reward,
        goal_env=algo.endswith("_her"),
    )
    sizes = recipe.network_sizes
    towers = Towers(
        actor=sizes.actor if sizes.actor.depth else None,
        critic=sizes.state_action_encoder if sizes.state_action_encoder.depth else None,
        compute=choose_compute(recipe),
    )
    common: dict[str, Any] = {
        "env": env,
        "learning_rate": recipe.baseline.learning_rate,
        "gamma": recipe.algorithm.discount,
        "batch_size": recipe.algorithm.batch_size,
        "seed": baseline_seed(recipe.system.seed),
        "device": device,
        "policy_kwargs": {
            "towers": towers,
            "features_extractor_class": extractor(env.observation_space),
        },
    }
    return BaselineRun(recipe, _build_model(recipe, common), env)


def baseline_seed(seed: int) -> int:
    """The seed of the library's global random numbers in a run of this seed."""
    return stream_seed(seed, "baseline") % _LARGEST_SEED


def _build_model(recipe: Recipe, common: dict[str, Any]) -> PPO | SAC | TD3:
    algo, budget = recipe.algorithm.algo, recipe.budget
    if algo == "ppo":
        epochs = round(ppo_epochs(recipe))
        return PPO(TowerPPOPolicy, n_steps=budget.unroll_length, n_epochs=epochs, **common)
    # Rows that a short run would never fill are not reserved.
    rows = min(budget.replay_rows, recipe.total_env_steps // recipe.task.num_envs)
    common |= {
        "buffer_size": rows * recipe.task.num_envs,
        "learning_starts": recipe.prefill_collections * recipe.steps_per_collection,
        "replay_buffer_class": HerReplayBuffer if algo.endswith("_her") else None,
    }
    if algo.startswith("sac"):
        return SAC(TowerSACPolicy, **common)
    actions = common["env"].action_space.shape
    noise = NormalActionNoise(np.zeros(actions), np.full(actions, _TD3_NOISE))
    return TD3(TowerTD3Policy, action_noise=noise, **common)


def _actor(model: PPO | SAC | TD3) -> tuple[nn.Module, str]:
    """The network of the deterministic policy, and the head of `Policy` that it needs."""
    policy = model.policy
    if isinstance(policy, TowerPPOPolicy):
        layers = [*policy.mlp_extractor.policy_net, policy.action_net]
        head = "clip"
    elif isinstance(policy, TowerSACPolicy):
        layers = [*policy.actor.latent_pi, policy.actor.mu]
        head = "squashed_gaussian" if policy.towers.actor else "tanh"
    else:
        assert isinstance(policy, TowerTD3Policy)
        layers, head = list(policy.actor.mu), "tanh"
    # A tower is the whole network. Without a tower the list ends in the last dense layer or in a
    # tanh, which is the head's part.
    if policy.towers.actor:
        return layers[0], head
    dense = layers[:-1] if isinstance(layers[-1], nn.Tanh) else layers
    return nn.Sequential(*dense), head
