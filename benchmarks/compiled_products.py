"""The products of an update's layers, by what its compiled kernels multiply with."""

from collections.abc import Callable
from typing import Any

import torch
from numba import njit
from torch import Tensor

from torch_crl.kernels.cpu import array
from torch_crl.kernels.matmul.cpu import product


@njit  # type: ignore[untyped-decorator]
def _multiply(x: Any, weight: Any, of_rows: Any, of_weight: Any) -> None:
    for k in range(len(x)):
        product(x[k], False, weight[k], True, of_rows)
        product(x[k], False, weight[k], False, of_rows)
        product(x[k], True, x[k], False, of_weight)


def products_of_layers(x_LBD: Tensor, weight_LDD: Tensor) -> Callable[[], None]:
    """What computes, for each layer, the product of its forward pass and those of the gradients."""
    operands = x_LBD, weight_LDD, torch.empty_like(x_LBD[0]), torch.empty_like(weight_LDD[0])
    arrays = [array(x) for x in operands]
    return lambda: _multiply(*arrays)
