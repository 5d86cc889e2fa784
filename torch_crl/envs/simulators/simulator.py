"""The interface of simulators: N simulations of one model behind live tensors.

Tasks and the vector env use a `Simulator` and do not depend on which one it is.
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
    """Room for contacts and constraints, where a simulator reserves it; too much costs speed."""

    contacts: int = 48
    """Contacts per simulation. All simulations share the room, so one may have more than this."""
    constraints: int = 64
    """Scalar constraints of one simulation: a contact has four, a joint at its limit one."""


DEFAULT_CAPACITY = Capacity()


class Simulator(ABC):
    """N simulations. Their tensors are live: they change with `step`, and may be written.

    `data[name]` is the [N, ...] tensor of an MjData field: `qpos`, `qvel`, `ctrl`, and the
    derived fields asked for at construction. After `step`, `reset` and `set_state` the derived
    fields are current: they hold what `mj_forward` computes from the present state and `ctrl`. All
    tensors are on `device`, in the simulator's own floating-point precision and MjData's shapes.
    """

    capturable: bool
    """Whether a torch CUDA graph can capture `step`, `reset` and `unstable`."""
    model: mujoco.MjModel
    num_envs: int
    device: torch.device
    data: dict[str, Tensor]

    @cached_property
    def control_range(self) -> tuple[Tensor, Tensor] | None:
        """Middle and half width [U] of the control range of each of the U actuators, on `device`.

        An actuator without limits counts as [-1, 1]; None if every range is [-1, 1].
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
    def unstable(self) -> Tensor | None:
        """Simulations whose physics diverged in the last step, bool [N]; these need a reset.

        None if there are none, from a simulator that knows this without waiting for the device.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise SimulatorError if contacts were lost or controls were refused since construction.

        Waits for the device.
        """

    @abstractmethod
    def get_state(self) -> Tensor:
        """A copy of the whole integration state, [N, *]."""

    @abstractmethod
    def set_state(self, state: Tensor) -> None:
        """Restore what `get_state` returned; derived fields become current."""
