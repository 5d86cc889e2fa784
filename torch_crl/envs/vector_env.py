"""What a batch of parallel episodes is to all that collects, evaluates and films.

N envs, S state, G goal, A action.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from torch_crl.envs.spec import TaskSpec


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
    unstable_N: Tensor
    """bool: physics diverged in this step; `final_state_NS` is then the state before it."""


class VectorEnv(ABC):
    """N episodes that are stepped together; wherever one ends, the next one begins.

    The tensors live on the simulator's device, are written in place and are never replaced by
    other tensors. `TaskVectorEnv` has our own tasks, `GymnasiumVectorEnv` those of Gymnasium.
    """

    saves_state: bool
    """Whether a run goes on in the middle of its episodes after `load_state_dict`."""
    capturable: bool
    """Whether a CUDA graph can hold `step`, because it waits for nothing."""
    generators: Sequence[Generator]
    """What a captured `step` draws from."""
    spec: TaskSpec
    num_envs: int
    episode_length: int
    """Control steps until the time limit."""
    seconds_per_step: float
    """Simulated time of a control step."""
    state_NS: Tensor
    """float32: what to act on next."""
    goal_NG: Tensor
    """float32: the commanded goal of the present episode."""
    steps_N: Tensor
    """int32: control steps of the present episode so far."""
    trajectory_N: Tensor
    """int32: the number of the present episode, counted from 1 in each env."""
    unstable_N: Tensor
    """int32: episodes that were ended because their physics diverged."""
    unstable_step_N: Tensor
    """int32: the step of its episode at which the latest of them diverged."""

    @abstractmethod
    def reset(self) -> None:
        """Begin a fresh episode in every env."""

    @abstractmethod
    def step(self, action_NA: Tensor) -> StepResult:
        """Apply float32 actions in [-1, 1], shape [N, A], for one control step."""

    @abstractmethod
    def goal_after(self, goal_NG: Tensor, state_NS: Tensor) -> Tensor:
        """What a goal has become in this state, for tasks whose goal moves with the state."""

    @abstractmethod
    def outcome(
        self, achieved_goal_NG: Tensor, goal_NG: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance [N] of achieved goals to others, and success level to bool [N].

        Raises ValueError where only the env itself knows, as those of Gymnasium.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise if what was told since `reset` cannot be trusted; may wait for the device."""

    @abstractmethod
    def live_tensors(self) -> dict[str, Tensor]:
        """What `step` changes, by name, besides the state of the simulator."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What can be saved of the present moment."""

    @abstractmethod
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, from an env built with equal arguments."""

    @abstractmethod
    def close(self) -> None:
        """End processes and free what is held; calling it again does nothing."""
