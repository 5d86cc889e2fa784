"""What the networks see of a goal, and how hindsight tells of the goals that were achieved.

A task judges success by its own goals, G numbers such as coordinates. A goal space turns these into
the F numbers that actor and critic read. B batch, N envs, G goal of the task, F features.
"""

from abc import ABC, abstractmethod

from torch import Generator, Tensor

from torch_crl.envs.places import GoalPoints
from torch_crl.kernels.relabel import RelabeledBatch


class GoalSpace(ABC):
    """A frozen function from goals of the task to features, with random choices of its own."""

    size: int
    """F, the number of features."""

    @property
    def places(self) -> GoalPoints | None:
        """The points at which goals are commanded; None for those of the task."""
        return None

    @abstractmethod
    def of_future(
        self, goal_BG: Tensor, drawn: RelabeledBatch, generator: Generator
    ) -> dict[str, Tensor]:
        """Entries of a batch for achieved goals: `goal` [B, F], and what else tells of them.

        `place` (int64 [B]) says which of them are the same place, if places have several features;
        `whole` (float32 [B]) is 0 where nothing is known of the future, else 1. It may be captured
        in a CUDA graph.

        Args:
            goal_BG: the goals that were achieved later in the trajectories of some steps.
            drawn: these steps.
            generator: draws what is random; it is on the goals' device.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold; nothing for goals of the state."""
        return {}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027
        """Restore what `state_dict` returned."""

    @abstractmethod
    def commanded(self, goal_NG: Tensor, episode_N: Tensor) -> Tensor:
        """Features [N, F] of commanded goals, the same for all steps of an episode of an env."""


class StateGoals(GoalSpace):
    """The goal as the task has it: a slice of the state."""

    def __init__(self, size: int) -> None:
        """`size` is G, the length of the task's goals."""
        self.size = size

    def of_future(
        self,
        goal_BG: Tensor,
        drawn: RelabeledBatch,  # noqa: ARG002
        generator: Generator,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """The goals themselves."""
        return {"goal": goal_BG}

    def commanded(self, goal_NG: Tensor, episode_N: Tensor) -> Tensor:  # noqa: ARG002
        """The goals themselves."""
        return goal_NG
