"""MuJoCo Warp: the physics of all simulations on a GPU, or slowly on Warp's CPU device."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mujoco
import mujoco_warp
import numpy as np
import torch
import warp
from mujoco_warp import OverflowType
from torch import Tensor

from torch_crl.envs.simulators.fields import Fields, stage_for
from torch_crl.envs.simulators.simulator import (
    DEFAULT_CAPACITY,
    Capacity,
    Simulator,
    SimulatorError,
)
from torch_crl.envs.spec import LARGEST
from torch_crl.errors import listed
from torch_crl.system.devices import available_bytes

# Print no banner, and no line for each of the hundred kernels that are compiled at first use.
warp.config.log_level = max(warp.config.log_level, warp.LOG_ERROR)
# The fields that determine the next step. A reset sets the first two and clears the others.
_STATE = ("qpos", "qvel", "ctrl", "act", "qacc_warmstart", "time")
# Fields that are current after `fwd_kinematics` and `com_vel`; all others need a whole `forward`.
_KINEMATIC = {"xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos"}
_KINEMATIC |= {"geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos"}
_KINEMATIC |= {"light_xdir", "subtree_com", "cdof", "cinert", "cvel", "cdof_dot"}
# A solver that uses up its iterations has lost no contact; the task chose their number.
_HARMLESS = OverflowType.ITERATIONS | OverflowType.LS_ITERATIONS


class WarpSimulator(Simulator):
    """Simulates in float32, on torch's current stream.

    It never waits for the device, so that a step and a reset can be captured in a torch CUDA graph
    (see `torch_crl.system.cuda_graph`).
    """

    capturable = True

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        num_envs: int,
        fields: Sequence[str] = (),
        device: torch.device | str = "cpu",
        capacity: Capacity = DEFAULT_CAPACITY,
    ) -> None:
        """Allocate all memory.

        Raises SimulatorError if Warp cannot run the model or keep a field current, or if memory
        does not suffice.
        """
        self.model = model
        self.num_envs = num_envs
        self.device = torch.device(device)
        self._capacity = capacity
        derived = set(fields).difference(_STATE)
        self._has_derived, self._needs_forward = bool(derived), bool(derived - _KINEMATIC)
        if problem := model_problem(model):
            raise SimulatorError(problem)
        with self._on_torch_stream():
            self._model = _put_model(model)
            self._data = self._make_data()
        self.data = self._make_fields(fields)
        self._state = [self._tensor(name).view(num_envs, -1) for name in _STATE]
        self._overflow = self._tensor("overflow")

    def step(self, substeps: int) -> None:
        with self._on_torch_stream():
            for _ in range(substeps):
                mujoco_warp.step(self._model, self._data)
            self._refresh()

    def reset(self, mask_N: Tensor, qpos_NQ: Tensor, qvel_NV: Tensor) -> None:
        mask_N1 = mask_N[:, None]
        qpos, qvel, *others = self._state
        for tensor, value in ((qpos, qpos_NQ), (qvel, qvel_NV)):
            tensor.copy_(torch.where(mask_N1, value.to(tensor.dtype), tensor))
        for tensor in others:
            # Not a product with the mask: diverged values are NaN, and NaN times 0 is NaN.
            tensor.masked_fill_(mask_N1, 0.0)
        with self._on_torch_stream():
            self._refresh()

    def unstable(self) -> Tensor:
        # A comparison with NaN is false, so NaN counts as unstable.
        positions_N, velocities_N = (
            (self.data[name].abs() < LARGEST).all(-1) for name in ("qpos", "qvel")
        )
        return ~(positions_N & velocities_N)

    def check(self) -> None:
        lost = OverflowType(int(self._overflow.max()) & ~int(_HARMLESS))
        if lost:
            raise SimulatorError(
                f"MuJoCo Warp lost contacts or constraints ({lost.name}), so physics is wrong from "
                f"here on; the task has {self._capacity}: raise both"
            )

    def get_state(self) -> Tensor:
        return torch.cat(self._state, dim=-1)

    def set_state(self, state: Tensor) -> None:
        sizes = [tensor.shape[-1] for tensor in self._state]
        for tensor, part in zip(self._state, state.split(sizes, dim=-1), strict=True):
            tensor.copy_(part)
        with self._on_torch_stream():
            self._refresh()

    def _refresh(self) -> None:
        """Recompute derived fields from positions and velocities; a step leaves them outdated."""
        if self._needs_forward:
            mujoco_warp.forward(self._model, self._data)
        elif self._has_derived:
            mujoco_warp.fwd_kinematics(self._model, self._data)
            mujoco_warp.com_vel(self._model, self._data)

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = warp.to_torch(getattr(self._data, name))
        return tensor

    def _make_fields(self, fields: Sequence[str]) -> Fields:
        """Live tensors in the shapes that MjData has."""
        stage_for(self.model, fields)
        template, data, problems = mujoco.MjData(self.model), Fields(), []
        for name in ("qpos", "qvel", "ctrl", *fields):
            shape = (self.num_envs, *np.shape(getattr(template, name)))
            tensor = self._tensor(name) if hasattr(self._data, name) else torch.empty(0, 1)
            cleared = name in _STATE or stage_for(self.model, [name])
            if cleared and tensor.numel() == math.prod(shape):
                data[name] = tensor.view(shape)
            else:
                problems.append(f"{name!r} is kept current by --simulator cpu only")
        if problems:
            raise SimulatorError(f"Task.fields, {listed(problems)}")
        return data

    def _make_data(self) -> Any:
        def make(count: int) -> Any:
            return mujoco_warp.make_data(
                self.model,
                nworld=count,
                nconmax=self._capacity.contacts,
                njmax=self._capacity.constraints,
            )

        one, two = (_num_bytes(make(count)) for count in (1, 2))
        available = available_bytes(self.device)
        fit = self.num_envs if available is None else int((available - one) / (two - one)) + 1
        if self.num_envs > fit:
            raise SimulatorError(
                f"{self.num_envs} envs do not fit into the free memory of {self.device}: each "
                f"takes {(two - one) / 1e3:,.0f} kB in MuJoCo Warp, so at most {fit:,} fit"
            )
        return make(self.num_envs)

    @contextmanager
    def _on_torch_stream(self) -> Iterator[None]:
        """Launch Warp on torch's stream, and into the graph that torch is capturing, if any."""
        if self.device.type == "cpu":
            with warp.ScopedDevice("cpu"):
                yield
            return
        stream = warp.stream_from_torch(torch.cuda.current_stream(self.device))
        # Warp's own stream has no work to wait for, and a capture could not wait for it.
        with warp.ScopedStream(stream, sync_enter=False):
            if torch.cuda.is_current_stream_capturing():
                with warp.ScopedCapture(stream=stream, external=True):
                    yield
            else:
                yield


def model_problem(model: mujoco.MjModel) -> str:
    """Why MuJoCo Warp cannot run this model; empty if it can."""
    try:
        with warp.ScopedDevice("cpu"):
            mujoco_warp.put_model(model)
    except (NotImplementedError, ValueError) as error:
        return f"MuJoCo Warp cannot run this model: {error}"
    return ""


def _put_model(model: mujoco.MjModel) -> Any:
    put = mujoco_warp.put_model(model)
    # Conditional graph nodes, with which the device decides whether to go on, cannot be part of
    # torch's capture. So all of the few solver iterations are launched; simulations that have
    # converged return at once.
    put.opt.graph_conditional = False
    put.opt.warn_overflow = 0
    return put


def _num_bytes(data: Any) -> int:
    """Size of all arrays in a dataclass and in the dataclasses that it contains."""
    values = [getattr(data, part.name) for part in dataclasses.fields(data)]
    return sum(
        value.capacity if isinstance(value, warp.array) else _num_bytes(value)
        for value in values
        if isinstance(value, warp.array) or dataclasses.is_dataclass(value)
    )
