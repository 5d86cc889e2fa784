"""A contrastive loss over the goals of all ranks, with exactly the gradient of one large batch.

Rank r owns B of the N = W B rows. Its loss compares these rows with all N goals, and the mean of
the ranks' losses is that of the large batch. A goal therefore gets gradients from the losses of all
ranks, and these are summed. Treating the others' goals as constants instead is wrong by a tenth.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_crl.distributed.ranks import Ranks


class Gathered(NamedTuple):
    """Representations of this rank's rows and of all rows, as leaves of autograd."""

    phi_BR: Tensor
    psi_NR: Tensor
    phi_NR: Tensor | None
    """None unless the sums over rows need them."""
    whole_N: Tensor | None
    """Which rows count, of all ranks; None if all do."""
    place_N: Tensor | None
    """int64: the place of each goal, of all ranks; None if goals have none."""
    own: slice
    """The place of this rank's rows among all."""


def loss_over_all_ranks(
    phi_BR: Tensor,
    psi_BR: Tensor,
    whole_B: Tensor | None,
    place_B: Tensor | None,
    loss_of: Callable[[Gathered], tuple[Tensor, dict[str, Tensor]]],
    *,
    columns: bool,
    ranks: Ranks,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `loss_of` returns; the mean over ranks of its gradients is that of the large batch.

    The gradients are computed at once, and not when autograd comes by: the exchanges with the other
    ranks divide CUDA graphs, which is possible in the main thread only.
    """
    batch, size = phi_BR.shape
    own = slice(ranks.rank * batch, (ranks.rank + 1) * batch)
    parts = [psi_BR, *([phi_BR] if columns else [])]
    parts += [
        each_B[:, None].to(phi_BR.dtype) for each_B in (whole_B, place_B) if each_B is not None
    ]
    all_NX = ranks.gather(torch.cat([part.detach() for part in parts], dim=1))
    leaves = [phi_BR.detach().requires_grad_()]
    leaves += [
        all_NX[:, size * k : size * (k + 1)].contiguous().requires_grad_()
        for k in range(1 + columns)
    ]
    whole_N = all_NX[:, size * (1 + columns)] if whole_B is not None else None
    # Whole numbers below 2^24 are exact in fp32.
    place_N = all_NX[:, -1].long() if place_B is not None else None
    with torch.enable_grad():
        loss, metrics = loss_of(
            Gathered(
                phi_BR=leaves[0],
                psi_NR=leaves[1],
                phi_NR=leaves[2] if columns else None,
                whole_N=whole_N,
                place_N=place_N,
                own=own,
            )
        )
        of_own_BR, *of_all = torch.autograd.grad(loss, leaves)
    summed_NX = ranks.sum_(torch.cat(of_all, dim=1))
    dpsi_BR = summed_NX[own, :size]
    dphi_BR = of_own_BR + summed_NX[own, size:] if columns else of_own_BR
    with_gradients: Callable[..., Tensor] = _Known.apply
    return with_gradients(phi_BR, psi_BR, loss.detach(), dphi_BR, dpsi_BR), metrics


class _Known(torch.autograd.Function):
    """A number whose gradients by two tensors are known."""

    @staticmethod
    def forward(
        ctx: Any, _x: Tensor, _y: Tensor, value: Tensor, of_x: Tensor, of_y: Tensor
    ) -> Tensor:
        ctx.save_for_backward(of_x, of_y)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_y = ctx.saved_tensors
        return upstream * of_x, upstream * of_y, None, None, None
