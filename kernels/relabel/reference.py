"""The definition of `relabel` in plain torch.

B batch, N envs, S state, G goal, A action, H chunk. Rows are numbered from 0 for ever; row r is
in slot r % rows of the ring.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Ring(NamedTuple):
    """The tensors of a replay, [rows, N, ...], all on one device."""

    state: Tensor
    """[rows, N, S] in float32 or bfloat16."""
    action: Tensor
    """[rows, N, A], of the state's dtype."""
    achieved: Tensor
    """[rows, N, G], of the state's dtype: the achieved goal after each step."""
    trajectory: Tensor
    """[rows, N] int32: the number of each step's trajectory, counted upwards in each column."""
    last_row: Tensor
    """[rows, N] int32: at [i % rows, n], the newest row of trajectory i of column n. Without a
    window, a row in which the physics diverged does not count, since nothing was achieved after it;
    the entry is then the row before."""


class RelabeledBatch(NamedTuple):
    """Drawn steps. What is not said to be int64 is float32."""

    state: Tensor
    """[B, S]"""
    action: Tensor
    """[B, H A]: the actions of H consecutive steps; 0 where the trajectory has ended before."""
    goal: Tensor
    """[B, G]"""
    whole_B: Tensor
    """1 if all H steps are in the trajectory, and in its window; else 0."""
    column_B: Tensor
    """int64: the env of the step."""
    row_B: Tensor
    """int64: the row of the step."""
    last_B: Tensor
    """int64: `last_row` of its trajectory, or the last row of the window if that is earlier."""


def truncated_geometric(uniform_B: Tensor, horizon_B: Tensor, *, discount: float) -> Tensor:
    """Steps into the future, P(k) proportional to discount**k on 1..horizon; 0 for horizon 0.

    Args:
        uniform_B: float draws from U[0, 1).
        horizon_B: int64 number of goals to choose from, all in the future of the same trajectory.
        discount: discount factor in (0, 1).

    Returns:
        int64 [B], from the inverse of the cumulative distribution function in closed form, so
        that no weights of pairs of rows need to be computed.
    """
    log_discount = math.log(discount)
    # 1 - discount**horizon, without cancellation for a discount near one.
    mass_B = -torch.expm1(horizon_B.to(uniform_B.dtype) * log_discount)
    steps_B = 1 + torch.floor(torch.log1p(-uniform_B * mass_B) / log_discount).long()
    return torch.minimum(steps_B, horizon_B)


def multiple_ahead(
    uniform_B: Tensor, row_B: Tensor, last_B: Tensor, *, every: int, discount: float
) -> tuple[Tensor, Tensor]:
    """A row ahead of each step among those whose number is a multiple of `every`.

    The law is that of all rows, P(row + k) proportional to discount**k, given that the row is such
    a multiple, is above `row_B` and is no later than `last_B`. As consecutive multiples differ by
    `every`, it is a truncated geometric law again, in closed form.

    Returns:
        int64 [B], and bool [B]: whether there is such a row. Where there is none, the row is the
        last multiple that is not above `row_B`.
    """
    before_B = row_B // every
    count_B = (last_B // every - before_B).clamp(min=0)
    steps_B = truncated_geometric(uniform_B, count_B, discount=discount**every)
    return (before_B + steps_B) * every, count_B > 0


def slots_of_chunks(
    ring: Ring, row_B: Tensor, column_B: Tensor, newest_B1: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """The slots [B, H] of H consecutive rows, and whether each is in the first one's trajectory.

    `newest_B1` is the last row that counts, [B, 1] or a scalar; the slots of later ones are its.
    """
    later_BH = row_B[:, None] + torch.arange(chunk, device=row_B.device)
    slot_BH = torch.minimum(later_BH, newest_B1) % len(ring.trajectory)
    trajectory_BH = ring.trajectory[slot_BH, column_B[:, None]]
    inside_BH = (trajectory_BH == trajectory_BH[:, :1]) & (later_BH <= newest_B1)
    return slot_BH, inside_BH


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
    """See `torch_crl.kernels.relabel.relabel`; nothing is read on the host."""
    rows, num_envs = ring.trajectory.shape
    filled = position.clamp(max=rows)
    oldest = position - filled
    column_B = (uniform_4B[0] * num_envs).long()
    end_B = None
    if window:
        reach = filled.clamp(max=window)
        first_B = oldest + (uniform_4B[3] * (filled - reach).clamp(min=1)).long()
        row_B = first_B + (uniform_4B[1] * (reach - 1)).long()
        end_B = first_B + reach - 1
    else:
        row_B = oldest + (uniform_4B[1] * filled).long()
    slot_B = row_B % rows
    key_B = ring.trajectory[slot_B, column_B].long() % rows
    last_B = ring.last_row[key_B, column_B].long()
    if end_B is not None:
        last_B = torch.minimum(last_B, end_B)
    horizon_B = last_B - row_B + (0 if window else 1)
    steps_B = truncated_geometric(uniform_4B[2], horizon_B, discount=discount)
    future_B = row_B + steps_B
    first, stop = goal_slice
    if window:
        goal_BG = ring.state[future_B % rows, column_B, first:stop]
    else:
        own_BG = ring.state[slot_B, column_B, first:stop]
        reached_BG = ring.achieved[(future_B - 1) % rows, column_B]
        goal_BG = torch.where((steps_B > 0)[:, None], reached_BG, own_BG)
    action_BA, whole_B = ring.action[slot_B, column_B].float(), torch.ones_like(uniform_4B[0])
    if chunk > 1:
        newest_B1 = position - 1 if end_B is None else end_B[:, None]
        slot_BH, inside_BH = slots_of_chunks(ring, row_B, column_B, newest_B1, chunk=chunk)
        action_BHA = ring.action[slot_BH, column_B[:, None]].float()
        action_BA = (action_BHA * inside_BH[..., None]).flatten(1)
        whole_B = inside_BH[:, -1]
    return RelabeledBatch(
        ring.state[slot_B, column_B].float(),
        action_BA,
        goal_BG.float(),
        whole_B.float(),
        column_B,
        row_B,
        last_B,
    )
