"""Acts in the training envs and writes every step into the replay.

N envs, S state, G goal, I = S + G, A action, H chunk.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor

from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.plans import Plans
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.experience.replay import Transition
from torch_crl.goals.space import GoalSpace, StateGoals
from torch_crl.kernels.squashed_gaussian import squashed_gaussian
from torch_crl.system.checkpoint import flatten, part_of
from torch_crl.system.cuda_graph import GraphedFunction, Recorder
from torch_crl.system.threads import torch_threads


class Rows(Protocol):
    """What steps of N envs are written to, such as the replay."""

    def write(self, step: Transition) -> None:
        """Write one step of every env; the call may be captured in a CUDA graph."""

    def advance(self) -> None:
        """Count the step just written."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that `write` changes, by name."""


class Collector:
    """Acts in `env` with actions sampled from the policy, given the goals that the env commands."""

    def __init__(
        self,
        env: VectorEnv,
        actor: ResidualTower,
        rows: Rows,
        *,
        generator: Generator,
        chunk: int = 1,
        goals: GoalSpace | None = None,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        """The generator must live on the actor's device; it draws the exploration noise.

        `chunk` is the number of actions that the actor decides at once, and `goals` what it sees of
        the commanded goals; by default these goals themselves. `before_step` is called before each
        step, outside of what is captured in CUDA graphs.
        """
        self.env = env
        self.actor = actor
        self.generator = generator
        self.act_graph: GraphedFunction | None = None
        self.step_graph: GraphedFunction | None = None
        self._rows, self._before_step = rows, before_step
        self._goals = goals or StateGoals(env.spec.goal_size)
        self._device = device = actor.weight.device
        self._plans = (
            Plans(env.num_envs, chunk, env.spec.action_size, device=device) if chunk > 1 else None
        )
        self._at_goal_N, self._failures_N = (
            torch.zeros(env.num_envs, device=env.state_NS.device) for _ in range(2)
        )

    def use_graphs(self, make_recorder: Callable[[list[Generator]], Recorder]) -> None:
        """From now on capture and replay `step` as a CUDA graph if the env allows it, else `act`.

        `make_recorder` receives the generators that the captured function draws from.
        """
        env, actor = self.env, self.actor
        if env.capturable:
            self.step_graph = GraphedFunction(
                self.step,
                make_recorder=lambda: make_recorder([self.generator, *env.generators]),
                fixed=lambda: (
                    dict(actor.named_parameters())
                    | self._plan_tensors()
                    | env.live_tensors()
                    | self._rows.tensors()
                ),
            )
        else:
            self.act_graph = GraphedFunction(
                self.act,
                make_recorder=lambda: make_recorder([self.generator]),
                fixed=lambda: dict(actor.named_parameters()) | self._plan_tensors(),
            )

    @torch_threads(1)
    @torch.no_grad()
    def collect(self, steps: int) -> dict[str, float]:
        """Take `steps` control steps in every env.

        Returns the share of steps at the goal and the share of steps that were failures.
        """
        self._at_goal_N.zero_()
        self._failures_N.zero_()
        for _ in range(steps):
            self._before_step()
            (self.step_graph or self.step)()
            self._rows.advance()
        return self.episodes(steps)

    def episodes(self, steps: int) -> dict[str, float]:
        """The metrics that the last `collect(steps)` returned."""
        return {
            "collected_at_goal": float(self._at_goal_N.mean()) / steps,
            "collected_failures": float(self._failures_N.mean()) / steps,
        }

    def step(self) -> dict[str, Tensor]:
        """Take one control step in every env and write it to the rows; returns an empty dict."""
        env = self.env
        first, stop = env.spec.goal_slice
        # Copied, since `env.step` overwrites these tensors with the next state and trajectory.
        state_NS, trajectory_N = env.state_NS.clone(), env.trajectory_N.clone()
        goal_NF = self._goals.commanded(env.goal_NG, trajectory_N)
        inputs_NI = torch.cat([state_NS, goal_NF], dim=-1).to(self._device)
        action_NA = (self.act_graph or self.act)(inputs_NI)["action"]
        result = env.step(action_NA.to(env.state_NS.device))
        achieved_NG = result.final_state_NS[:, first:stop]
        failed_N = env.failed(result)
        self._rows.write(
            Transition(state_NS, action_NA, achieved_NG, trajectory_N, result.unstable_N, failed_N)
        )
        self._at_goal_N += result.success["success"]
        self._failures_N += failed_N
        if self._plans is not None:
            self._plans.drop(result.terminated_N | result.truncated_N)
        return {}

    def act(self, inputs_NI: Tensor) -> dict[str, Tensor]:
        """The next action [N, A] for states and goals [N, S + G], under the name `action`."""
        if self._plans is None:
            return {"action": self._sample(inputs_NI)}
        return {"action": self._plans.next_action(lambda: self._sample(inputs_NI))}

    def _sample(self, inputs_NI: Tensor) -> Tensor:
        """A sampled action [N, A], or chunk of actions [N, H A]."""
        output_N2A = self.actor(inputs_NI)
        envs, outputs = output_N2A.shape
        noise_NA = torch.randn(envs, outputs // 2, generator=self.generator, device=self._device)
        implementation = self.actor.compute.other_kernels
        return squashed_gaussian(output_N2A, noise_NA, implementation=implementation)[0]

    def _plan_tensors(self) -> dict[str, Tensor]:
        return self._plans.tensors() if self._plans is not None else {}

    def state_dict(self) -> dict[str, Tensor]:
        """State of the envs and of the exploration noise, to continue as if never interrupted."""
        own = {"generator": self.generator.get_state()}
        own |= {"at_goal": self._at_goal_N, "failures": self._failures_N} | self._plan_tensors()
        return own | flatten({"env": self.env.state_dict()})

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for graph in (self.act_graph, self.step_graph):
            if graph is not None:
                graph.reset()
        self.env.load_state_dict(part_of(tensors, "env"))
        self.generator.set_state(tensors["generator"])
        self._at_goal_N.copy_(tensors["at_goal"])
        self._failures_N.copy_(tensors["failures"])
        for name, tensor in self._plan_tensors().items():
            tensor.copy_(tensors[name])
        if self._plans is not None and not self.env.saves_state:
            # Its episodes begin anew.
            self._plans.age_N.zero_()

    def begin_anew(self) -> None:
        """Begin fresh episodes in all envs, in which nothing has been planned yet.

        Envs whose state cannot be saved begin them when they are loaded.
        """
        if self.env.saves_state:
            self.env.reset()
        if self._plans is not None:
            self._plans.age_N.zero_()

    def close(self) -> None:
        """Release the resources of the env."""
        self.env.close()
