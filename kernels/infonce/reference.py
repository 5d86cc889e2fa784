"""The definition of `pair_scores` in plain torch: energies of all pairs, and their reductions.

B pairs: row i is a (state, action), column j a goal, the diagonal holds the true pairs.
R representation. Source: arXiv 2408.11052 (energies).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Added under the root of a distance or norm, so that the gradient at zero is zero and not NaN.
EPSILON = 1e-6

# Energy of the pairs that the columns' sums leave out. Finite, so that a column without any other
# pair has a gradient that is not NaN.
LEFT_OUT = -1e30


class Energy(NamedTuple):
    """One similarity, for matching rows and for all pairs of rows."""

    paired: Callable[[Tensor, Tensor], Tensor]
    """(phi [B, R], psi [B, R]) to [B]."""
    pairwise: Callable[[Tensor, Tensor], Tensor]
    """(phi [B, R], psi [C, R]) to [B, C], without a [B, C, R] tensor."""


class PairScores(NamedTuple):
    """Reductions of the energies E_BB of all pairs: all that the losses and their metrics need."""

    diagonal_B: Tensor
    """E_ii, the energies of the true pairs."""
    row_logsumexp_B: Tensor
    """log sum_j exp E_ij."""
    column_logsumexp_B: Tensor | None
    """log sum_i exp E_ij for each j, over the rows in the mask; None unless requested."""
    row_softplus_B: Tensor | None
    """sum_j log(1 + exp E_ij); None unless requested."""
    row_rival_B: Tensor
    """max over j != i of E_ij, -inf when B is 1. Carries no gradient."""
    row_sum_B: Tensor
    """sum_j E_ij. Carries no gradient."""


def _squared_distance_matrix(phi_BR: Tensor, psi_BR: Tensor) -> Tensor:
    # |x|^2 + |y|^2 - 2 x.y needs only one matmul, but cancels if x and y are far from the origin.
    # Distances do not change under a shift, so the common offset is subtracted first.
    offset_R = psi_BR.mean(0).detach()
    x_BR, y_BR = phi_BR - offset_R, psi_BR - offset_R
    squares_B1 = x_BR.square().sum(-1, keepdim=True)
    squares_1B = y_BR.square().sum(-1).unsqueeze(0)
    return torch.addmm(squares_B1 + squares_1B, x_BR, y_BR.T, alpha=-2.0).clamp_min(0.0)


def unit_rows(x_BR: Tensor) -> Tensor:
    """Rows divided by their norm; a row of zeros stays zero, with a finite gradient."""
    return x_BR / (x_BR.square().sum(-1, keepdim=True) + EPSILON).sqrt()


ENERGIES: dict[str, Energy] = {
    "norm": Energy(
        paired=lambda phi, psi: -((phi - psi).square().sum(-1) + EPSILON).sqrt(),
        pairwise=lambda phi, psi: -(_squared_distance_matrix(phi, psi) + EPSILON).sqrt(),
    ),
    "l2": Energy(
        paired=lambda phi, psi: -(phi - psi).square().sum(-1),
        pairwise=lambda phi, psi: -_squared_distance_matrix(phi, psi),
    ),
    "dot": Energy(
        paired=lambda phi, psi: (phi * psi).sum(-1),
        pairwise=lambda phi, psi: phi @ psi.T,
    ),
    "cosine": Energy(
        paired=lambda phi, psi: (unit_rows(phi) * unit_rows(psi)).sum(-1),
        pairwise=lambda phi, psi: unit_rows(phi) @ unit_rows(psi).T,
    ),
}


def reduce_energies(
    energies_BB: Tensor, *, columns: bool, softplus: bool, row_mask_B: Tensor | None = None
) -> PairScores:
    """The scores of a given matrix of energies."""
    of_columns_BB = energies_BB
    if columns and row_mask_B is not None:
        of_columns_BB = energies_BB.masked_fill(row_mask_B[:, None] == 0, LEFT_OUT)
    with torch.no_grad():
        rivals_BB = energies_BB.clone().fill_diagonal_(-torch.inf)
        row_rival_B, row_sum_B = rivals_BB.amax(1), energies_BB.sum(1)
    return PairScores(
        diagonal_B=energies_BB.diagonal(),
        row_logsumexp_B=energies_BB.logsumexp(1),
        column_logsumexp_B=of_columns_BB.logsumexp(0) if columns else None,
        # Not functional.softplus, which rounds to the identity above 20.
        row_softplus_B=-functional.logsigmoid(-energies_BB).sum(1) if softplus else None,
        row_rival_B=row_rival_B,
        row_sum_B=row_sum_B,
    )


def pair_scores(
    phi_BR: Tensor,
    psi_BR: Tensor,
    *,
    energy: str,
    columns: bool,
    softplus: bool,
    row_mask_B: Tensor | None,
) -> PairScores:
    """Scores of all pairs of rows, computed from the B x B matrix of their energies."""
    energies_BB = ENERGIES[energy].pairwise(phi_BR, psi_BR)
    return reduce_energies(energies_BB, columns=columns, softplus=softplus, row_mask_B=row_mask_B)
