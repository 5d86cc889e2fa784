"""A step of Adam for one CPU core, as one loop over every parameter."""

import numpy as np
import torch
from torch import Tensor

from torch_crl.kernels.cpu import array, entry, loops


@entry
@loops
def _step(parameters, gradients, means, squares, steps, rates, beta1, beta2, epsilon):
    start = 0
    for k in range(len(parameters)):
        parameter = parameters[k]
        dtype, end = parameter.dtype.type, start + len(parameter)
        gradient, mean, square = gradients[start:end], means[start:end], squares[start:end]
        steps[k] += np.float32(1.0)
        count = np.float64(steps[k])
        rate = dtype(rates[k] / (1.0 - beta1**count))
        root = dtype(1.0 / np.sqrt(1.0 - beta2**count))
        share, keep, rest = dtype(1.0 - beta1), dtype(beta2), dtype(1.0 - beta2)
        for i in range(len(parameter)):
            mean[i] += (gradient[i] - mean[i]) * share
            square[i] = square[i] * keep + gradient[i] * gradient[i] * rest
            parameter[i] -= rate * mean[i] / (np.sqrt(square[i]) * root + dtype(epsilon))
        start = end


class Steps:
    """Takes the steps of a torch.optim.Adam, on its own parameters and moments.

    Every parameter gets a gradient in memory that stays where it is, to be filled before each step.
    """

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        """The state of a parameter that had no step yet begins here."""
        self._groups = optimizer.param_groups
        self._parameters = [x for group in self._groups for x in group["params"]]
        sizes = [x.numel() for x in self._parameters]
        # One tensor for all, since each array costs time when it is given to compiled code.
        flat_3P = self._parameters[0].new_zeros(3, sum(sizes))
        steps = torch.zeros(len(sizes))
        for x, step, *parts in zip(
            self._parameters, steps, *(each.split(sizes) for each in flat_3P), strict=True
        ):
            x.grad, *moments = (part.view_as(x) for part in parts)
            views = dict(zip(("step", "exp_avg", "exp_avg_sq"), (step, *moments), strict=True))
            for name, value in optimizer.state[x].items():
                views[name].copy_(value)
            optimizer.state[x] = views
        self._arrays = (
            tuple(array(x).reshape(-1) for x in self._parameters),
            *map(array, (*flat_3P, steps)),
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
