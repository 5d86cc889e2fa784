"""An exponential moving average of an actor's weights, which acts more evenly than the newest ones.

Single evaluations of the newest weights dip even when the policy has learned its task; an average
over the last updates does not follow every one of them. torch's own `swa_utils.AveragedModel` reads
a counter on the host at each update, which no CUDA graph can capture.
"""

import copy

import torch
from torch import Tensor

from torch_crl.agent.networks import ResidualTower


class AveragedActor:
    """A copy of an actor whose weights move towards its own by `1 - decay` at every `update`."""

    def __init__(self, actor: ResidualTower, *, decay: float) -> None:
        """The average begins with the present weights of `actor`, whose device it shares."""
        self.actor = copy.deepcopy(actor).requires_grad_(False)
        """The network with the averaged weights."""
        self._newest: list[Tensor] = list(actor.parameters())
        self._averaged: list[Tensor] = list(self.actor.parameters())
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Follow the actor by one update, in place; a CUDA graph may capture the call."""
        torch._foreach_lerp_(self._averaged, self._newest, 1.0 - self._decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return dict(self.actor.named_parameters())

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in place."""
        for name, averaged in self.actor.named_parameters():
            averaged.copy_(tensors[name])
