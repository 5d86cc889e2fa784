"""The interface of a batch of parallel episodes, for collection, evaluation and videos.

N envs, S state, G goal, A action.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from torch_crl.envs.spec import TaskSpec


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of one control step of N envs."""

    final_state_NS: Tensor
    """float32 state after the action; where the episode ended, its last state."""
    distance_N: Tensor
    """Distance from that state's achieved goal to the commanded goal."""
    success: dict[str, Tensor]
    """Success level to bool [N], for that state."""
    terminated_N: Tensor
    """The episode ended because it failed, or because its physics became unstable."""
    truncated_N: Tensor
    """The episode ended at the time limit, without failing."""
    unstable_N: Tensor
    """bool: physics diverged in this step; `final_state_NS` is then the state before it."""


class VectorEnv(ABC):
    """N episodes that are stepped together; wherever one ends, the next one begins.

    The tensors live on the simulator's device, are written in place and are never replaced by
    other tensors. `TaskVectorEnv` runs our own tasks, `GymnasiumVectorEnv` runs Gymnasium's goal
    envs.
    """

    saves_state: bool
    """Whether `load_state_dict` continues in the middle of the saved episodes."""
    terminates_at_goals: bool
    """Whether an episode may be terminated because it reached its goal, and not by a failure."""
    capturable: bool
    """Whether a CUDA graph can capture `step`, because it never waits for the device."""
    generators: Sequence[Generator]
    """Random number generators that a captured `step` draws from."""
    spec: TaskSpec
    num_envs: int
    episode_length: int
    """Control steps until the time limit."""
    seconds_per_step: float
    """Simulated time of a control step."""
    state_NS: Tensor
    """float32: the present state, on which to base the next action."""
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

    def failed(self, result: StepResult) -> Tensor:
        """bool [N]: the step failed, and ended its episode neither at a goal nor by diverging."""
        succeeded_N = result.success["success"] & self.terminates_at_goals
        return result.terminated_N & ~result.unstable_N & ~succeeded_N

    @abstractmethod
    def goal_after(self, goal_NG: Tensor, state_NS: Tensor) -> Tensor:
        """What a goal becomes in this state, for tasks whose goal moves with the state."""

    @abstractmethod
    def outcome(
        self, achieved_goal_NG: Tensor, goal_NG: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance [N] from achieved goals to goals, and a dict of success level to bool [N].

        Raises ValueError where it is known for the env's own state only, as in Gymnasium's envs.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise if the results since `reset` cannot be trusted; may wait for the device."""

    @abstractmethod
    def live_tensors(self) -> dict[str, Tensor]:
        """The tensors that `step` changes, by name, apart from the state of the simulator."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The part of the present state that can be saved."""

    @abstractmethod
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, from an env built with equal arguments."""

    @abstractmethod
    def close(self) -> None:
        """End processes and free resources; calling it again does nothing."""
