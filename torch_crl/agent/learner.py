"""What a run trains: an actor and whatever else its algorithm needs, one batch at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from torch_crl.agent.networks import ResidualTower

Batch = Mapping[str, Tensor]
"""Tensors of equal length B by name: what `Replay.draw` returns, or any other mapping."""


class Learner(ABC):
    """The networks of one of our algorithms and their optimiser, changed in place by `update`."""

    actor: ResidualTower
    """Maps concat(state, goal) to concat(mean, raw log-std) of a squashed Gaussian."""
    device: torch.device
    """Device of the networks; batches must be on it too."""

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient update on a batch; returns 0-D metrics on the device.

        `state` [B, S], `action` [B, A] and `goal` [B, G] are float32. The call
        may be captured in a CUDA graph, so nothing in it may wait for the device or replace a
        tensor by a new one.
        """

    @property
    @abstractmethod
    def generators(self) -> list[Generator]:
        """The random number generators that `update` draws from."""

    @property
    @abstractmethod
    def trained(self) -> dict[str, list[Tensor]]:
        """The trained tensors of each group of parameters, such as `actor`, by its name."""

    @abstractmethod
    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name, such as `actor.weight`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, Adam moments, step counts, and the states of the generators."""

    @abstractmethod
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, before or after any number of updates."""
