"""Where physics runs: on the CPU's cores, or by MuJoCo Warp on a CUDA device."""

from collections.abc import Sequence

import mujoco
import torch

from torch_crl.envs.simulators.simulator import DEFAULT_CAPACITY as DEFAULT_CAPACITY
from torch_crl.envs.simulators.simulator import Capacity as Capacity
from torch_crl.envs.simulators.simulator import Simulator as Simulator
from torch_crl.envs.simulators.simulator import SimulatorError as SimulatorError


def make_simulator(
    kind: str,
    model: mujoco.MjModel,
    *,
    num_envs: int,
    fields: Sequence[str] = (),
    num_threads: int = 0,
    device: torch.device | str = "cpu",
    capacity: Capacity = DEFAULT_CAPACITY,
) -> Simulator:
    """Make `num_envs` simulations of the model; `kind` is the simulator, `cpu` or `warp`.

    `num_threads` is for `cpu`, `device` and `capacity` are for `warp`. Raises SimulatorError if the
    simulator cannot run the model here.
    """
    if kind == "cpu":
        from torch_crl.envs.simulators.cpu import CpuSimulator

        return CpuSimulator(model, num_envs=num_envs, fields=fields, num_threads=num_threads)
    if kind == "warp":
        from torch_crl.envs.simulators.warp import WarpSimulator

        return WarpSimulator(
            model, num_envs=num_envs, fields=fields, device=device, capacity=capacity
        )
    raise ValueError(f"simulator must be 'cpu' or 'warp', got {kind!r}")
