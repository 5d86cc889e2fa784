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


class MemoryTraces:
    """What N episodes have shown a camera, and what was done in them: averages that fade.

    One picture shows no velocities, and two show them badly. What a picture's features differ by
    from their trace, and the trace of the actions, tell them together: the first smooths what is
    seen, the second knows what the smoothing is late for.

    Source: "Partially Observable Reinforcement Learning with Memory Traces" (ICML 2025), where
    traces are of what is seen; those of actions are ours (benchmarks/LOG.md). W spans, A action.
    """

    SPANS = (4.0, 16.0)
    """In control steps: in each, a trace moves by 1 / span of the way to what is new."""

    def __init__(self, camera: SeesPictures, num_envs: int, action_size: int) -> None:
        """No episode has been seen yet."""
        self.camera = camera
        spans = len(self.SPANS)
        self.seen_WNF = torch.zeros(spans, num_envs, camera.size)
        self.done_WNA = torch.zeros(spans, num_envs, action_size)
        self.is_new_N = torch.ones(num_envs, dtype=torch.bool)

    @classmethod
    def size(cls, features: int, action_size: int) -> int:
        """S, the number of numbers that a policy with a camera takes as its state."""
        return features + len(cls.SPANS) * (features + action_size)

    def see(self, pictures: NDArray[np.uint8]) -> Tensor:
        """The state [N, S] at these pictures.

        It is their features, what these differ by from their traces, and the traces of the actions.
        At the beginning of an episode all but the features is 0.
        """
        if len(pictures) != len(self.is_new_N):
            raise ValueError(
                f"this controller runs {len(self.is_new_N)} episodes; got {len(pictures)} pictures"
            )
        now_NF = self.camera.of_pictures(pictures)
        self.seen_WNF[:, self.is_new_N] = now_NF[self.is_new_N]
        self.done_WNA[:, self.is_new_N] = 0.0
        self.is_new_N.zero_()
        self._move(self.seen_WNF, now_NF)
        # An average over more steps is smaller, by the root of their number where they differ.
        scaled = zip(self.SPANS, self.done_WNA, strict=True)
        done = [span**0.5 * done_NA for span, done_NA in scaled]
        return torch.cat([now_NF, *(now_NF - self.seen_WNF), *done], dim=-1)

    def act(self, action_NA: Tensor) -> None:
        """These actions are carried out."""
        self._move(self.done_WNA, action_NA)

    def _move(self, trace_WNX: Tensor, new_NX: Tensor) -> None:
        for span, trace_NX in zip(self.SPANS, trace_WNX, strict=True):
            trace_NX.lerp_(new_NX, 1.0 / span)

    def drop(self, ended_N: Tensor) -> None:
        """The episodes of this bool mask [N] have ended."""
        self.is_new_N |= ended_N.cpu()

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered, by name."""
        return {"seen": self.seen_WNF, "done": self.done_WNA, "is_new": self.is_new_N}
