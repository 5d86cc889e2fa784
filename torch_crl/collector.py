"""Acts in the training envs and writes every step into the replay. N envs, A action, I = S + G."""

import torch
from torch import Generator, Tensor

from torch_crl.cuda_graph import GraphedFunction
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.kernels.squashed_gaussian import squashed_gaussian
from torch_crl.networks import ResidualTower
from torch_crl.replay import Replay
from torch_crl.threads import torch_threads


class Collector:
    """A sampling policy in `env`, with commanded goals."""

    def __init__(
        self, env: VectorEnv, actor: ResidualTower, replay: Replay, *, generator: Generator
    ) -> None:
        """The generator must live on the actor's device; it draws the exploration noise."""
        self.env = env
        self.actor = actor
        self.replay = replay
        self.generator = generator
        self.act_graph: GraphedFunction | None = None
        self._device = actor.weight.device

    @torch_threads(1)
    @torch.no_grad()
    def collect(self, steps: int) -> dict[str, float]:
        """Take `steps` control steps in every env.

        Returns the share of steps at the goal and the share of steps that were failures.
        """
        env = self.env
        successes = torch.zeros(env.num_envs)
        failures = torch.zeros(env.num_envs)
        for _ in range(steps):
            state_NS, trajectory_N = env.state_NS, env.trajectory_N
            inputs_NI = torch.cat([state_NS, env.goal_NG], dim=-1).to(self._device)
            action_NA = (self.act_graph or self.act)(inputs_NI)["action"]
            self.replay.add(state_NS, action_NA, trajectory_N)
            result = env.step(action_NA.cpu())
            successes += result.success["success"]
            failures += result.terminated_N
        return {
            "collected_at_goal": float(successes.mean()) / steps,
            "collected_failures": float(failures.mean()) / steps,
        }

    def act(self, inputs_NI: Tensor) -> dict[str, Tensor]:
        """A sampled action [N, A] for states and goals [N, S + G], under the name `action`."""
        output_N2A = self.actor(inputs_NI)
        envs, outputs = output_N2A.shape
        noise_NA = torch.randn(envs, outputs // 2, generator=self.generator, device=self._device)
        implementation = self.actor.compute.other_kernels
        return {"action": squashed_gaussian(output_N2A, noise_NA, implementation=implementation)[0]}
