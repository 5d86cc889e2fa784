"""`relabel` for one CPU core: one loop over the batch, with the very numbers of the definition."""

import math

import numpy as np
import torch
from torch import Tensor

from torch_crl.kernels.cpu import array, entry, products, require_cpu
from torch_crl.kernels.relabel.reference import RelabeledBatch, Ring


@entry
@products
def _draw(
    uniform, newest, state, action, achieved, trajectory, last_row, first, discount, window, chunk,
    states, actions, goals, whole, columns, row_of, last_of,
):  # fmt: skip
    rows, num_envs = trajectory.shape
    size = action.shape[2]
    log_discount = math.log(discount)
    filled = min(newest, rows)
    reach = min(filled, window) if window else filled
    for i in range(len(row_of)):
        column = np.int64(uniform[0, i] * num_envs)
        start, end = newest - filled, newest - 1
        if window:
            start += np.int64(uniform[3, i] * max(filled - reach, 1))
            end = start + reach - 1
            row = start + np.int64(uniform[1, i] * (reach - 1))
        else:
            row = start + np.int64(uniform[1, i] * filled)
        slot = row % rows
        number = trajectory[slot, column]
        last = np.int64(last_row[number % rows, column])
        if window:
            last = min(last, end)
        horizon = last - row + (0 if window else 1)
        mass = -math.expm1(horizon * log_discount)
        steps = 1 + np.int64(math.floor(math.log1p(-uniform[2, i] * mass) / log_discount))
        steps = min(steps, horizon)

        for j in range(state.shape[2]):
            states[i, j] = state[slot, column, j]
        for j in range(goals.shape[1]):
            if window:
                goals[i, j] = state[(row + steps) % rows, column, first + j]
            elif steps > 0:
                goals[i, j] = achieved[(row + steps - 1) % rows, column, j]
            else:
                goals[i, j] = state[slot, column, first + j]
        inside = True
        for k in range(chunk):
            later = (row + k) % rows
            inside = row + k <= end and trajectory[later, column] == number
            for j in range(size):
                actions[i, k * size + j] = action[later, column, j] if inside else 0
        whole[i] = inside
        columns[i], row_of[i], last_of[i] = column, row, last


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
    """See `torch_crl.kernels.relabel.relabel`; the numbers of the ring must be fp32."""
    require_cpu("relabel", ring.state, ring.action, ring.achieved)
    batch = uniform_4B.shape[1]
    sizes = (ring.state.shape[-1],), (chunk * ring.action.shape[-1],), (ring.achieved.shape[-1],)
    parts = [torch.empty(batch, *size) for size in (*sizes, ())]
    drawn = RelabeledBatch(*parts, *torch.empty(3, batch, dtype=torch.int64).unbind())
    _draw(
        *(array(uniform_4B), int(position), *map(array, ring), goal_slice[0]),
        *(discount, window, chunk, *map(array, drawn)),
    )
    return drawn
