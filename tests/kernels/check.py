"""What the tests of all kernels share. fp64 results are the truth."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def error(x: Tensor, truth: Tensor) -> float:
    """Relative to the size of the whole tensor."""
    assert x.shape == truth.shape
    return float((x.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-30))


def assert_as_exact(
    results: dict[str, Tensor],
    plain: dict[str, Tensor],
    truth: dict[str, Tensor],
    *,
    floor: float = 2e-6,
) -> None:
    """A kernel may be twice as far from the truth as plain torch in the same precision."""
    for name, value in results.items():
        allowed = 2 * error(plain[name], truth[name]) + floor
        assert value.isfinite().all(), name
        assert error(value, truth[name]) <= allowed, (name, error(value, truth[name]), allowed)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is asked for without being filled holds NaN, so what a kernel forgets shows."""

    def nan_filled(make: Any) -> Any:
        def made(*args: Any, **options: Any) -> Tensor:
            tensor: Tensor = make(*args, **options)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", nan_filled(torch.empty))
        patch.setattr(torch, "empty_like", nan_filled(torch.empty_like))
        patch.setattr(Tensor, "new_empty", nan_filled(Tensor.new_empty))
        yield
