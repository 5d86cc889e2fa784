"""An exponential moving average of an actor's weights, which acts more evenly than the newest ones.

Single evaluations of the newest weights dip even when the policy has learned its task; an average
over the last updates does not follow every one of them. In the first updates it is over fewer, so
that it does not lag behind: the decay of update n is min(decay, n / (n + 9)). torch's own
`swa_utils.AveragedModel` reads a counter on the host at each update, which no CUDA graph can
capture.
"""

import copy

import torch
from torch import Tensor

from torch_crl.agent.networks import ResidualTower


class AveragedActor:
    """A copy of an actor whose weights move towards its own at every `update`."""

    def __init__(self, actor: ResidualTower, *, decay: float) -> None:
        """The average begins with the present weights of `actor`, whose device it shares."""
        self.actor = copy.deepcopy(actor).requires_grad_(False)
        """The network with the averaged weights."""
        self._newest: list[Tensor] = list(actor.parameters())
        self._averaged: list[Tensor] = list(self.actor.parameters())
        self._decay = decay
        # On the device, where a captured CUDA graph can count.
        self._updates = torch.zeros((), device=actor.weight.device)

    @torch.no_grad()
    def update(self) -> None:
        """Follow the actor by one update, in place; a CUDA graph may capture the call."""
        self._updates += 1.0
        share = 1.0 - (self._updates / (self._updates + 9.0)).clamp(max=self._decay)
        changes = torch._foreach_sub(self._newest, self._averaged)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(self._averaged, changes)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name, and the number of updates."""
        return dict(self.actor.named_parameters()) | {"updates": self._updates}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in place."""
        for name, ours in self.state_dict().items():
            ours.copy_(tensors[name])
