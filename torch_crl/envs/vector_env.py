"""N parallel episodes of one task: the only place that knows where an episode begins and ends.

N envs, S state, G goal, A action.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from torch_crl.envs.simulator import Simulator
from torch_crl.envs.task import Start, Task


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one control step of N envs brought."""

    final_state_NS: Tensor
    """float32 state after the action, the last one of its episode where that ended."""
    distance_N: Tensor
    """Distance from that state's achieved goal to the commanded goal."""
    success: dict[str, Tensor]
    """Success level to bool [N], of that state."""
    terminated_N: Tensor
    """The episode ended because it failed, or because its physics became unstable."""
    truncated_N: Tensor
    """The episode ended at the time limit, without failing."""


class VectorEnv:
    """Steps N episodes and starts the next one wherever one ends.

    `state_NS` and `goal_NG` are what to act on next; `trajectory_N` numbers the episodes of each
    env from 1. Every start is a fresh draw. With `cached_starts` each env repeats its first
    start and goal for ever, as the reference implementation does.
    """

    def __init__(
        self,
        task: Task,
        simulator: Simulator,
        *,
        episode_length: int,
        generator: Generator,
        cached_starts: bool = False,
    ) -> None:
        """Draw the first starts. The generator is used for every later one too."""
        self.task = task
        self.simulator = simulator
        self.episode_length = episode_length
        self.generator = generator
        num_envs = simulator.num_envs
        self.num_envs = num_envs
        self._cached = self._cached_start() if cached_starts else None
        self.goal_NG = torch.zeros(num_envs, task.spec.goal_size)
        self.steps_N = torch.zeros(num_envs, dtype=torch.int32)
        self.trajectory_N = torch.zeros(num_envs, dtype=torch.int32)
        self._begin_episodes(torch.ones(num_envs, dtype=torch.bool))
        self.state_NS = task.state(simulator)

    def step(self, action_NA: Tensor) -> StepResult:
        """Apply float32 actions in [-1, 1], shape [N, A], for one control step."""
        task, simulator = self.task, self.simulator
        simulator.data["ctrl"].copy_(task.control(action_NA, simulator))
        simulator.step(task.substeps)
        self.steps_N += 1
        state_NS = task.state(simulator)
        terminated_N = task.failed(state_NS) | simulator.unstable()
        truncated_N = (self.steps_N >= self.episode_length) & ~terminated_N
        distance_N = task.distance(task.achieved_goal(state_NS), self.goal_NG)
        ended_N = terminated_N | truncated_N
        self.state_NS = state_NS
        if ended_N.any():
            self._begin_episodes(ended_N)
            self.state_NS = torch.where(ended_N[:, None], task.state(simulator), state_NS)
        return StepResult(
            final_state_NS=state_NS,
            distance_N=distance_N,
            success=task.success(distance_N),
            terminated_N=terminated_N,
            truncated_N=truncated_N,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that `load_state_dict` needs to go on as if never stopped."""
        tensors = {
            "simulator": self.simulator.get_state(),
            "generator": self.generator.get_state(),
            "state": self.state_NS,
            "goal": self.goal_NG,
            "steps": self.steps_N,
            "trajectory": self.trajectory_N,
        }
        if self._cached is not None:
            tensors |= {f"cached_{name}": part for name, part in self._cached._asdict().items()}
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, from an env built with equal arguments."""
        self.simulator.set_state(tensors["simulator"])
        self.generator.set_state(tensors["generator"])
        self.state_NS = tensors["state"].clone()
        self.goal_NG.copy_(tensors["goal"])
        self.steps_N.copy_(tensors["steps"])
        self.trajectory_N.copy_(tensors["trajectory"])
        if self._cached is not None:
            self._cached = Start(**{name: tensors[f"cached_{name}"] for name in Start._fields})

    def _sample_start(self) -> Start:
        return self.task.sample_start(self.simulator.num_envs, self.generator)

    def _cached_start(self) -> Start:
        # A task may give one tensor for two parts; in a checkpoint each has its own memory.
        return Start(*(part.clone() for part in self._sample_start()))

    def _begin_episodes(self, mask_N: Tensor) -> None:
        start = self._cached if self._cached is not None else self._sample_start()
        self.simulator.reset(mask_N, start.qpos_NQ, start.qvel_NV)
        self.goal_NG = torch.where(mask_N[:, None], start.goal_NG, self.goal_NG)
        self.steps_N.masked_fill_(mask_N, 0)
        self.trajectory_N += mask_N
