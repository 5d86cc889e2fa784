"""Finds the first NaN, infinite or too large number in what a task computes.

N envs, K numbers of an env.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from torch_crl.envs.spec import LARGEST
from torch_crl.errors import NotFiniteError


class FiniteMonitor:
    """Remembers, on the device, the first number of N envs that is NaN, infinite or too large."""

    def __init__(self, sizes: dict[str, int], *, capturable: bool, device: torch.device) -> None:
        """Watch several tensors [N, size], called parts.

        `sizes` maps the name of each part in error messages to its size, in the order in which the
        parts are computed. With `capturable`, `record` never waits for the device, so that a CUDA
        graph can capture it.
        """
        self._sizes = sizes
        self._capturable = capturable
        # Flat index into the numbers [N, K] of all envs, and control step; -1 while nothing has
        # been found. Written in place and never replaced by another tensor.
        self._first = torch.full((2,), -1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget what has been found."""
        self._first.fill_(-1)

    def record(self, *parts: Tensor, steps_N: Tensor) -> None:
        """Check the parts of one control step, which is step `steps_N` of each env's episode."""
        number_NK = torch.cat(parts, dim=-1)
        # No entry is larger than the norm, which costs less than a test of every entry. A
        # comparison with NaN is false, so NaN is found too.
        if not self._capturable and float(vector_norm(number_NK)) < LARGEST:
            return
        wrong_NK = ~(number_NK.abs() < LARGEST)
        index = wrong_NK.flatten().int().argmax(0, keepdim=True)
        found = torch.cat([index, steps_N.index_select(0, index // wrong_NK.shape[1])])
        is_first = wrong_NK.any() & (self._first[0] < 0)
        self._first.copy_(torch.where(is_first, found, self._first))

    def check(self, task: str) -> None:
        """Raise NotFiniteError if anything has been found. Waits for the device."""
        index, step = self._first.tolist()
        if index < 0:
            return
        env, entry = divmod(index, sum(self._sizes.values()))
        for name, size in self._sizes.items():
            if entry < size:
                raise NotFiniteError(
                    f"{task}: {name} is NaN, infinite or beyond {LARGEST:g}, first in entry "
                    f"{entry} of env {env}, at step {step} of its episode"
                )
            entry -= size
