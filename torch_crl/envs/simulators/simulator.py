"""Where physics runs: N simulations of one model behind live tensors.

Tasks and the vector env see a `Simulator` and do not know which one.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from torch_crl.errors import TorchCrlError


class SimulatorError(TorchCrlError, RuntimeError):
    """The simulator cannot run this model here, or its physics can no longer be trusted."""


class Capacity(NamedTuple):
    """Room for contacts, where a simulator reserves it: a number too large costs speed."""

    contacts: int = 48
    """Of one simulation; what some do not use, others may."""
    constraints: int = 64
    """Scalar constraints of one simulation: a contact has four, a joint at its limit one."""


DEFAULT_CAPACITY = Capacity()


class Simulator(ABC):
    """N simulations. The tensors are live: they change with `step`, and may be written.

    `data[name]` is the [N, ...] tensor of an MjData field: `qpos`, `qvel`, `ctrl`, and the
    derived fields asked for at construction, which are current after `step`, `reset` and
    `set_state`: what `mj_forward` makes of state and `ctrl` as they are. They live on `device`
    and are floating-point numbers of the simulator's own precision, in MjData's shapes.
    """

    capturable: bool
    """Whether a torch CUDA graph may hold `step`, `reset` and `unstable`."""
    model: mujoco.MjModel
    num_envs: int
    device: torch.device
    data: dict[str, Tensor]

    @cached_property
    def control_range(self) -> tuple[Tensor, Tensor] | None:
        """Middle and half width [U] of what each of the U actuators takes, on `device`.

        An actuator without limits counts as one of [-1, 1]; None if all are such.
        """
        model = self.model
        unlimited = ~model.actuator_ctrllimited.astype(bool)[:, None]
        low_U, high_U = torch.tensor(np.where(unlimited, (-1.0, 1.0), model.actuator_ctrlrange)).T
        middle_U, half_U = ((high_U + low_U) / 2).float(), ((high_U - low_U) / 2).float()
        if not middle_U.any() and (half_U == 1.0).all():
            return None
        return middle_U.to(self.device), half_U.to(self.device)

    @abstractmethod
    def step(self, substeps: int) -> None:
        """Advance every simulation by `substeps` physics steps with the present `ctrl`."""

    @abstractmethod
    def reset(self, mask_N: Tensor, qpos_NQ: Tensor, qvel_NV: Tensor) -> None:
        """Set the simulations in the mask to these positions and velocities.

        Everything else of their state (controls, solver warm start, applied forces, time) is
        cleared, so an episode does not depend on the one before it.
        """

    @abstractmethod
    def unstable(self) -> Tensor:
        """Where physics diverged in the last step, bool [N]; these need a reset."""

    @abstractmethod
    def check(self) -> None:
        """Raise SimulatorError if contacts were lost, or controls refused, since construction.

        Waits for the device.
        """

    @abstractmethod
    def get_state(self) -> Tensor:
        """A copy of the whole integration state, [N, *]."""

    @abstractmethod
    def set_state(self, state: Tensor) -> None:
        """Restore what `get_state` returned; derived fields become current."""
