"""The two Triton kernels of `pair_scores`, without the B x B matrix in memory. See the README.

x and y are (phi, psi) in programs that own rows, and (psi, phi) in those that own columns.
B rows of phi, C rows of psi, R representation; row i of phi belongs to row first + i of psi. X and
Y are the numbers of rows of x and y. BM rows of x per program, BN rows of y per step, BK and BR
slices of R.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs

from torch_crl.kernels.elementwise import sigmoid, softplus
from torch_crl.kernels.infonce.reference import EPSILON, LEFT_OUT
from torch_crl.kernels.launch import multiprocessors

_EPSILON, _LEFT_OUT = tl.constexpr(EPSILON), tl.constexpr(LEFT_OUT)
# Each factor is a sum of three bf16 numbers: as exact as fp32, on the tensor cores. Sums of two
# TF32 numbers lose 2^-20 of a product, which shows where points are close. The interpreter has
# fp32 only.
_PRECISION = tl.constexpr("ieee" if knobs.runtime.interpret else "bf16x6")
# As many registers as the kernels want: one program fills a multiprocessor.
REGISTERS = 255


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


def split(rows: int, launch: Launch, programs: int, device: torch.device) -> tuple[int, int]:
    """Into how many splits each program's work goes, and how many rows of y each of them takes.

    `rows` is the larger number of rows of y, and `programs` are those of a single split. There are
    as many splits as multiprocessors allow.
    """
    steps = triton.cdiv(rows, launch.BN)
    most = max(1, multiprocessors(device) // programs)
    of_split = triton.cdiv(steps, most)
    return triton.cdiv(steps, of_split), of_split * launch.BN


@triton.jit
def _load_rows(p_rows, p_offset, o_rows, o_r, rows, R: tl.constexpr, CENTRED: tl.constexpr):
    # Loads [rows, slice of R], minus the offset if CENTRED.
    m_r = o_r < R
    m_rows = (o_rows < rows)[:, None] & m_r[None, :]
    b_rows = tl.load(p_rows + o_rows[:, None] * R + o_r[None, :], mask=m_rows, other=0.0)
    if CENTRED:
        b_rows -= tl.load(p_offset + o_r, mask=m_r, other=0.0)[None, :]
    return b_rows


@triton.jit
def _tile(
    p_x, p_y, p_offset, o_x, o_y, X, Y, R: tl.constexpr, DISTANCE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # [BM, BN] dot products, or squared distances, which rounding can make negative.
    b_dot = tl.zeros([BM, BN], tl.float32)
    b_x_square = tl.zeros([BM], tl.float32)
    b_y_square = tl.zeros([BN], tl.float32)
    for start in range(0, R, BK):
        o_k = start + tl.arange(0, BK)
        b_x = _load_rows(p_x, p_offset, o_x, o_k, X, R, DISTANCE)
        b_y = _load_rows(p_y, p_offset, o_y, o_k, Y, R, DISTANCE)
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
def _same_group(p_group, o_x, o_y, X, Y, first, IS_ROW: tl.constexpr):
    # [BM, BN]: pairs of one group that are no true pairs. Rows have the groups of their columns.
    o_own_x, o_own_y = o_x, o_y
    if IS_ROW:
        o_own_x += first
    else:
        o_own_y += first
    b_x = tl.load(p_group + o_own_x, mask=o_x < X, other=-1)
    b_y = tl.load(p_group + o_own_y, mask=o_y < Y, other=-2)
    return (b_x[:, None] == b_y[None, :]) & (o_own_x[:, None] != o_own_y[None, :])


@triton.jit
def _reduce_block(
    # inputs
    p_x, p_y, p_offset, p_row_mask, p_group, i_block,
    # outputs
    p_logsumexp, p_diagonal, p_softplus, p_rival, p_sum,
    # sizes
    X, Y, first, chunk, R: tl.constexpr,
    ENERGY: tl.constexpr, IS_ROW: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    GROUPED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    o_x = i_block * BM + tl.arange(0, BM)
    i_split = tl.program_id(1)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_mass = tl.zeros([BM], tl.float32)
    b_rival = tl.full([BM], float("-inf"), tl.float32)
    b_diagonal = tl.zeros([BM], tl.float32)
    b_softplus = tl.zeros([BM], tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    for start in range(i_split * chunk, tl.minimum((i_split + 1) * chunk, Y), BN):
        o_y = start + tl.arange(0, BN)
        m_y = o_y < Y
        b_tile = _tile(p_x, p_y, p_offset, o_x, o_y, X, Y, R, ENERGY != "dot", BM, BN, BK)
        b_energy = _energy(b_tile, m_y[None, :], ENERGY)
        if MASKED and not IS_ROW:
            m_counts = tl.load(p_row_mask + o_y, mask=m_y, other=1.0) > 0
            b_energy = tl.where(m_counts[None, :], b_energy, _LEFT_OUT)
        if IS_ROW:
            b_sum += tl.sum(tl.where(m_y[None, :], b_energy, 0.0), 1)
        if GROUPED:
            m_left_out = _same_group(p_group, o_x, o_y, X, Y, first, IS_ROW) & m_y[None, :]
            b_energy = tl.where(m_left_out, _LEFT_OUT, b_energy)
        b_new_max = tl.maximum(b_max, tl.max(b_energy, 1))
        b_block_mass = tl.sum(tl.exp(b_energy - b_new_max[:, None]), 1)
        b_mass = b_mass * tl.exp(b_max - b_new_max) + b_block_mass
        b_max = b_new_max
        if IS_ROW:
            m_own = o_x[:, None] + first == o_y[None, :]
            b_diagonal += tl.sum(tl.where(m_own, b_energy, 0.0), 1)
            b_rival = tl.maximum(b_rival, tl.max(tl.where(m_own, float("-inf"), b_energy), 1))
            if SOFTPLUS:
                b_softplus += tl.sum(softplus(b_energy), 1)
    m_x = o_x < X
    o = i_split * X + o_x
    tl.store(p_logsumexp + o, b_max + tl.log(b_mass), mask=m_x)
    if IS_ROW:
        tl.store(p_diagonal + o, b_diagonal, mask=m_x)
        tl.store(p_rival + o, b_rival, mask=m_x)
        tl.store(p_sum + o, b_sum, mask=m_x)
        if SOFTPLUS:
            tl.store(p_softplus + o, b_softplus, mask=m_x)


@triton.jit
def infonce_fwd_kernel(
    # inputs
    p_phi, p_psi, p_offset, p_row_mask, p_group,
    # outputs
    p_diagonal, p_row_logsumexp, p_column_logsumexp, p_softplus, p_rival, p_sum,
    # sizes
    B, C, first, chunk, R: tl.constexpr,
    ENERGY: tl.constexpr, COLUMNS: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    GROUPED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The scores [splits, B] of the pairs with the y of a chunk. COLUMNS needs B = C.

    Grid: (blocks of rows, followed by as many blocks of columns if COLUMNS; splits of the y).
    """
    i_block = tl.program_id(0)
    num_blocks = tl.cdiv(B, BM)
    if i_block < num_blocks:
        _reduce_block(
            p_phi, p_psi, p_offset, p_row_mask, p_group, i_block,
            p_row_logsumexp, p_diagonal, p_softplus, p_rival, p_sum,
            B, C, first, chunk, R, ENERGY, True, SOFTPLUS, MASKED, GROUPED, BM, BN, BK,
        )  # fmt: skip
    else:
        if COLUMNS:
            _reduce_block(
                p_psi, p_phi, p_offset, p_row_mask, p_group, i_block - num_blocks,
                p_column_logsumexp, p_diagonal, p_softplus, p_rival, p_sum,
                C, B, 0, chunk, R, ENERGY, False, False, MASKED, GROUPED, BM, BN, BK,
            )  # fmt: skip


@triton.jit
def _sum_of_exponentials(p_in, p_out, o, m, splits, B, BB: tl.constexpr):
    # The logsumexp of logsumexps [splits, B].
    b_max = tl.full([BB], float("-inf"), tl.float32)
    b_mass = tl.zeros([BB], tl.float32)
    for i_split in range(splits):
        b_part = tl.load(p_in + i_split * B + o, mask=m, other=0.0)
        b_new_max = tl.maximum(b_max, b_part)
        b_mass = b_mass * tl.exp(b_max - b_new_max) + tl.exp(b_part - b_new_max)
        b_max = b_new_max
    tl.store(p_out + o, b_max + tl.log(b_mass), mask=m)


@triton.jit
def _sum(p_in, p_out, o, m, splits, B, BB: tl.constexpr):
    b_sum = tl.zeros([BB], tl.float32)
    for i_split in range(splits):
        b_sum += tl.load(p_in + i_split * B + o, mask=m, other=0.0)
    tl.store(p_out + o, b_sum, mask=m)


@triton.jit(do_not_specialize=["splits"])
def infonce_join_kernel(
    # inputs, of each split
    p_diagonal, p_row_logsumexp, p_column_logsumexp, p_softplus, p_rival, p_sum,
    # outputs
    p_diagonal_all, p_row_logsumexp_all, p_column_logsumexp_all, p_softplus_all, p_rival_all,
    p_sum_all,
    # sizes
    B, splits,
    COLUMNS: tl.constexpr, SOFTPLUS: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """The scores [B] of those of all splits [splits, B]. Grid: blocks of the batch."""
    o = tl.program_id(0) * BB + tl.arange(0, BB)
    m = o < B
    _sum(p_diagonal, p_diagonal_all, o, m, splits, B, BB)
    _sum(p_sum, p_sum_all, o, m, splits, B, BB)
    _sum_of_exponentials(p_row_logsumexp, p_row_logsumexp_all, o, m, splits, B, BB)
    if COLUMNS:
        _sum_of_exponentials(p_column_logsumexp, p_column_logsumexp_all, o, m, splits, B, BB)
    if SOFTPLUS:
        _sum(p_softplus, p_softplus_all, o, m, splits, B, BB)
    b_rival = tl.full([BB], float("-inf"), tl.float32)
    for i_split in range(splits):
        b_rival = tl.maximum(b_rival, tl.load(p_rival + i_split * B + o, mask=m, other=0.0))
    tl.store(p_rival_all + o, b_rival, mask=m)


@triton.jit
def _energy_gradient(
    b_energy, o_x, o_y, X, Y, first, p_row_mask, p_group,
    p_x_logsumexp, p_x_grad, p_y_logsumexp, p_y_grad, p_diagonal_grad, p_softplus_grad,
    IS_ROW: tl.constexpr, SUM_OF_X: tl.constexpr, SUM_OF_Y: tl.constexpr, SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr, GROUPED: tl.constexpr,
):  # fmt: skip
    # d loss / d E_ij, [BM, BN]: one term for each of the scores that E_ij is part of.
    m_x, m_y = o_x < X, o_y < Y
    if IS_ROW:
        b_diagonal = tl.load(p_diagonal_grad + o_x, mask=m_x, other=0.0)[:, None]
        b_grad = tl.where(o_x[:, None] + first == o_y[None, :], b_diagonal, 0.0)
    else:
        b_diagonal = tl.load(p_diagonal_grad + o_y, mask=m_y, other=0.0)[None, :]
        b_grad = tl.where(o_x[:, None] == o_y[None, :] + first, b_diagonal, 0.0)
    if GROUPED:
        m_left_out = _same_group(p_group, o_x, o_y, X, Y, first, IS_ROW)
        b_energy = tl.where(m_left_out, float("-inf"), b_energy)
    b_of_x, b_of_y = b_energy, b_energy
    # The sums of columns leave out the rows outside of the mask: exp(-inf) is 0.
    if MASKED and IS_ROW and SUM_OF_Y:
        m_counts = tl.load(p_row_mask + o_x, mask=m_x, other=1.0) > 0
        b_of_y = tl.where(m_counts[:, None], b_energy, float("-inf"))
    if MASKED and not IS_ROW and SUM_OF_X:
        m_counts = tl.load(p_row_mask + o_y, mask=m_y, other=1.0) > 0
        b_of_x = tl.where(m_counts[None, :], b_energy, float("-inf"))
    if SUM_OF_X:
        b_logsumexp = tl.load(p_x_logsumexp + o_x, mask=m_x, other=0.0)
        b_upstream = tl.load(p_x_grad + o_x, mask=m_x, other=0.0)
        b_grad += b_upstream[:, None] * tl.exp(b_of_x - b_logsumexp[:, None])
    if SUM_OF_Y:
        b_logsumexp = tl.load(p_y_logsumexp + o_y, mask=m_y, other=0.0)
        b_upstream = tl.load(p_y_grad + o_y, mask=m_y, other=0.0)
        b_grad += b_upstream[None, :] * tl.exp(b_of_y - b_logsumexp[None, :])
    if SOFTPLUS:
        # One softplus score per row of phi, so indexed like whichever of x and y is phi.
        if IS_ROW:
            b_softplus = tl.load(p_softplus_grad + o_x, mask=m_x, other=0.0)[:, None]
        else:
            b_softplus = tl.load(p_softplus_grad + o_y, mask=m_y, other=0.0)[None, :]
        b_grad += b_softplus * sigmoid(b_energy)
    return b_grad


@triton.jit
def _gradient_block(
    # inputs
    p_x, p_y, p_offset, p_row_mask, p_group, i_block,
    p_x_logsumexp, p_x_grad, p_y_logsumexp, p_y_grad, p_diagonal_grad, p_softplus_grad,
    # outputs
    p_grad,
    # sizes
    X, Y, first, chunk, R: tl.constexpr,
    ENERGY: tl.constexpr, IS_ROW: tl.constexpr, SUM_OF_X: tl.constexpr, SUM_OF_Y: tl.constexpr,
    SOFTPLUS: tl.constexpr, MASKED: tl.constexpr, GROUPED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    DISTANCE: tl.constexpr = ENERGY != "dot"
    o_x = i_block * BM + tl.arange(0, BM)
    o_r = tl.program_id(1) * BR + tl.arange(0, BR)
    b_grad = tl.zeros([BM, BR], tl.float32)
    b_weight_sum = tl.zeros([BM], tl.float32)
    i_split = tl.program_id(2)
    for start in range(i_split * chunk, tl.minimum((i_split + 1) * chunk, Y), BN):
        o_y = start + tl.arange(0, BN)
        b_tile = _tile(p_x, p_y, p_offset, o_x, o_y, X, Y, R, DISTANCE, BM, BN, BK)
        b_energy = _energy(b_tile, (o_x < X)[:, None] & (o_y < Y)[None, :], ENERGY)
        b_weight = _energy_gradient(
            b_energy, o_x, o_y, X, Y, first, p_row_mask, p_group,
            p_x_logsumexp, p_x_grad, p_y_logsumexp, p_y_grad, p_diagonal_grad, p_softplus_grad,
            IS_ROW, SUM_OF_X, SUM_OF_Y, SOFTPLUS, MASKED, GROUPED,
        )  # fmt: skip
        # dE/dx is factor * (x - y) for distances, zero where the distance is clamped, else y.
        if ENERGY == "norm":
            b_weight = tl.where(b_tile < 0.0, 0.0, b_weight / b_energy)
        if ENERGY == "l2":
            b_weight = tl.where(b_tile < 0.0, 0.0, -2.0 * b_weight)
        b_y = _load_rows(p_y, p_offset, o_y, o_r, Y, R, DISTANCE)
        b_grad = tl.dot(b_weight, b_y, b_grad, input_precision=_PRECISION)
        b_weight_sum += tl.sum(b_weight, 1)
    if DISTANCE:
        b_x = _load_rows(p_x, p_offset, o_x, o_r, X, R, DISTANCE)
        b_grad = b_x * b_weight_sum[:, None] - b_grad
    m_grad = (o_x < X)[:, None] & (o_r < R)[None, :]
    p_split = p_grad + i_split * (X + Y) * R
    tl.store(p_split + o_x[:, None] * R + o_r[None, :], b_grad, mask=m_grad)


@triton.jit
def infonce_bwd_kernel(
    # inputs
    p_phi, p_psi, p_offset, p_row_mask, p_group, p_row_logsumexp, p_column_logsumexp,
    p_diagonal_grad, p_row_grad, p_column_grad, p_softplus_grad,
    # outputs
    p_phi_grad, p_psi_grad,
    # sizes
    B, C, first, chunk, R: tl.constexpr,
    ENERGY: tl.constexpr, COLUMNS: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    GROUPED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The gradients [splits, B + C, R] through the pairs with the y of a chunk.

    Grid: (blocks of rows followed by blocks of columns, slices of R, splits of the y).
    """
    i_block = tl.program_id(0)
    num_blocks = tl.cdiv(B, BM)
    if i_block < num_blocks:
        _gradient_block(
            p_phi, p_psi, p_offset, p_row_mask, p_group, i_block,
            p_row_logsumexp, p_row_grad, p_column_logsumexp, p_column_grad,
            p_diagonal_grad, p_softplus_grad, p_phi_grad,
            B, C, first, chunk, R, ENERGY, True, True, COLUMNS, SOFTPLUS, MASKED, GROUPED,
            BM, BN, BK, BR,
        )  # fmt: skip
    else:
        _gradient_block(
            p_psi, p_phi, p_offset, p_row_mask, p_group, i_block - num_blocks,
            p_column_logsumexp, p_column_grad, p_row_logsumexp, p_row_grad,
            p_diagonal_grad, p_softplus_grad, p_psi_grad,
            C, B, first, chunk, R, ENERGY, False, COLUMNS, True, SOFTPLUS, MASKED, GROUPED,
            BM, BN, BK, BR,
        )  # fmt: skip
