"""A step of Adam for one CPU core, as one loop over every parameter."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_crl.kernels.cpu import array, loops


@loops
def _step(parameters, gradients, means, squares, steps, rates, beta1, beta2, epsilon):
    for k in range(len(parameters)):
        parameter, gradient, mean, square = parameters[k], gradients[k], means[k], squares[k]
        dtype = parameter.dtype.type
        steps[k][0] += np.float32(1.0)
        count = np.float64(steps[k][0])
        rate = dtype(rates[k] / (1.0 - beta1**count))
        root = dtype(1.0 / np.sqrt(1.0 - beta2**count))
        share, keep, rest = dtype(1.0 - beta1), dtype(beta2), dtype(1.0 - beta2)
        for i in range(len(parameter)):
            mean[i] += (gradient[i] - mean[i]) * share
            square[i] = square[i] * keep + gradient[i] * gradient[i] * rest
            parameter[i] -= rate * mean[i] / (np.sqrt(square[i]) * root + dtype(epsilon))


class Steps:
    """Takes the steps of a torch.optim.Adam, on its own parameters and moments.

    Every parameter gets a gradient in memory that stays where it is, to be filled before each step.
    """

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        """The state of a parameter that had no step yet begins here."""
        self._groups = optimizer.param_groups
        self._parameters = [x for group in self._groups for x in group["params"]]
        for x in self._parameters:
            x.grad = torch.zeros_like(x)
            if not optimizer.state[x]:
                optimizer.state[x] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(x),
                    "exp_avg_sq": torch.zeros_like(x),
                }
        states = [optimizer.state[x] for x in self._parameters]
        self._arrays = (
            _flat(self._parameters),
            _flat(map(gradient, self._parameters)),
            *(_flat(state[name] for state in states) for name in ("exp_avg", "exp_avg_sq", "step")),
        )
        self._places = [x.data_ptr() for x in self._parameters]
        self._rates = np.empty(len(self._parameters))
        self._numbers = *optimizer.defaults["betas"], optimizer.defaults["eps"]

    @property
    def are_in_place(self) -> bool:
        """Whether all parameters are where they were at first."""
        return self._places == [x.data_ptr() for x in self._parameters]

    def take(self) -> None:
        """Change every parameter, its moments and its number of steps in place."""
        start = 0
        for group in self._groups:
            end = start + len(group["params"])
            self._rates[start:end] = group["lr"]
            start = end
        _step(*self._arrays, self._rates, *self._numbers)


def gradient(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad


def _flat(tensors: Iterable[Tensor]) -> tuple[np.ndarray[Any, Any], ...]:
    """The numbers of each tensor as an array with one axis, without a copy."""
    return tuple(array(each).reshape(-1) for each in tensors)
