"""Where physics runs: N simulations of one model behind live tensors.

Tasks and the vector env see a `Simulator` and do not know which one.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import mujoco
import torch
from torch import Tensor


class Simulator(ABC):
    """N simulations. The tensors are live: they change with `step`, and may be written.

    `data[name]` is the [N, ...] tensor of an MjData field: `qpos`, `qvel`, `ctrl`, and the
    derived fields asked for at construction, which are current after `step` and `reset`. They
    live on `device` and are floating-point numbers of the simulator's own precision.
    """

    model: mujoco.MjModel
    num_envs: int
    device: torch.device
    data: dict[str, Tensor]

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
    def get_state(self) -> Tensor:
        """A copy of the whole integration state, [N, *]."""

    @abstractmethod
    def set_state(self, state: Tensor) -> None:
        """Restore what `get_state` returned; derived fields become current."""


# Name to module and class; a module is loaded when its simulator is asked for.
SIMULATORS = {"cpu": "torch_crl.envs.simulators.cpu:CpuSimulator"}


def make_simulator(
    kind: str,
    model: mujoco.MjModel,
    *,
    num_envs: int,
    fields: Sequence[str] = (),
    num_threads: int = 0,
) -> Simulator:
    """`num_envs` simulations of the model on the simulator of that name."""
    module, _, name = SIMULATORS[kind].partition(":")
    simulator: Simulator = getattr(importlib.import_module(module), name)(
        model, num_envs=num_envs, fields=fields, num_threads=num_threads
    )
    return simulator
