"""`pair_scores` in two Triton kernels, without the B x B matrix in memory. See the README.

x and y are (phi, psi) in programs that own rows, and (psi, phi) in those that own columns.
B pairs, R representation, BM rows of x per program, BN rows of y per step, BK and BR slices of R.
"""

from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.infonce.reference import EPSILON, PairScores, unit_rows

_EPSILON = tl.constexpr(EPSILON)
# Each factor as a sum of two TF32 numbers: as exact as fp32 products, on the tensor cores.
_PRECISION = tl.constexpr("tf32x3")
_INTERPRETED = triton.knobs.runtime.interpret
# As many registers as the kernels want: one program fills a multiprocessor.
REGISTERS = 255

# In the order of PairScores; scores that were not requested are empty tensors.
_Scores = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Launch(NamedTuple):
    """Block sizes and compiler options."""

    BM: int
    BN: int
    BK: int
    BR: int
    num_warps: int
    num_stages: int


def choose_launch(size: int) -> Launch:
    """The fastest of those tried on an H100, for batches of 512 and of 2048 (benchmarks/LOG.md)."""
    if size <= 32:
        # A single slice of R, kept in registers: with more columns at once, some would spill.
        block = 16 if size <= 16 else 32
        return Launch(BM=16, BN=64, BK=block, BR=block, num_warps=8, num_stages=1)
    return Launch(BM=16, BN=128, BK=32, BR=64, num_warps=8, num_stages=1)


@triton.jit
def _load_rows(p_rows, p_offset, o_rows, o_r, B, R: tl.constexpr, CENTRED: tl.constexpr):
    # Loads [rows, slice of R], minus the offset if CENTRED.
    m_r = o_r < R
    m_rows = (o_rows < B)[:, None] & m_r[None, :]
    b_rows = tl.load(p_rows + o_rows[:, None] * R + o_r[None, :], mask=m_rows, other=0.0)
    if CENTRED:
        b_rows -= tl.load(p_offset + o_r, mask=m_r, other=0.0)[None, :]
    return b_rows


@triton.jit
def _tile(
    p_x, p_y, p_offset, o_x, o_y, B, R: tl.constexpr, DISTANCE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # [BM, BN] dot products, or squared distances, which rounding can make negative.
    b_dot = tl.zeros([BM, BN], tl.float32)
    b_x_square = tl.zeros([BM], tl.float32)
    b_y_square = tl.zeros([BN], tl.float32)
    for start in range(0, R, BK):
        o_k = start + tl.arange(0, BK)
        b_x = _load_rows(p_x, p_offset, o_x, o_k, B, R, DISTANCE)
        b_y = _load_rows(p_y, p_offset, o_y, o_k, B, R, DISTANCE)
        b_dot = tl.dot(b_x, tl.trans(b_y), b_dot, input_precision=_PRECISION)
        if DISTANCE:
            b_x_square += tl.sum(b_x * b_x, 1)
            b_y_square += tl.sum(b_y * b_y, 1)
    if DISTANCE:
        b_dot = b_x_square[:, None] + b_y_square[None, :] - 2.0 * b_dot
    return b_dot


@triton.jit
def _energy(b_tile, m_pairs, ENERGY: tl.constexpr):
    # -inf for pairs outside the batch, so that they add nothing to the sums of exponentials.
    b_energy = b_tile
    if ENERGY != "dot":
        # Not tl.maximum, which turns NaN into 0.
        b_energy = -tl.where(b_tile < 0.0, 0.0, b_tile)
    if ENERGY == "norm":
        b_energy = -tl.sqrt_rn(-b_energy + _EPSILON)
    return tl.where(m_pairs, b_energy, float("-inf"))


@triton.jit
def _softplus(b_x):
    # log(1 + e) with e = exp(-|x|) in (0, 1]; the quotient corrects the rounding of 1 + e.
    b_e = tl.exp(-tl.abs(b_x))
    b_u = 1.0 + b_e
    b_exact = b_u == 1.0
    b_log1p = tl.where(b_exact, b_e, tl.log(b_u) * (b_e / tl.where(b_exact, 1.0, b_u - 1.0)))
    return tl.maximum(b_x, 0.0) + b_log1p


@triton.jit
def _sigmoid(b_x):
    b_e = tl.exp(-tl.abs(b_x))
    return tl.where(b_x >= 0.0, 1.0, b_e) / (1.0 + b_e)


@triton.jit
def _reduce_block(
    # inputs
    p_x, p_y, p_offset, i_block,
    # outputs
    p_logsumexp, p_diagonal, p_softplus, p_rival, p_sum,
    # sizes
    B, R: tl.constexpr,
    ENERGY: tl.constexpr, IS_ROW: tl.constexpr, SOFTPLUS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    o_x = i_block * BM + tl.arange(0, BM)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_mass = tl.zeros([BM], tl.float32)
    b_rival = tl.full([BM], float("-inf"), tl.float32)
    b_diagonal = tl.zeros([BM], tl.float32)
    b_softplus = tl.zeros([BM], tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    for start in range(0, B, BN):
        o_y = start + tl.arange(0, BN)
        m_y = o_y < B
        b_tile = _tile(p_x, p_y, p_offset, o_x, o_y, B, R, ENERGY != "dot", BM, BN, BK)
        b_energy = _energy(b_tile, m_y[None, :], ENERGY)
        b_new_max = tl.maximum(b_max, tl.max(b_energy, 1))
        b_block_mass = tl.sum(tl.exp(b_energy - b_new_max[:, None]), 1)
        b_mass = b_mass * tl.exp(b_max - b_new_max) + b_block_mass
        b_max = b_new_max
        if IS_ROW:
            m_own = o_x[:, None] == o_y[None, :]
            b_diagonal += tl.sum(tl.where(m_own, b_energy, 0.0), 1)
            b_rival = tl.maximum(b_rival, tl.max(tl.where(m_own, float("-inf"), b_energy), 1))
            b_sum += tl.sum(tl.where(m_y[None, :], b_energy, 0.0), 1)
            if SOFTPLUS:
                b_softplus += tl.sum(_softplus(b_energy), 1)
    m_x = o_x < B
    tl.store(p_logsumexp + o_x, b_max + tl.log(b_mass), mask=m_x)
    if IS_ROW:
        tl.store(p_diagonal + o_x, b_diagonal, mask=m_x)
        tl.store(p_rival + o_x, b_rival, mask=m_x)
        tl.store(p_sum + o_x, b_sum, mask=m_x)
        if SOFTPLUS:
            tl.store(p_softplus + o_x, b_softplus, mask=m_x)


@triton.jit
def infonce_fwd_kernel(
    # inputs
    p_phi, p_psi, p_offset,
    # outputs
    p_diagonal, p_row_logsumexp, p_column_logsumexp, p_softplus, p_rival, p_sum,
    # sizes
    B, R: tl.constexpr,
    ENERGY: tl.constexpr, COLUMNS: tl.constexpr, SOFTPLUS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of rows, followed by as many blocks of columns if COLUMNS."""
    i_block = tl.program_id(0)
    num_blocks = tl.cdiv(B, BM)
    if i_block < num_blocks:
        _reduce_block(
            p_phi, p_psi, p_offset, i_block,
            p_row_logsumexp, p_diagonal, p_softplus, p_rival, p_sum,
            B, R, ENERGY, True, SOFTPLUS, BM, BN, BK,
        )  # fmt: skip
    else:
        if COLUMNS:
            _reduce_block(
                p_psi, p_phi, p_offset, i_block - num_blocks,
                p_column_logsumexp, p_diagonal, p_softplus, p_rival, p_sum,
                B, R, ENERGY, False, False, BM, BN, BK,
            )  # fmt: skip


@triton.jit
def _energy_gradient(
    b_energy, o_x, o_y, B,
    p_x_logsumexp, p_x_grad, p_y_logsumexp, p_y_grad, p_diagonal_grad, p_softplus_grad,
    IS_ROW: tl.constexpr, SUM_OF_X: tl.constexpr, SUM_OF_Y: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    # d loss / d E_ij, [BM, BN]: one term for each of the scores that E_ij is part of.
    m_x, m_y = o_x < B, o_y < B
    b_diagonal = tl.load(p_diagonal_grad + o_x, mask=m_x, other=0.0)
    b_grad = tl.where(o_x[:, None] == o_y[None, :], b_diagonal[:, None], 0.0)
    if SUM_OF_X:
        b_logsumexp = tl.load(p_x_logsumexp + o_x, mask=m_x, other=0.0)
        b_upstream = tl.load(p_x_grad + o_x, mask=m_x, other=0.0)
        b_grad += b_upstream[:, None] * tl.exp(b_energy - b_logsumexp[:, None])
    if SUM_OF_Y:
        b_logsumexp = tl.load(p_y_logsumexp + o_y, mask=m_y, other=0.0)
        b_upstream = tl.load(p_y_grad + o_y, mask=m_y, other=0.0)
        b_grad += b_upstream[None, :] * tl.exp(b_energy - b_logsumexp[None, :])
    if SOFTPLUS:
        # One softplus score per row of phi, so indexed like whichever of x and y is phi.
        if IS_ROW:
            b_softplus = tl.load(p_softplus_grad + o_x, mask=m_x, other=0.0)[:, None]
        else:
            b_softplus = tl.load(p_softplus_grad + o_y, mask=m_y, other=0.0)[None, :]
        b_grad += b_softplus * _sigmoid(b_energy)
    return b_grad


@triton.jit
def _gradient_block(
    # inputs
    p_x, p_y, p_offset, i_block,
    p_x_logsumexp, p_x_grad, p_y_logsumexp, p_y_grad, p_diagonal_grad, p_softplus_grad,
    # outputs
    p_grad,
    # sizes
    B, R: tl.constexpr,
    ENERGY: tl.constexpr, IS_ROW: tl.constexpr, SUM_OF_X: tl.constexpr, SUM_OF_Y: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    DISTANCE: tl.constexpr = ENERGY != "dot"
    o_x = i_block * BM + tl.arange(0, BM)
    o_r = tl.program_id(1) * BR + tl.arange(0, BR)
    b_grad = tl.zeros([BM, BR], tl.float32)
    b_weight_sum = tl.zeros([BM], tl.float32)
    for start in range(0, B, BN):
        o_y = start + tl.arange(0, BN)
        b_tile = _tile(p_x, p_y, p_offset, o_x, o_y, B, R, DISTANCE, BM, BN, BK)
        b_energy = _energy(b_tile, (o_x < B)[:, None] & (o_y < B)[None, :], ENERGY)
        b_weight = _energy_gradient(
            b_energy, o_x, o_y, B,
            p_x_logsumexp, p_x_grad, p_y_logsumexp, p_y_grad, p_diagonal_grad, p_softplus_grad,
            IS_ROW, SUM_OF_X, SUM_OF_Y, SOFTPLUS,
        )  # fmt: skip
        # dE/dx is factor * (x - y) for distances, zero where the distance is clamped, else y.
        if ENERGY == "norm":
            b_weight = tl.where(b_tile < 0.0, 0.0, b_weight / b_energy)
        if ENERGY == "l2":
            b_weight = tl.where(b_tile < 0.0, 0.0, -2.0 * b_weight)
        b_y = _load_rows(p_y, p_offset, o_y, o_r, B, R, DISTANCE)
        b_grad = tl.dot(b_weight, b_y, b_grad, input_precision=_PRECISION)
        b_weight_sum += tl.sum(b_weight, 1)
    if DISTANCE:
        b_x = _load_rows(p_x, p_offset, o_x, o_r, B, R, DISTANCE)
        b_grad = b_x * b_weight_sum[:, None] - b_grad
    m_grad = (o_x < B)[:, None] & (o_r < R)[None, :]
    tl.store(p_grad + o_x[:, None] * R + o_r[None, :], b_grad, mask=m_grad)


@triton.jit
def infonce_bwd_kernel(
    # inputs
    p_phi, p_psi, p_offset, p_row_logsumexp, p_column_logsumexp,
    p_diagonal_grad, p_row_grad, p_column_grad, p_softplus_grad,
    # outputs
    p_phi_grad, p_psi_grad,
    # sizes
    B, R: tl.constexpr,
    ENERGY: tl.constexpr, COLUMNS: tl.constexpr, SOFTPLUS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of rows followed by blocks of columns, slices of R)."""
    i_block = tl.program_id(0)
    num_blocks = tl.cdiv(B, BM)
    if i_block < num_blocks:
        _gradient_block(
            p_phi, p_psi, p_offset, i_block,
            p_row_logsumexp, p_row_grad, p_column_logsumexp, p_column_grad,
            p_diagonal_grad, p_softplus_grad, p_phi_grad,
            B, R, ENERGY, True, True, COLUMNS, SOFTPLUS, BM, BN, BK, BR,
        )  # fmt: skip
    else:
        _gradient_block(
            p_psi, p_phi, p_offset, i_block - num_blocks,
            p_column_logsumexp, p_column_grad, p_row_logsumexp, p_row_grad,
            p_diagonal_grad, p_softplus_grad, p_psi_grad,
            B, R, ENERGY, False, COLUMNS, True, SOFTPLUS, BM, BN, BK, BR,
        )  # fmt: skip


def _offset(psi_BR: Tensor, energy: str) -> Tensor:
    # Used by distances only. See the reference for why they are centred.
    return psi_BR if energy == "dot" else psi_BR.mean(0)


def infonce_fwd(
    phi_BR: Tensor, psi_BR: Tensor, energy: str, columns: bool, softplus: bool
) -> _Scores:
    """Launch the forward kernel; returns the scores [B] of phi and psi [B, R]."""
    phi_BR, psi_BR = phi_BR.contiguous(), psi_BR.contiguous()
    batch, size = phi_BR.shape
    launch = choose_launch(size)
    asked = (1, 1, columns, softplus, 1, 1)
    outputs = [torch.empty(batch * n, dtype=phi_BR.dtype, device=phi_BR.device) for n in asked]
    with torch.cuda.device_of(phi_BR):
        infonce_fwd_kernel[(triton.cdiv(batch, launch.BM) * (1 + columns),)](
            phi_BR, psi_BR, _offset(psi_BR, energy),
            *outputs,
            batch, size,
            ENERGY=energy, COLUMNS=columns, SOFTPLUS=softplus,
            BM=launch.BM, BN=launch.BN, BK=launch.BK,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
            maxnreg=REGISTERS,
        )  # fmt: skip
    return cast(_Scores, tuple(outputs))


def infonce_bwd(
    phi_BR: Tensor, psi_BR: Tensor, row_logsumexp_B: Tensor, column_logsumexp_B: Tensor,
    diagonal_grad_B: Tensor, row_grad_B: Tensor, column_grad_B: Tensor, softplus_grad_B: Tensor,
    energy: str, columns: bool, softplus: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the backward kernel; returns the gradients [B, R] of phi and psi."""
    phi_BR, psi_BR = phi_BR.contiguous(), psi_BR.contiguous()
    batch, size = phi_BR.shape
    launch = choose_launch(size)
    phi_grad_BR, psi_grad_BR = torch.empty_like(phi_BR), torch.empty_like(psi_BR)
    upstream = (diagonal_grad_B, row_grad_B, column_grad_B, softplus_grad_B)
    with torch.cuda.device_of(phi_BR):
        infonce_bwd_kernel[(2 * triton.cdiv(batch, launch.BM), triton.cdiv(size, launch.BR))](
            phi_BR, psi_BR, _offset(psi_BR, energy), row_logsumexp_B, column_logsumexp_B,
            *(grad_B.contiguous() for grad_B in upstream),
            phi_grad_BR, psi_grad_BR,
            batch, size,
            ENERGY=energy, COLUMNS=columns, SOFTPLUS=softplus,
            BM=launch.BM, BN=launch.BN, BK=launch.BK, BR=launch.BR,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
            maxnreg=REGISTERS,
        )  # fmt: skip
    return phi_grad_BR, psi_grad_BR


_forward = torch.library.custom_op("torch_crl::pair_scores", infonce_fwd, mutates_args=())
_backward = torch.library.custom_op("torch_crl::pair_scores_backward", infonce_bwd, mutates_args=())


@_forward.register_fake
def _(
    phi_BR: Tensor, _psi_BR: Tensor, _energy: str, columns: bool, softplus: bool
) -> tuple[Tensor, ...]:
    batch = phi_BR.shape[0]
    # A symbolic size cannot be multiplied by a bool.
    asked = (1, 1, int(columns), int(softplus), 1, 1)
    return tuple(phi_BR.new_empty(batch * n) for n in asked)


@_backward.register_fake
def _(phi_BR: Tensor, psi_BR: Tensor, *_args: Any) -> tuple[Tensor, Tensor]:
    return phi_BR.new_empty(phi_BR.shape), psi_BR.new_empty(psi_BR.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    phi_BR, psi_BR, ctx.energy, ctx.columns, ctx.softplus = inputs
    ctx.save_for_backward(phi_BR, psi_BR, output[1], output[2])


def _autograd(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    grads = _backward(*ctx.saved_tensors, *upstream[:4], ctx.energy, ctx.columns, ctx.softplus)
    return (*grads, None, None, None)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def pair_scores(
    phi_BR: Tensor, psi_BR: Tensor, *, energy: str, columns: bool, softplus: bool
) -> PairScores:
    """Same as the reference, for float32 on one CUDA device, or anywhere when interpreted.

    Raises:
        ValueError: For tensors of another dtype, device or size than the kernels take.
    """
    for name, x_BR in (("phi", phi_BR), ("psi", psi_BR)):
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
    if phi_BR.numel() >= 2**30:
        raise ValueError(
            f"phi is {tuple(phi_BR.shape)}; the triton implementation takes fewer than 2^30 "
            'numbers: use a smaller batch, or choose implementation="reference"'
        )
    if energy == "cosine":
        energy, phi_BR, psi_BR = "dot", unit_rows(phi_BR), unit_rows(psi_BR)
    scores = PairScores(*_forward(phi_BR, psi_BR, energy, columns, softplus))
    return scores._replace(
        column_logsumexp_B=scores.column_logsumexp_B if columns else None,
        row_softplus_B=scores.row_softplus_B if softplus else None,
        row_rival_B=scores.row_rival_B.detach(),
        row_sum_B=scores.row_sum_B.detach(),
    )
