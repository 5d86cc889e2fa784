"""`relabel` as one Triton kernel. See the README.

B batch, N envs, S state, G goal, A action, H chunk, BM samples of a program; BS, BA and BG are
S, A and G padded to powers of two.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.launch import require_device
from torch_crl.kernels.relabel.reference import RelabeledBatch, Ring

# Elements of a tile of states. A program waits for memory three times in a row, so programs are
# small and many.
_TILE = 512
_MOST_SAMPLES = 8
NUM_WARPS = 4

# The fields of RelabeledBatch.
_Fields = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _expm1(b_x):
    # For x <= 0. With u = exp(x) as rounded, (u - 1) / log(u) is accurate for (exp(x) - 1) / x,
    # although numerator and denominator are not: their errors cancel.
    # Below -40, u is negligible beside 1, and could be subnormal and thus inaccurate.
    b_far = b_x < -40.0
    b_u = tl.exp(tl.where(b_far, -1.0, b_x))
    b_same = b_u == 1.0
    b_near = (b_u - 1.0) * (b_x / tl.log(tl.where(b_same, 0.5, b_u)))
    return tl.where(b_far, -1.0, tl.where(b_same, b_x, b_near))


@triton.jit
def _log1p(b_x):
    # For -1 < x <= 0. The same method with log(u) / (u - 1), where u = 1 + x as rounded.
    b_u = 1.0 + b_x
    b_same = b_u == 1.0
    return tl.where(b_same, b_x, tl.log(b_u) * (b_x / tl.where(b_same, 1.0, b_u - 1.0)))


@triton.jit
def _truncated_geometric(b_uniform, b_horizon, LOG_DISCOUNT: tl.constexpr):
    b_mass = -_expm1(b_horizon.to(tl.float64) * LOG_DISCOUNT)
    b_steps = 1 + tl.floor(_log1p(-b_uniform * b_mass) / LOG_DISCOUNT).to(tl.int64)
    return tl.minimum(b_steps, b_horizon)


@triton.jit
def _copy_rows(
    p_from, p_to, o_from, o_to, m_from, m_to, size: tl.constexpr, padded: tl.constexpr
):  # fmt: skip
    # Copies `size` numbers of any dtype from each offset, as float32; zeros where not m_from.
    o = tl.arange(0, padded)
    m = (o < size)[None, :]
    b = tl.load(p_from + o_from[:, None] + o[None, :], mask=m & m_from[:, None], other=0.0)
    tl.store(p_to + o_to[:, None] + o[None, :], b.to(tl.float32), mask=m & m_to[:, None])


@triton.jit
def relabel_kernel(
    # inputs
    p_uniform, p_position, p_state, p_action, p_achieved, p_trajectory, p_last_row,
    # outputs
    p_batch_state, p_batch_action, p_batch_goal,
    p_batch_whole, p_batch_column, p_batch_row, p_batch_last,
    # sizes
    B, ROWS: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr, LOG_DISCOUNT: tl.constexpr,
    S: tl.constexpr, A: tl.constexpr, G: tl.constexpr, H: tl.constexpr, FIRST: tl.constexpr,
    BM: tl.constexpr, BS: tl.constexpr, BA: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    m_m = o_m < B
    b_column_draw = tl.load(p_uniform + o_m, mask=m_m, other=0.0)
    b_row_draw = tl.load(p_uniform + B + o_m, mask=m_m, other=0.0)
    b_goal_draw = tl.load(p_uniform + 2 * B + o_m, mask=m_m, other=0.0)

    position = tl.load(p_position)
    filled = tl.minimum(position, ROWS)
    b_first = tl.zeros([BM], tl.int64) + (position - filled)
    drawn = filled
    if WINDOW:
        reach = tl.minimum(filled, WINDOW)
        drawn = reach - 1
        b_window_draw = tl.load(p_uniform + 3 * B + o_m, mask=m_m, other=0.0)
        spare = tl.maximum(filled - reach, 1)
        b_first += (b_window_draw * spare.to(tl.float64)).to(tl.int64)
    b_row = b_first + (b_row_draw * drawn.to(tl.float64)).to(tl.int64)
    b_column = (b_column_draw * N).to(tl.int64)

    o_step = (b_row % ROWS) * N + b_column
    b_trajectory = tl.load(p_trajectory + o_step, mask=m_m, other=0)
    b_key = b_trajectory.to(tl.int64) % ROWS
    b_last = tl.load(p_last_row + b_key * N + b_column, mask=m_m, other=0).to(tl.int64)
    b_newest = tl.zeros([BM], tl.int64) + (position - 1)
    b_horizon = b_last - b_row + 1
    if WINDOW:
        b_newest = b_first + (reach - 1)
        b_last = tl.minimum(b_last, b_newest)
        b_horizon = b_last - b_row
    # In masked samples, the `last_row` that was filled in may be before the row.
    b_horizon = tl.where(m_m, b_horizon, 0)
    b_steps = _truncated_geometric(b_goal_draw, b_horizon, LOG_DISCOUNT)

    _copy_rows(p_state, p_batch_state, o_step * S, o_m * S, m_m, m_m, S, BS)
    _copy_rows(p_action, p_batch_action, o_step * A, o_m * A * H, m_m, m_m, A, BA)
    m_inside = m_m
    for h in tl.static_range(1, H):
        o_later = ((b_row + h) % ROWS) * N + b_column
        m_inside = m_inside & (b_row + h <= b_newest)
        b_other = tl.load(p_trajectory + o_later, mask=m_inside, other=0)
        m_inside = m_inside & (b_other == b_trajectory)
        o_action = o_m * A * H + h * A
        _copy_rows(p_action, p_batch_action, o_later * A, o_action, m_inside, m_m, A, BA)
    tl.store(p_batch_whole + o_m, m_inside.to(tl.float32), mask=m_m)
    tl.store(p_batch_column + o_m, b_column, mask=m_m)
    tl.store(p_batch_row + o_m, b_row, mask=m_m)
    tl.store(p_batch_last + o_m, b_last, mask=m_m)
    if WINDOW:
        o_goal = (((b_row + b_steps) % ROWS) * N + b_column) * S + FIRST
        _copy_rows(p_state, p_batch_goal, o_goal, o_m * G, m_m, m_m, G, BG)
    else:
        o_goal = (((b_row + b_steps - 1) % ROWS) * N + b_column) * G
        m_reached, m_own = m_m & (b_steps > 0), m_m & (b_steps <= 0)
        _copy_rows(p_achieved, p_batch_goal, o_goal, o_m * G, m_reached, m_reached, G, BG)
        _copy_rows(p_state, p_batch_goal, o_step * S + FIRST, o_m * G, m_own, m_own, G, BG)


def constants_of(
    *,
    rows: int,
    num_envs: int,
    state_size: int,
    action_size: int,
    goal_slice: tuple[int, int],
    discount: float,
    window: int,
    chunk: int,
) -> dict[str, Any]:
    """Compile-time constants of the kernel, which stay the same for a whole run."""
    sizes = {"S": state_size, "A": action_size, "G": goal_slice[1] - goal_slice[0]}
    padded = {f"B{name}": triton.next_power_of_2(size) for name, size in sizes.items()}
    samples = max(1, min(_MOST_SAMPLES, _TILE // padded["BS"]))
    ring = {"ROWS": rows, "N": num_envs, "FIRST": goal_slice[0]}
    draws = {"WINDOW": window, "LOG_DISCOUNT": math.log(discount)}
    return sizes | padded | ring | draws | {"BM": samples, "H": chunk}


@torch.library.custom_op("torch_crl::relabel", mutates_args=())
def relabel_forward(
    uniform_4B: Tensor,
    position: Tensor,
    state: Tensor,
    action: Tensor,
    achieved: Tensor,
    trajectory: Tensor,
    last_row: Tensor,
    first: int,
    stop: int,
    discount: float,
    window: int,
    chunk: int,
) -> _Fields:
    """Launch the kernel; returns the fields of `RelabeledBatch`."""
    batch = uniform_4B.shape[1]
    rows, num_envs, state_size = state.shape
    constants = constants_of(
        rows=rows,
        num_envs=num_envs,
        state_size=state_size,
        action_size=action.shape[-1],
        goal_slice=(first, stop),
        discount=discount,
        window=window,
        chunk=chunk,
    )
    made = _empty_batch(state, batch, (state_size, chunk * action.shape[-1], stop - first))
    with torch.cuda.device_of(state):
        relabel_kernel[(triton.cdiv(batch, constants["BM"]),)](
            uniform_4B, position, state, action, achieved, trajectory, last_row,
            *made,
            batch, **constants,
            # A fused 1 - uniform * mass would be rounded differently from the reference.
            num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return made


def _empty_batch(like: Tensor, batch: int, sizes: tuple[int, int, int]) -> _Fields:
    """Memory for states, actions and goals of these sizes, and for the numbers of each step."""
    state, action, goal = (like.new_empty(batch, size, dtype=torch.float32) for size in sizes)
    column, row, last = (like.new_empty(batch, dtype=torch.int64) for _ in range(3))
    return state, action, goal, like.new_empty(batch, dtype=torch.float32), column, row, last


@relabel_forward.register_fake
def _(
    uniform_4B: Tensor,
    position: Tensor,
    state: Tensor,
    action: Tensor,
    achieved: Tensor,
    trajectory: Tensor,
    last_row: Tensor,
    first: int,
    stop: int,
    discount: float,
    window: int,
    chunk: int,
) -> _Fields:
    sizes = (state.shape[-1], chunk * action.shape[-1], stop - first)
    return _empty_batch(state, uniform_4B.shape[1], sizes)


def relabel(
    uniform_4B: Tensor,
    position: Tensor,
    ring: Ring,
    *,
    goal_slice: tuple[int, int],
    discount: float,
    window: int,
    chunk: int,
) -> RelabeledBatch:
    """See `torch_crl.kernels.relabel.relabel`."""
    require_device(uniform_4B, "relabel")
    for name, x in {"uniform": uniform_4B, "position": position, **ring._asdict()}.items():
        if x.device != uniform_4B.device or not x.is_contiguous():
            raise ValueError(
                f"{name} is on {x.device} with strides {x.stride()}; the triton implementation "
                f"takes contiguous tensors, all on {uniform_4B.device}"
            )
    return RelabeledBatch(
        *relabel_forward(uniform_4B, position, *ring, *goal_slice, discount, window, chunk)
    )
