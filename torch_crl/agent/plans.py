"""Chunks of actions that are carried out open loop: a new plan every H control steps.

N envs, H chunk, A action.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Plans:
    """For each of N envs a plan of H actions, and how many of them have been carried out."""

    def __init__(
        self, num_envs: int, chunk: int, action_size: int, *, device: torch.device | str = "cpu"
    ) -> None:
        """No env has a plan yet."""
        self.plan_NHA = torch.zeros(num_envs, chunk, action_size, device=device)
        self.age_N = torch.zeros(num_envs, dtype=torch.int64, device=device)

    def next_action(self, make_plan: Callable[[], Tensor]) -> Tensor:
        """The next action [N, A] of every env.

        `make_plan` returns plans [N, H A] for all envs; those whose plan is used up follow them.
        A CUDA graph may capture the call.
        """
        chunk = self.plan_NHA.shape[1]
        due_N = self.age_N == 0
        # Asking whether any plan is used up would make the host wait for another device.
        if not due_N.is_cpu or due_N.any():
            made_NHA = make_plan().view_as(self.plan_NHA)
            self.plan_NHA.copy_(torch.where(due_N[:, None, None], made_NHA, self.plan_NHA))
        index_N1A = self.age_N[:, None, None].expand(-1, 1, self.plan_NHA.shape[2])
        action_NA = self.plan_NHA.gather(1, index_N1A)[:, 0]
        self.age_N.add_(1).remainder_(chunk)
        return action_NA

    def drop(self, ended_N: Tensor) -> None:
        """Forget the plans of the envs in this bool mask [N], whose episodes have ended."""
        self.age_N.masked_fill_(ended_N.to(self.age_N.device), 0)

    def tensors(self) -> dict[str, Tensor]:
        """The plans and their ages, by name."""
        return {"plan": self.plan_NHA, "age": self.age_N}
