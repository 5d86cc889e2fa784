"""`pair_scores` on the Triton kernels, as one op with a gradient.

B rows of phi, C rows of psi, R representation.
"""

from typing import Any, cast

import torch
import triton
from torch import Tensor

from torch_crl.kernels.infonce.kernel import (
    REGISTERS,
    choose_launch,
    infonce_bwd_kernel,
    infonce_fwd_kernel,
    infonce_join_kernel,
    split,
)
from torch_crl.kernels.infonce.reference import PairScores

# Rows of the batch whose scores of all splits a program joins.
JOINED = 128
_INTERPRETED = triton.knobs.runtime.interpret

# In the order of PairScores, then the offset; scores that were not requested are empty tensors.
_Scores = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def infonce_fwd(
    phi_BR: Tensor,
    psi_CR: Tensor,
    row_mask_B: Tensor | None,
    group_C: Tensor | None,
    first: int,
    energy: str,
    columns: bool,
    softplus: bool,
) -> _Scores:
    """Launch the forward kernels; returns the scores [B] of phi [B, R] and psi [C, R].

    The last tensor is the mean of psi, for distances only. See the reference for why these are
    centred.
    """
    phi_BR, psi_CR = phi_BR.contiguous(), psi_CR.contiguous()
    (batch, size), goals = phi_BR.shape, len(psi_CR)
    launch = choose_launch(size)
    blocks = triton.cdiv(batch, launch.BM) * (1 + columns)
    splits, chunk = split(goals, launch, blocks, phi_BR.device)
    asked = (1, 1, columns, softplus, 1, 1)
    parts = [phi_BR.new_empty(splits * batch * n) for n in asked]
    offset_R = phi_BR.new_empty(0) if energy == "dot" else psi_CR.mean(0)
    with torch.cuda.device_of(phi_BR):
        infonce_fwd_kernel[(blocks, splits)](
            phi_BR, psi_CR, offset_R, phi_BR if row_mask_B is None else row_mask_B,
            phi_BR if group_C is None else group_C,
            *parts,
            batch, goals, first, chunk, size,
            ENERGY=energy, COLUMNS=columns, SOFTPLUS=softplus, MASKED=row_mask_B is not None,
            GROUPED=group_C is not None,
            BM=launch.BM, BN=launch.BN, BK=launch.BK,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
            maxnreg=REGISTERS,
        )  # fmt: skip
        if splits == 1:
            return cast(_Scores, (*parts, offset_R))
        scores = [phi_BR.new_empty(batch * n) for n in asked]
        infonce_join_kernel[(triton.cdiv(batch, JOINED),)](
            *parts, *scores, batch, splits,
            COLUMNS=columns, SOFTPLUS=softplus, BB=JOINED, num_warps=4,
        )  # fmt: skip
    return cast(_Scores, (*scores, offset_R))


def infonce_bwd(
    phi_BR: Tensor, psi_CR: Tensor, row_mask_B: Tensor | None, group_C: Tensor | None,
    row_logsumexp_B: Tensor, column_logsumexp_B: Tensor, offset_R: Tensor,
    diagonal_grad_B: Tensor, row_grad_B: Tensor, column_grad_B: Tensor, softplus_grad_B: Tensor,
    first: int, energy: str, columns: bool, softplus: bool,
) -> Tensor:  # fmt: skip
    """Launch the backward kernel; returns the gradients [B + C, R] of phi and then psi."""
    phi_BR, psi_CR = phi_BR.contiguous(), psi_CR.contiguous()
    (batch, size), goals = phi_BR.shape, len(psi_CR)
    launch = choose_launch(size)
    blocks = triton.cdiv(batch, launch.BM) + triton.cdiv(goals, launch.BM)
    slices = triton.cdiv(size, launch.BR)
    splits, chunk = split(goals, launch, blocks * slices, phi_BR.device)
    grads_SXR = phi_BR.new_empty(splits, batch + goals, size)
    upstream = (diagonal_grad_B, row_grad_B, column_grad_B, softplus_grad_B)
    with torch.cuda.device_of(phi_BR):
        infonce_bwd_kernel[(blocks, slices, splits)](
            phi_BR, psi_CR, offset_R, phi_BR if row_mask_B is None else row_mask_B,
            phi_BR if group_C is None else group_C,
            row_logsumexp_B, column_logsumexp_B,
            *(grad_B.contiguous() for grad_B in upstream),
            grads_SXR, grads_SXR[:, batch:],
            batch, goals, first, chunk, size,
            ENERGY=energy, COLUMNS=columns, SOFTPLUS=softplus, MASKED=row_mask_B is not None,
            GROUPED=group_C is not None,
            BM=launch.BM, BN=launch.BN, BK=launch.BK, BR=launch.BR,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
            maxnreg=REGISTERS,
        )  # fmt: skip
    return grads_SXR.squeeze(0) if splits == 1 else grads_SXR.sum(0)


_forward = torch.library.custom_op("torch_crl::pair_scores", infonce_fwd, mutates_args=())
_backward = torch.library.custom_op("torch_crl::pair_scores_backward", infonce_bwd, mutates_args=())


@_forward.register_fake
def _(
    phi_BR: Tensor,
    _psi_CR: Tensor,
    _row_mask_B: Tensor | None,
    _group_C: Tensor | None,
    _first: int,
    energy: str,
    columns: bool,
    softplus: bool,
) -> tuple[Tensor, ...]:
    batch = phi_BR.shape[0]
    # A symbolic size cannot be multiplied by a bool.
    asked = (1, 1, int(columns), int(softplus), 1, 1)
    scores = (phi_BR.new_empty(batch * n) for n in asked)
    return (*scores, phi_BR.new_empty(0 if energy == "dot" else phi_BR.shape[1]))


@_backward.register_fake
def _(phi_BR: Tensor, psi_CR: Tensor, *_args: Any) -> Tensor:
    return phi_BR.new_empty(phi_BR.shape[0] + psi_CR.shape[0], phi_BR.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    phi_BR, psi_CR, row_mask_B, group_C, ctx.first, ctx.energy, ctx.columns, ctx.softplus = inputs
    ctx.save_for_backward(phi_BR, psi_CR, row_mask_B, group_C, output[1], output[2], output[6])
    # Otherwise autograd would make tensors of zeros as the gradients of what has none.
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    logsumexp_B, of_columns = ctx.saved_tensors[4:6]
    asked = (logsumexp_B, logsumexp_B, of_columns, logsumexp_B if ctx.softplus else of_columns[:0])
    grads = [
        torch.zeros_like(score_B) if grad_B is None else grad_B
        for grad_B, score_B in zip(upstream[:4], asked, strict=True)
    ]
    options = (ctx.first, ctx.energy, ctx.columns, ctx.softplus)
    of_both = _backward(*ctx.saved_tensors, *grads, *options)
    batch = len(logsumexp_B)
    return (of_both[:batch], of_both[batch:], None, None, None, None, None, None)


_forward.register_autograd(_autograd, setup_context=_setup_context)


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
    """All scores, those that were not asked for empty, of each energy but `cosine`.

    For float32 on one CUDA device, or anywhere when interpreted.

    Raises:
        ValueError: For tensors of another dtype, device or size than the kernels take.
    """
    for name, x_BR in (("phi", phi_BR), ("psi", psi_CR)):
        if x_BR.dtype != torch.float32:
            raise ValueError(
                f"{name} is {x_BR.dtype}; the triton implementation takes torch.float32: convert "
                'it, or choose implementation="reference"'
            )
        if x_BR.device != phi_BR.device or not (x_BR.is_cuda or _INTERPRETED):
            raise ValueError(
                f"{name} is on {x_BR.device}; the triton implementation takes tensors of one CUDA "
                'device: move it, or choose implementation="reference"'
            )
    # Offsets inside a tensor are 32-bit integers, and reach up to one block past its end.
    if psi_CR.numel() >= 2**30:
        raise ValueError(
            f"psi is {tuple(psi_CR.shape)}; the triton implementation takes fewer than 2^30 "
            'numbers: use a smaller batch, or choose implementation="reference"'
        )
    if row_mask_B is not None:
        row_mask_B = row_mask_B.contiguous()
    if group_C is not None:
        group_C = group_C.contiguous()
    found = _forward(phi_BR, psi_CR, row_mask_B, group_C, first, energy, columns, softplus)
    diagonal_B, row_B, column_B, softplus_B, rival_B, sum_B = found[:6]
    constant = rival_B.detach(), sum_B.detach()
    return PairScores(diagonal_B, row_B, column_B, softplus_B, *constant, len(psi_CR))
