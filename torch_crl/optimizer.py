"""Adam over named tensors, and its state for checkpoints."""

import torch
from torch import Tensor


def adam(groups: dict[float, list[Tensor]], device: torch.device) -> torch.optim.Adam:
    """Learning rate to the tensors that it trains; one kernel steps all of a group on CUDA."""
    return torch.optim.Adam(
        [{"params": parameters, "lr": rate} for rate, parameters in groups.items()],
        fused=True,
        # Counts its steps on the device, where a CUDA graph can.
        capturable=device.type == "cuda",
    )


def optimizer_state(
    named: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The parameters, and their moments and step counts, by name."""
    tensors = {}
    for name, parameter in named.items():
        tensors[f"parameter.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam.{key}.{name}"] = value
    return tensors


@torch.no_grad()
def load_optimizer_state(
    named: dict[str, Tensor], optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Restore what `optimizer_state` returned, before or after any number of steps."""
    for name, parameter in named.items():
        parameter.copy_(tensors[f"parameter.{name}"])
        state = optimizer.state[parameter]
        state.clear()
        for key in ("step", "exp_avg", "exp_avg_sq"):
            saved = tensors.get(f"adam.{key}.{name}")
            if saved is not None:
                state[key] = saved.to(parameter.device, copy=True)
