"""Adam over named tensors, its state for checkpoints, and how large its steps are."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_crl.distributed.ranks import ALONE, Ranks
from torch_crl.kernels.tower.rounded import RoundedWeights

MOST_ELEMENTS = 4_000_000
"""Up to so many parameters our kernel takes the step, also where it rounds nothing. On an H100 it
needs 15 us for 0.9 million, and torch's 35; for 12.6 million it needs 155, and torch's 129."""


def adam(
    groups: dict[float, list[Tensor]],
    device: torch.device,
    implementation: str,
    rounded: Sequence[RoundedWeights] = (),
) -> torch.optim.Adam:
    """Adam on tensors grouped by their learning rate.

    With the implementation "triton", one kernel of ours steps all groups of small networks in fp32,
    and of those with rounded weights, which it keeps; see `torch_crl.kernels.adam`.
    """
    of_rates = [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
    # Keeps the step count on the device, where a CUDA graph can increment it.
    options: dict[str, Any] = {"fused": True, "capturable": device.type == "cuda"}
    trained = [x for parameters in groups.values() for x in parameters]
    is_fp32 = all(x.dtype == torch.float32 for x in trained)
    is_small = sum(x.numel() for x in trained) <= MOST_ELEMENTS
    if implementation == "triton" and is_fp32 and (is_small or rounded):
        return _TritonAdam(of_rates, rounded, options)
    if rounded:
        raise ValueError("rounded weights are kept for networks in fp32 on Triton kernels")
    return _Adam(of_rates, **options)


class _Adam(torch.optim.Adam):
    """torch.optim.Adam without the wrappers that talk to torch's compiler.

    They import it when an optimiser is made or used, which takes a second or two.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(torch.optim.Adam.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        inspect.unwrap(torch.optim.Adam.zero_grad)(self, set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return inspect.unwrap(torch.optim.Adam.step)(self, closure)


class _TritonAdam(_Adam):
    """The same step and state, for fp32; it writes the rounded weights too."""

    _rounded: Sequence[RoundedWeights] = ()
    """A copy of an optimiser has none, since the weights that it steps have none."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        rounded: Sequence[RoundedWeights],
        options: dict[str, Any],
    ) -> None:
        super().__init__(groups, **options)
        self._rounded = rounded

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        del closure
        # Imported here, so that Triton is needed only if its kernels are requested.
        from torch_crl.kernels.adam import kernel

        trained = [
            (parameter, float(group["lr"]))
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        states = [self._state_of(parameter) for parameter, _ in trained]
        kernel.step(
            [parameter for parameter, _ in trained],
            [parameter.grad.contiguous() for parameter, _ in trained],
            *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")),
            copies=[self._copy_of(parameter) for parameter, _ in trained],
            rates=[rate for _, rate in trained],
            betas=self.defaults["betas"],
            epsilon=self.defaults["eps"],
        )

    def round_anew(self) -> None:
        """Round what was written into the weights from outside."""
        for rounded in self._rounded:
            rounded.round()

    def _copy_of(self, parameter: Tensor) -> Tensor | None:
        copies = (rounded.copy_of(parameter) for rounded in self._rounded)
        return next((copy for copy in copies if copy is not None), None)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class Descent:
    """Steps of an optimiser down the sum of some losses; with other ranks, down its mean over all.

    These need their gradients in one piece, so every `.grad` is then a view of one buffer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, ranks: Ranks = ALONE) -> None:
        """The parameters of the optimiser must stay where they are."""
        self.optimizer = optimizer
        self._ranks = ranks
        self._parameters = [each for group in optimizer.param_groups for each in group["params"]]
        # Made once for a GPU, where autograd would fill a tensor with it at every update. A CPU is
        # better off without: to compare its shape, autograd imports sympy.
        device = self._parameters[0].device
        self._one = torch.ones((), device=device) if device.type == "cuda" else None
        self._flat = None if ranks.is_alone else _flat_gradients(self._parameters)

    def step(self, *losses: Tensor) -> None:
        """Minimise the sum of the losses."""
        if self._flat is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._flat.zero_()
        one = self._one
        ones = None if one is None else [one.to(loss.dtype) for loss in losses]
        torch.autograd.backward(losses, ones)
        if self._flat is not None:
            self._ranks.sum_(self._flat).div_(self._ranks.size)
        self.optimizer.step()


def _flat_gradients(parameters: list[Tensor]) -> Tensor:
    """A buffer of zeros of which every parameter's gradient is now a view."""
    # Each begins at a multiple of 128 bytes, as kernels like it.
    sizes = [-(-each.numel() // 32) * 32 for each in parameters]
    flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = part[: parameter.numel()].view(parameter.shape)
    return flat


def optimizer_state(
    named: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The parameters, and their Adam moments and step counts, by name."""
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
    if isinstance(optimizer, _TritonAdam):
        # A CUDA graph that was captured before would not notice.
        optimizer.round_anew()


class UpdateSizes:
    """Measures one update of some networks: create it before the update, then call `measure`."""

    def __init__(self, networks: Mapping[str, list[Tensor]]) -> None:
        """Copy the parameters of each network, by name; the update will change them in place."""
        self._networks = networks
        self._before = {
            name: [parameter.detach().clone() for parameter in parameters]
            for name, parameters in networks.items()
        }

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """`gradient_norm_NAME` and `update_size_NAME` of each network, 0-D on the device.

        The update size is the norm of the change of the parameters, divided by the norm of the
        parameters before the update.
        """
        sizes = {}
        for name, parameters in self._networks.items():
            before = self._before[name]
            # Computed one at a time, since all together they are as large as the networks.
            changes = (new - old for new, old in zip(parameters, before, strict=True))
            sizes[f"gradient_norm_{name}"] = gradient_norm(parameters)
            sizes[f"update_size_{name}"] = _norm(changes) / _norm(before)
        return sizes


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of the gradients of all these parameters together, 0-D."""
    return _norm(parameter.grad for parameter in parameters if parameter.grad is not None)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    # In float64, since the square of a float32 gradient may overflow float32.
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    norm: Tensor = torch.stack(norms).norm()
    return norm
