"""16-bit copies of the weights of towers, kept beside them from update to update."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rounded_weights(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """T weights [L, D, D] rounded, in one tensor [T, L, D, D]."""
    rounded_TLDD = weights[0].new_empty(len(weights), *weights[0].shape, dtype=dtype)
    _round(weights, rounded_TLDD)
    return rounded_TLDD


@torch.no_grad()
def _round(weights: Sequence[Tensor], rounded_TLDD: Tensor) -> None:
    # One kernel for all.
    torch._foreach_copy_(list(rounded_TLDD.unbind(0)), list(weights))


class RoundedWeights:
    """The weights [L, D, D] of T towers of equal sizes, rounded, in one tensor [T, L, D, D].

    Whoever changes the weights writes the copies too, as `torch_crl.kernels.adam` does. What torch
    writes into them in place is noticed by the next `of`, but for what leaves no mark: its fused
    optimisers, `.data`, NumPy, and CUDA graphs; call `round` after these. A copy of this object
    holds nothing, since it would belong to copies of the weights that nobody follows.
    """

    def __init__(self, weights: Sequence[Tensor] = (), dtype: torch.dtype = torch.float16) -> None:
        """The weights must stay where they are."""
        self._weights = list(weights)
        self._versions = self._present()
        self._rounded_TLDD = torch.empty(0)
        if weights:
            self._rounded_TLDD = rounded_weights(self._weights, dtype)

    def __reduce__(self) -> tuple[type["RoundedWeights"], tuple[()]]:
        return RoundedWeights, ()

    def of(self, weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
        """Copies of some of these weights, if they follow one another and have this type."""
        places = [self._place(weight) for weight in weights]
        first = places[0]
        if (
            first is None
            or dtype != self._rounded_TLDD.dtype
            or places != list(range(first, first + len(places)))
        ):
            return None
        if self._present() != self._versions:
            self.round()
        return self._rounded_TLDD[first : first + len(places)]

    def round(self) -> None:
        """Round all weights anew."""
        if self._weights:
            # All together: a backward pass may not find its operands written into meanwhile.
            _round(self._weights, self._rounded_TLDD)
        self._versions = self._present()

    def copy_of(self, weight: Tensor) -> Tensor | None:
        """The copy [L, D, D] of a weight, for whoever changes that; None if there is none."""
        place = self._place(weight)
        return None if place is None else self._rounded_TLDD[place]

    def _present(self) -> list[int]:
        return [weight._version for weight in self._weights]

    def _place(self, weight: Tensor) -> int | None:
        return next((k for k, each in enumerate(self._weights) if each is weight), None)
