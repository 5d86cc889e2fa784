"""A CUDA graph on the CPU: what was captured is repeated, with the addresses of then."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from torch_crl.system.cuda_graph import Function


class StandIn:
    """Repeats a function by calling it, and hands out the tensors of the capture again."""

    def __init__(self, _device: torch.device, _generators: list[Generator]) -> None:
        self.replays = 0

    def warm_up(self, function: Function, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return function(*inputs)

    def capture(self, function: Function, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        self._function, self._inputs = function, inputs
        self._outputs: dict[str, Tensor] = {}
        return self._outputs

    def replay(self) -> None:
        self.replays += 1
        for name, value in self._function(*self._inputs).items():
            kept = self._outputs.setdefault(name, torch.empty_like(value))
            kept.copy_(value)
