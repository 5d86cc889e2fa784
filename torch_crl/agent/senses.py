"""What policies see in place of numbers: sentences or pictures as goals, pictures as states.

N envs, G goal, F features.
"""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from torch_crl.envs.places import GoalPoints


class SeesPictures(Protocol):
    """A camera with a frozen encoder."""

    size: int
    """F, the number of features of a picture."""

    def film(self, qpos_NQ: Tensor) -> NDArray[np.uint8]:
        """Pictures [N, side, side, 3] of simulations at these positions."""

    def of_pictures(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Features [N, F] of pictures [N, side, side, 3]."""

    def check_task(self, name: str) -> None:
        """Raise an error for a task of which it knows no pictures."""

    def description(self) -> dict[str, Any]:
        """All that is saved of it, but for its numbers."""

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name."""


class ReadsGoals(Protocol):
    """What turns the goals that a policy is given into the numbers that its actor takes."""

    size: int
    """F, the number of these numbers."""
    goal_size: int
    """G, the length of the task's goals."""
    films: bool
    """Whether it takes pictures of goals that it has not seen."""

    @property
    def places(self) -> "GoalPoints | None":
        """The goals of the task that it can tell apart; None for all."""

    def __call__(self, goal: Any) -> Tensor:
        """Features [..., F] of goals [..., G] of the task, or of what it reads beside these."""

    def phrases_of(self, goal_NG: Tensor) -> list[str] | None:
        """The sentences that stand for goals of the task, if it reads sentences."""

    def pictures_of(self, goal_NG: Tensor) -> "NDArray[np.uint8] | None":
        """The pictures that stand for goals of the task, uint8 [N, H, W, 3], if it reads such."""

    def check_task(self, name: str) -> None:
        """Raise an error for a task whose goals it cannot take pictures of."""

    def description(self) -> dict[str, Any]:
        """All that is saved of it, but for its numbers."""

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name."""


class Frames:
    """The newest two pictures of N episodes, since one alone does not show velocities.

    Students learn more from the difference of their features than from both (benchmarks/LOG.md).
    """

    COUNT = 2

    def __init__(self, camera: SeesPictures, num_envs: int) -> None:
        """No episode has been seen yet."""
        self.camera = camera
        self.before_NF = torch.zeros(num_envs, camera.size)
        self.is_new_N = torch.ones(num_envs, dtype=torch.bool)

    def see(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Features [N, 2 F] of these pictures, and by how much they differ from those before.

        In a new episode they do not differ.
        """
        if len(pictures) != len(self.is_new_N):
            raise ValueError(
                f"this controller runs {len(self.is_new_N)} episodes; got {len(pictures)} pictures"
            )
        now_NF = self.camera.of_pictures(pictures)
        before_NF = torch.where(self.is_new_N[:, None], now_NF, self.before_NF)
        self.before_NF.copy_(now_NF)
        self.is_new_N.zero_()
        return torch.cat([now_NF, now_NF - before_NF], dim=-1)

    def drop(self, ended_N: Tensor) -> None:
        """The episodes of this bool mask [N] have ended."""
        self.is_new_N |= ended_N.cpu()

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered, by name."""
        return {"before": self.before_NF, "is_new": self.is_new_N}
