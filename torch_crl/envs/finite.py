"""NaN, infinity and their like in what a task computes: found where they begin.

N envs, K numbers of an env.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from torch_crl.envs.spec import LARGEST
from torch_crl.errors import NotFiniteError


class FiniteMonitor:
    """Remembers, on their device, the first number of N envs that nothing can be learned from."""

    def __init__(self, sizes: dict[str, int], *, capturable: bool, device: torch.device) -> None:
        """Watch parts [N, size], by what to call them, in the order in which they are computed.

        Where `capturable`, `record` waits for nothing, so that a CUDA graph can hold it.
        """
        self._sizes = sizes
        self._capturable = capturable
        # Index among the numbers of all envs, and control step. Written in place, never rebound.
        self._first = torch.full((2,), -1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Begin anew."""
        self._first.fill_(-1)

    def record(self, *parts: Tensor, steps_N: Tensor) -> None:
        """Look at the parts of one control step, the `steps_N`-th of each env's episode."""
        # No number is larger than the norm, which costs less than a look at each of them. A
        # comparison with NaN is false.
        if not self._capturable and all(float(vector_norm(part)) < LARGEST for part in parts):
            return
        wrong_NK = ~(torch.cat(parts, dim=-1).abs() < LARGEST)
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
                    f"{task}: {name} is NaN, infinite or beyond {LARGEST:g}, first in entry "
                    f"{entry} of env {env}, at step {step} of its episode"
                )
            entry -= size
