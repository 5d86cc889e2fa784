"""Where physics runs: N simulations of one model behind live tensors.

A second simulator implements the same abstract class; tasks and the vector env do not change.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch
from numpy.typing import NDArray
from torch import Tensor

# Derived fields are one substep behind after a plain step; this stage makes them current.
_CURRENT = int(mujoco.mjtStage.mjSTAGE_VEL)
_STATE_ONLY = int(mujoco.mjtStage.mjSTAGE_NONE)
# At each of these warnings MuJoCo resets the simulation to the model's defaults and goes on.
_DIVERGED = [
    int(mujoco.mjtWarning.mjWARN_BADQPOS),
    int(mujoco.mjtWarning.mjWARN_BADQVEL),
    int(mujoco.mjtWarning.mjWARN_BADQACC),
]


class Simulator(ABC):
    """N simulations. The tensors are live: they change with `step`, and may be written.

    `data[name]` is the [N, ...] tensor of an MjData field: `qpos`, `qvel`, `ctrl`, and the
    derived fields asked for at construction, which are current after `step` and `reset`.
    """

    model: mujoco.MjModel
    num_envs: int
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
        """Where physics diverged in the last step and the simulator reset itself, bool [N]."""

    @abstractmethod
    def get_state(self) -> Tensor:
        """A copy of the whole integration state, float64 [N, *]."""

    @abstractmethod
    def set_state(self, state: Tensor) -> None:
        """Restore what `get_state` returned; derived fields become current."""


class CpuSimulator(Simulator):
    """MuJoCo on a pool of C++ threads (`mujoco.batch`), the same result at any thread count."""

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        num_envs: int,
        fields: Sequence[str] = (),
        num_threads: int = 0,
    ) -> None:
        """`num_threads` 0 takes every CPU this process may use."""
        self.model = model
        self.num_envs = num_envs
        self._batch = Batch(model, num_envs, num_threads)
        self._diverged_before = self._num_diverged()
        self._fresh_state = self._batch.state[0].copy()
        self._stage = _CURRENT if fields else _STATE_ONLY
        self.data = {
            name: _live_tensor(self._batch.bind(name)) for name in ("qpos", "qvel", "ctrl", *fields)
        }

    @property
    def num_warnings(self) -> int:
        """MuJoCo warnings so far (unstable physics, full buffers), over all simulations."""
        return int(self._batch.warning.sum())

    def step(self, substeps: int) -> None:
        self._diverged_before = self._num_diverged()
        self._batch.step(nstep=substeps, stage=self._stage)

    def unstable(self) -> Tensor:
        return torch.from_numpy(self._num_diverged() > self._diverged_before)

    def _num_diverged(self) -> NDArray[np.int64]:
        # [simulation, kind of warning, (last info, how often)]
        counts: NDArray[np.int64] = self._batch.warning[:, _DIVERGED, 1].sum(1)
        return counts

    def reset(self, mask_N: Tensor, qpos_NQ: Tensor, qvel_NV: Tensor) -> None:
        ids = np.flatnonzero(mask_N.numpy()).astype(np.int32)
        if len(ids) == 0:
            return
        # Batch.reset would do the same and wake its threads for it; torch's indexing of a few
        # rows takes ten times as long as NumPy's.
        self._batch.state[ids] = self._fresh_state
        self._batch.qpos[ids] = qpos_NQ.numpy()[ids]
        self._batch.qvel[ids] = qvel_NV.numpy()[ids]
        if self._stage != _STATE_ONLY:
            self._batch.forward(ids, stage=self._stage)

    def get_state(self) -> Tensor:
        return torch.from_numpy(self._batch.state.copy())

    def set_state(self, state: Tensor) -> None:
        self._batch.state[:] = state.numpy()
        if self._stage != _STATE_ONLY:
            self._batch.forward(stage=self._stage)


SIMULATORS: dict[str, Callable[..., Simulator]] = {"cpu": CpuSimulator}


def make_simulator(
    kind: str,
    model: mujoco.MjModel,
    *,
    num_envs: int,
    fields: Sequence[str] = (),
    num_threads: int = 0,
) -> Simulator:
    """`num_envs` simulations of the model on the simulator of that name."""
    return SIMULATORS[kind](model, num_envs=num_envs, fields=fields, num_threads=num_threads)


def _live_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the array's memory."""
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; nobody writes to a derived field.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
