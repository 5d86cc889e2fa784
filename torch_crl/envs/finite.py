"""NaN and infinity in what a task computes: found where they begin. N envs, K numbers of an env."""

import math

import torch
from torch import Tensor

from torch_crl.errors import TorchCrlError


class NotFiniteError(TorchCrlError, ValueError):
    """A task or a policy gave NaN or infinity; the message says which function, env and step."""


class FiniteWatch:
    """Remembers the first number of N envs that is not finite, on their device."""

    def __init__(self, sizes: dict[str, int], *, capturable: bool, device: torch.device) -> None:
        """Watch parts [N, size], by what to call them, in the order in which they are computed.

        Where `capturable`, `look` waits for nothing, so that a CUDA graph can hold it.
        """
        self._sizes = sizes
        self._capturable = capturable
        # Index among the numbers of all envs, and control step. Written in place, never rebound.
        self._first = torch.full((2,), -1, dtype=torch.int64, device=device)

    def forget(self) -> None:
        """Begin anew."""
        self._first.fill_(-1)

    def look(self, *parts: Tensor, steps_N: Tensor) -> None:
        """Look at the parts of one control step, the `steps_N`-th of each env's episode."""
        # A sum of finite numbers is finite, and costs less than a look at each of them.
        if not self._capturable and all(math.isfinite(part.sum()) for part in parts):
            return
        wrong_NK = ~torch.cat(parts, dim=-1).isfinite()
        index = wrong_NK.flatten().int().argmax(0, keepdim=True)
        found = torch.cat([index, steps_N.index_select(0, index // wrong_NK.shape[1])])
        is_first = wrong_NK.any() & (self._first[0] < 0)
        self._first.copy_(torch.where(is_first, found, self._first))

    def check(self, task: str) -> None:
        """Raise NotFiniteError if anything was found so far. Waits for the device."""
        index, step = self._first.tolist()
        if index < 0:
            return
        env, entry = divmod(index, sum(self._sizes.values()))
        for name, size in self._sizes.items():
            if entry < size:
                raise NotFiniteError(
                    f"{task}: {name} is NaN or infinite, first in entry {entry} of env {env}, at "
                    f"step {step} of its episode"
                )
            entry -= size
