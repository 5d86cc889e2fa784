"""What a run trains: an actor and what else its algorithm needs, improved batch by batch."""

from abc import ABC, abstractmethod

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from torch_crl.agent.networks import ResidualTower


class Learner(ABC):
    """The networks of one of our algorithms and their optimiser, changed in place by `update`."""

    actor: ResidualTower
    """concat(state, goal) to concat(mean, raw log-std) of a squashed Gaussian."""
    device: torch.device
    """Where the networks live, and the batches must."""

    @abstractmethod
    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """One gradient update on a batch; returns 0-D metrics on the device.

        `state` [B, S], `action` [B, A] and `goal` [B, G] are float32. A CUDA graph may hold the
        call: nothing in it may wait for the device or replace a tensor by another.
        """

    @property
    @abstractmethod
    def generators(self) -> list[Generator]:
        """What `update` draws from."""

    @property
    @abstractmethod
    def trained(self) -> dict[str, list[Tensor]]:
        """Group of parameters, such as `actor`, to its tensors."""

    @abstractmethod
    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name, such as `actor.weight`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, Adam moments, step counts, and the states of the generators."""

    @abstractmethod
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, before or after any number of updates."""
