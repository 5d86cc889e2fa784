"""`pair_scores` for one CPU core: BLAS products, and loops over the rows of energies.

B pairs, R representation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_crl.kernels.cpu import array, entry, exp_minus, loops, products, require_cpu, room
from torch_crl.kernels.infonce.reference import EPSILON, LEFT_OUT, PairScores
from torch_crl.kernels.matmul.cpu import product

DISTANCES = {"dot": 0, "l2": 1, "norm": 2}
"""Name of an energy to how it follows from the products: as it is, minus the squared distance,
minus its root."""


@loops
def _distances(energy, x_squares, y_squares, rooted):
    """Energies from the products x y^T, in place."""
    batch = len(energy)
    zero, two = energy.dtype.type(0.0), energy.dtype.type(2.0)
    epsilon = energy.dtype.type(EPSILON)
    for i in range(batch):
        for j in range(batch):
            square = x_squares[i] + y_squares[j] - two * energy[i, j]
            # A condition, unlike max, leaves a NaN as it is.
            square = zero if square < zero else square
            energy[i, j] = -np.sqrt(square + epsilon) if rooted else -square


@loops
def _squares(x, out):
    for i in range(len(x)):
        total = x.dtype.type(0.0)
        for j in range(x.shape[1]):
            total += x[i, j] * x[i, j]
        out[i] = total


@loops
def _reduce(energy, mask, masked, columns, softplus, scores):
    """scores [6, B] in the order of `PairScores`."""
    batch = len(energy)
    zero = energy.dtype.type(0.0)
    diagonal, row_logsumexp, column_logsumexp = scores[0], scores[1], scores[2]
    row_softplus, row_rival, row_sum = scores[3], scores[4], scores[5]
    # In a loop of its own: a processor goes on with other rows while comparisons wait for another.
    for i in range(batch):
        row = energy[i]
        diagonal[i] = row[i]
        row[i] = -np.inf
        rival = row[i]
        for j in range(batch):
            rival = max(rival, row[j])
        row[i] = diagonal[i]
        row_rival[i] = rival
    for i in range(batch):
        row = energy[i]
        highest = max(row_rival[i], row[i])
        exponentials, total = zero, zero
        for j in range(batch):
            exponentials += exp_minus(highest - row[j])
            total += row[j]
        row_sum[i] = total
        row_logsumexp[i] = highest + np.log(exponentials)
        if softplus:
            total = zero
            for j in range(batch):
                total += max(row[j], zero) + np.log1p(exp_minus(abs(row[j])))
            row_softplus[i] = total
    if columns:
        _reduce_columns(energy, mask, masked, column_logsumexp)


@loops
def _reduce_columns(energy, mask, masked, column_logsumexp):
    batch = len(energy)
    highest = np.full(batch, energy.dtype.type(LEFT_OUT), energy.dtype)
    exponentials = np.zeros(batch, energy.dtype)
    for i in range(batch):
        if not (masked and mask[i] == 0):
            for j in range(batch):
                highest[j] = max(highest[j], energy[i, j])
    for i in range(batch):
        if not (masked and mask[i] == 0):
            for j in range(batch):
                exponentials[j] += exp_minus(highest[j] - energy[i, j])
    for j in range(batch):
        column_logsumexp[j] = highest[j] + np.log(exponentials[j])


@loops
def _leave_out(energy, group, row_sum):
    """Sums of the rows, and then no pairs within a group but the true ones."""
    for i in range(len(energy)):
        total = energy.dtype.type(0.0)
        for j in range(len(energy)):
            total += energy[i, j]
        row_sum[i] = total
        own = energy[i, i]
        for j in range(len(energy)):
            if group[j] == group[i]:
                energy[i, j] = LEFT_OUT
        energy[i, i] = own


@entry
@products
def forward_scores(x, y, kind, mask, masked, group, grouped, columns, softplus, energy, scores):
    """Energies [B, B] and scores [6, B] of centred representations."""
    product(x, False, y, True, energy)
    if kind:
        x_squares, y_squares = np.empty(len(x), x.dtype), np.empty(len(x), x.dtype)
        _squares(x, x_squares)
        _squares(y, y_squares)
        _distances(energy, x_squares, y_squares, kind == 2)
    row_sum = np.empty(len(x), x.dtype)
    if grouped:
        _leave_out(energy, group, row_sum)
    _reduce(energy, mask, masked, columns, softplus, scores)
    if grouped:
        for i in range(len(row_sum)):
            scores[5, i] = row_sum[i]


@loops
def _weights(
    energy, scores, kind, mask, masked, columns, softplus, upstream, weight, of_rows, of_columns
):
    """weight gets the gradient of the products [B, B]; of_rows and of_columns get its sums, which
    are those of the squares where energies are distances, but for their sign.
    """
    batch = len(energy)
    zero, one = energy.dtype.type(0.0), energy.dtype.type(1.0)
    for j in range(batch):
        of_columns[j] = zero
    for i in range(batch):
        row, to = energy[i], weight[i]
        of_row, logsumexp = upstream[1, i], scores[1, i]
        for j in range(batch):
            to[j] = of_row * exp_minus(logsumexp - row[j])
        if columns and not (masked and mask[i] == 0):
            for j in range(batch):
                to[j] += upstream[2, j] * exp_minus(scores[2, j] - row[j])
        if softplus:
            for j in range(batch):
                to[j] += upstream[3, i] / (one + exp_minus(row[j]))
        to[i] += upstream[0, i]
        if kind == 2:
            # The gradient of minus the root, times minus two, is that of the products.
            for j in range(batch):
                to[j] = -to[j] / row[j]
        elif kind == 1:
            for j in range(batch):
                to[j] += to[j]
        if kind:
            total = zero
            for j in range(batch):
                total += to[j]
                of_columns[j] += to[j]
            of_rows[i] = total


@entry
@products
def backward_scores(x, y, kind, mask, masked, columns, softplus, energy, scores, upstream, dx, dy):
    """Gradients [B, R] of the representations from those of the scores [4, B]."""
    weight = room(len(energy), len(energy), energy)
    of_rows, of_columns = np.empty(len(x), x.dtype), np.empty(len(x), x.dtype)
    _weights(
        energy, scores, kind, mask, masked, columns, softplus, upstream, weight, of_rows, of_columns
    )
    product(weight, False, y, False, dx)
    product(weight, True, x, False, dy)
    if kind:
        for i in range(len(x)):
            for j in range(x.shape[1]):
                dx[i, j] -= of_rows[i] * x[i, j]
                dy[i, j] -= of_columns[i] * y[i, j]


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        phi_BR: Tensor,
        psi_BR: Tensor,
        row_mask_B: Tensor | None,
        group_B: Tensor | None,
        energy: str,
        columns: bool,
        softplus: bool,
    ) -> tuple[Tensor, ...]:
        if energy != "dot":
            # See the reference for why distances are centred.
            offset_R = psi_BR.mean(0)
            phi_BR, psi_BR = phi_BR - offset_R, psi_BR - offset_R
        x, y = array(phi_BR.contiguous()), array(psi_BR.contiguous())
        energies = array(phi_BR.new_empty(len(x), len(x)))
        scores_6B = phi_BR.new_empty(6, len(x))
        scores = array(scores_6B)
        mask = scores[0] if row_mask_B is None else array(row_mask_B.contiguous())
        group = np.zeros(0, np.int64) if group_B is None else array(group_B.contiguous())
        kind, masked = DISTANCES[energy], (mask, row_mask_B is not None)
        grouped = group, group_B is not None
        forward_scores(x, y, kind, *masked, *grouped, columns, softplus, energies, scores)
        options = kind, *masked, columns, softplus
        ctx.kept, ctx.dtype = (x, y, *options, energies, scores), phi_BR.dtype
        diagonal, row, column, softplus_B, rival, total = scores_6B.unbind(0)
        ctx.mark_non_differentiable(rival, total)
        ctx.set_materialize_grads(False)
        return diagonal, row, column, softplus_B, rival, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *_ = ctx.kept
        upstream_4B = np.zeros((4, len(x)), x.dtype)
        for row, gradient_B in zip(upstream_4B, upstream[:4], strict=True):
            if gradient_B is not None:
                row[:] = array(gradient_B)
        dphi_BR, dpsi_BR = torch.empty(2, *x.shape, dtype=ctx.dtype)
        backward_scores(*ctx.kept, upstream_4B, array(dphi_BR), array(dpsi_BR))
        return dphi_BR, dpsi_BR, None, None, None, None, None


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
    """All scores, those that were not asked for without meaning, of each energy but `cosine`.

    C is B, and `first` therefore 0. Raises ValueError for tensors of other devices and dtypes.
    """
    assert first == 0
    masks = [] if row_mask_B is None else [row_mask_B]
    require_cpu("pair_scores", phi_BR, psi_CR, *masks)
    apply: Callable[..., tuple[Tensor, ...]] = _PairScores.apply
    found = apply(phi_BR, psi_CR, row_mask_B, group_C, energy, columns, softplus)
    diagonal_B, row_B, column_B, softplus_B, rival_B, sum_B = found
    return PairScores(diagonal_B, row_B, column_B, softplus_B, rival_B, sum_B, len(psi_CR))
