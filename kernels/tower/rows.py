"""How rows are divided among programs, and sums over what the programs of a tower give.

D width, L layers, T towers (1 or 2), P programs with live rows.
"""

import triton
import triton.language as tl

SIZES = ["live0", "live1", "frozen", "depth", "weight_rows"]
"""Arguments of every pass through a tower that change without another kernel."""


@triton.jit
def rows_of_program(i_p, live0, live1, frozen, BM: tl.constexpr):
    """The rows [start, stop) of a program, and its group: 0 and 1 are live towers, 2 is frozen."""
    n0, n1 = tl.cdiv(live0, BM), tl.cdiv(live1, BM)
    start, stop, i_group = i_p * BM, live0, 0
    if i_p >= n0 + n1:
        start = live0 + live1 + (i_p - n0 - n1) * BM
        stop = live0 + live1 + frozen
        i_group = 2
    elif i_p >= n0:
        start = live0 + (i_p - n0) * BM
        stop = live0 + live1
        i_group = 1
    return start, stop, i_group


@triton.jit
def own_layer(i_layer, OWN: tl.constexpr):
    """The layer whose parameters are read; OWN layers are applied in turn, or if 0 each once."""
    return i_layer % OWN if OWN else i_layer


@triton.jit
def sum_over_programs(p_partial, p_out, first, count, i_sum, D: tl.constexpr, BP: tl.constexpr):
    """One of the three sums of a layer and tower, from the partial ones [P, 3, D] of programs."""
    o_d = tl.arange(0, D)
    b_sum = tl.zeros([D], tl.float32)
    for start in range(0, count, BP):
        o_p = start + tl.arange(0, BP)
        p_rows = p_partial + ((first + o_p) * 3 + i_sum)[:, None] * D + o_d[None, :]
        b_sum += tl.sum(tl.load(p_rows, mask=(o_p < count)[:, None], other=0.0), 0)
    tl.store(p_out + o_d, b_sum)


@triton.jit(do_not_specialize=["first_layer", "all_layers", "programs0", "programs1"])
def sums_kernel(
    # in
    p_partial,
    # out
    p_dvectors,
    # sizes
    first_layer, all_layers, programs0, programs1,
    D: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Sums [T, 3, L, D] over the programs of partial [layers of a chunk, P, 3, D].

    Grid: the layers of the chunk, and three sums for each tower.
    """
    i_layer, i_sum = tl.program_id(0), tl.program_id(1)
    first, count = 0, programs0
    if i_sum >= 3:
        first, count = programs0, programs1
    p_partial += tl.cast(i_layer, tl.int64) * (programs0 + programs1) * 3 * D
    p_out = p_dvectors + (tl.cast(i_sum, tl.int64) * all_layers + first_layer + i_layer) * D
    sum_over_programs(p_partial, p_out, first, count, i_sum % 3, D, BP)
