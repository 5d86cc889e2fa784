"""The definition of `pair_scores` in plain torch: energies of all pairs, and their reductions.

B rows: (state, action) pairs. C columns: goals. Row i belongs to column first + i; in one process
C is B, `first` is 0, and the true pairs are the diagonal. R representation. Source: arXiv
2408.11052 (energies).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Added under the root of a distance or norm, so that the gradient at zero is zero and not NaN.
EPSILON = 1e-6

# Energy of the pairs that sums leave out. Finite, so that a column without any other
# pair has a gradient that is not NaN.
LEFT_OUT = -1e30


class Energy(NamedTuple):
    """One similarity, for matching rows and for all pairs of rows."""

    paired: Callable[[Tensor, Tensor], Tensor]
    """(phi [B, R], psi [B, R]) to [B]."""
    pairwise: Callable[[Tensor, Tensor], Tensor]
    """(phi [B, R], psi [C, R]) to [B, C], without a [B, C, R] tensor."""


class PairScores(NamedTuple):
    """Reductions of the energies E_BC of all pairs: all that the losses and their metrics need."""

    diagonal_B: Tensor
    """The energies of the true pairs."""
    row_logsumexp_B: Tensor
    """log sum_j exp E_ij."""
    column_logsumexp_B: Tensor | None
    """log sum_i exp E_ij for each true column, over the rows in the mask; None unless requested."""
    row_softplus_B: Tensor | None
    """sum_j log(1 + exp E_ij); None unless requested."""
    row_rival_B: Tensor
    """max of E_ij over all columns but the true one, -inf when there is no other. No gradient."""
    row_sum_B: Tensor
    """sum_j E_ij, also of a row's group. Carries no gradient."""
    goals: int
    """C, the number of goals that each row is compared with."""


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
    energies_BC: Tensor,
    *,
    columns: bool,
    softplus: bool,
    row_mask_B: Tensor | None = None,
    group_C: Tensor | None = None,
    first: int = 0,
) -> PairScores:
    """The scores of a given matrix of energies; `columns` needs one that is square."""
    with torch.no_grad():
        row_sum_B = energies_BC.sum(1)
    if group_C is not None:
        energies_BC = energies_BC.masked_fill(
            same_group(group_C, len(energies_BC), first), LEFT_OUT
        )
    with torch.no_grad():
        rivals_BC = energies_BC.clone()
        rivals_BC.diagonal(first).fill_(-torch.inf)
        row_rival_B = rivals_BC.amax(1)
    return PairScores(
        # Rows have their columns in order, and there may be more of these than of rows.
        diagonal_B=energies_BC.diagonal(first)[: len(energies_BC)],
        row_logsumexp_B=energies_BC.logsumexp(1),
        column_logsumexp_B=logsumexp_of_columns(energies_BC, row_mask_B) if columns else None,
        # Not functional.softplus, which rounds to the identity above 20.
        row_softplus_B=-functional.logsigmoid(-energies_BC).sum(1) if softplus else None,
        row_rival_B=row_rival_B,
        row_sum_B=row_sum_B,
        goals=energies_BC.shape[1],
    )


def same_group(group_C: Tensor, rows: int, first: int) -> Tensor:
    """bool [B, C]: the pairs of a row and a column of its group that is not the row's own."""
    same_BC = group_C[first : first + rows, None] == group_C
    same_BC.diagonal(first).fill_(False)
    return same_BC


def logsumexp_of_columns(
    energies_BC: Tensor,
    row_mask_B: Tensor | None,
    group_B: Tensor | None = None,
    *,
    first: int = 0,
) -> Tensor:
    """log sum_i exp E_ij for each column [C], over the rows where the mask is not 0.

    `group_B` are the groups of the rows, of which column j has that of row first + j; see
    `pair_scores`.
    """
    if group_B is not None:
        same_CB = same_group(group_B, energies_BC.shape[1], first)
        energies_BC = energies_BC.masked_fill(same_CB.T, LEFT_OUT)
    if row_mask_B is not None:
        energies_BC = energies_BC.masked_fill(row_mask_B[:, None] == 0, LEFT_OUT)
    return energies_BC.logsumexp(0)


def pair_scores(
    phi_BR: Tensor,
    psi_CR: Tensor,
    *,
    energy: str,
    columns: bool,
    softplus: bool,
    row_mask_B: Tensor | None,
    group_C: Tensor | None = None,
    first: int = 0,
) -> PairScores:
    """Scores of all pairs of rows, computed from the B x C matrix of their energies."""
    energies_BC = ENERGIES[energy].pairwise(phi_BR, psi_CR)
    return reduce_energies(
        energies_BC,
        columns=columns,
        softplus=softplus,
        row_mask_B=row_mask_B,
        group_C=group_C,
        first=first,
    )
