"""MuJoCo on a pool of C++ threads: `mujoco.batch`."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch, SimulationError
from numpy.typing import NDArray
from torch import Tensor

from torch_crl.envs.simulators.fields import Fields, stage_for
from torch_crl.envs.simulators.simulator import Simulator, SimulatorError
from torch_crl.system.devices import available_bytes
from torch_crl.system.threads import usable_cpus

_STATE_ONLY = int(mujoco.mjtStage.mjSTAGE_NONE)
# At each of these three warnings, which are neighbours (the one between them is BADQVEL), MuJoCo
# resets the simulation to the model's defaults and goes on.
_DIVERGED = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)
_BAD_CONTROL = int(mujoco.mjtWarning.mjWARN_BADCTRL)
_FULL = {
    "contacts": int(mujoco.mjtWarning.mjWARN_CONTACTFULL),
    "constraints": int(mujoco.mjtWarning.mjWARN_CNSTRFULL),
}


class CpuSimulator(Simulator):
    """Simulates in float64, with the same result at any number of threads."""

    capturable = False

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        num_envs: int,
        fields: Sequence[str] = (),
        num_threads: int = 0,
    ) -> None:
        """`num_threads` 0 uses every CPU that this process may use.

        Raises SimulatorError for fields that MuJoCo does not keep current for this model, and if
        the simulations do not fit into memory.
        """
        self.model = model
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self._batch = _batch(model, num_envs, num_threads or usable_cpus())
        self._past_warnings = 0
        # Axes: [simulation, kind of warning, (last info, count)]; a live view.
        self._divergences = self._batch.warning[:, _DIVERGED, 1]
        self._some_diverged = False
        self._fresh_state = self._batch.state[0].copy()
        # A plain step leaves derived fields one substep old; this stage makes them current.
        self._stage = stage_for(model, fields)
        self.data = Fields(
            (name, _live_tensor(self._batch.bind(name)))
            for name in ("qpos", "qvel", "ctrl", *fields)
        )

    @property
    def num_warnings(self) -> int:
        """MuJoCo warnings so far (unstable physics, full buffers), over all simulations."""
        return self._past_warnings + int(self._batch.warning[:, :, 1].sum())

    def live_counts(self) -> dict[str, NDArray[np.int32]]:
        """Numbers of `contacts` and `constraints` of each simulation now: live arrays [N]."""
        return {"contacts": self._batch.bind("ncon"), "constraints": self._batch.bind("nefc")}

    def step(self, substeps: int) -> None:
        # MuJoCo restarts the count at each divergence, so it can only be compared with zero.
        if self._some_diverged:
            self._past_warnings += int(self._divergences.sum())
            self._divergences[:] = 0
        _run(self._batch.step, nstep=substeps, stage=self._stage)
        self._some_diverged = bool(self._divergences.any())

    def unstable(self) -> Tensor | None:
        return torch.from_numpy(self._divergences.any(1)) if self._some_diverged else None

    def check(self) -> None:
        lost = [name for name, kind in _FULL.items() if self._batch.warning[:, kind, 1].any()]
        if lost:
            raise SimulatorError(
                f"MuJoCo had no room for all of its {' and '.join(lost)}, so physics is wrong from "
                "here on; give the model a larger <size memory>"
            )
        ids = np.flatnonzero(self._batch.warning[:, _BAD_CONTROL, 1])
        if len(ids):
            raise SimulatorError(
                f"a control of env {ids[0]} was NaN or beyond 1e10, so MuJoCo used 0 for "
                "all of its controls; scale what the task's `control` returns to the actuators"
            )

    def reset(self, mask_N: Tensor, qpos_NQ: Tensor, qvel_NV: Tensor) -> None:
        ids = np.flatnonzero(mask_N.numpy()).astype(np.int32)
        if len(ids) == 0:
            return
        if len(ids) == self.num_envs:
            # All simulations begin anew, so a control that was refused before no longer matters.
            self._batch.warning[:, _BAD_CONTROL, 1] = 0
        # Batch.reset would do the same but wake its threads for it. This is NumPy because torch
        # takes ten times as long to index a few rows.
        self._batch.state[ids] = self._fresh_state
        self._batch.qpos[ids] = qpos_NQ.numpy()[ids]
        self._batch.qvel[ids] = qvel_NV.numpy()[ids]
        if self._stage != _STATE_ONLY:
            _run(self._batch.forward, ids, stage=self._stage)

    def get_state(self) -> Tensor:
        return torch.from_numpy(self._batch.state.copy())

    def set_state(self, state: Tensor) -> None:
        self._batch.state[:] = state.numpy()
        if self._stage != _STATE_ONLY:
            _run(self._batch.forward, stage=self._stage)


def _batch(model: mujoco.MjModel, num_envs: int, num_threads: int) -> Batch:
    """Make the batch. Raises SimulatorError if memory is short.

    This is checked before memory is allocated: a system that overcommits memory would later kill
    the process.
    """
    least = num_envs * 8 * mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    available = available_bytes(torch.device("cpu"))
    short = f"{num_envs} envs take at least {least / 1e9:,.1f} GB of memory"
    if available is not None and least > available:
        raise SimulatorError(f"{short}, where {available / 1e9:,.1f} GB are free; take fewer envs")
    try:
        return Batch(model, num_envs, num_threads)
    except (MemoryError, ValueError) as error:
        # A failed allocation in C++ may arrive as a ValueError with this text.
        if isinstance(error, ValueError) and "bad_alloc" not in str(error):
            raise
        raise SimulatorError(f"{short}, which cannot be allocated; take fewer envs") from error


def _run(compute: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """Call a method of the batch. Raises SimulatorError where MuJoCo raises an error of its own."""
    try:
        compute(*arguments, **options)
    except SimulationError as error:
        # Its text has several lines.
        raise SimulatorError(" ".join(str(error).split())) from error


def _live_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory."""
    with warnings.catch_warnings():
        # torch warns that it has no read-only tensors; nothing writes to a derived field.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
