"""Trajectory ring on the training device, and the hindsight goals drawn from it.

    column (env)  0   1   2            `rows` rows of N columns; row r lives in slot r % rows.
    slot 0      [r=6 r=6 r=6]          Rows are numbered from 0 for ever; the newest is
    slot 1      [r=7 r=7 r=7] newest   `next_row` - 1. Here rows = 5: slots 2-4 hold rows 3-5
    slot 2      [r=3 r=3 r=3] oldest   of the pass before, and slot 0 has been written over.
    slot 3      [r=4 r=4 r=4]
    slot 4      [r=5 r=5 r=5]

A column's trajectories are numbered upwards, so at most `rows` of them are in the ring and their
numbers differ modulo `rows`: `last_row` holds, for each, the newest row that it reaches. With it
the horizon of a hindsight goal is one subtraction.

B batch, N envs, S state, G goal, A action.
"""

import math

import torch
from tensordict import TensorDict
from torch import Generator, Tensor


def truncated_geometric(uniform_B: Tensor, horizon_B: Tensor, *, discount: float) -> Tensor:
    """Steps into the future with P(k) proportional to discount**k on 1..horizon; 0 where that is 0.

    Args:
        uniform_B: float draws from U[0, 1).
        horizon_B: int64 number of later rows in the same trajectory.
        discount: in (0, 1).

    Returns:
        int64 [B]. The inverse of the distribution function in closed form, so no weight is ever
        computed for a pair of rows.
    """
    log_discount = math.log(discount)
    # 1 - discount**horizon, without cancellation for a discount near one.
    mass_B = -torch.expm1(horizon_B.to(uniform_B.dtype) * log_discount)
    steps_B = 1 + torch.floor(torch.log1p(-uniform_B * mass_B) / log_discount).long()
    return torch.minimum(steps_B, horizon_B)


class Replay:
    """The newest `rows` steps of N envs.

    `storage` is a TensorDict of [rows, N, ...] tensors: `state`, `action`, and the trajectory
    number of each step. Goals are not stored: a goal is a slice of a later state.
    """

    def __init__(
        self,
        *,
        rows: int,
        num_envs: int,
        state_size: int,
        action_size: int,
        goal_slice: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve all memory now. `dtype` is float32, or bfloat16 for half the bytes."""
        self.rows, self.num_envs = rows, num_envs
        self.goal_slice = goal_slice
        self.device = torch.device(device)

        def ring(*shape: int, of: torch.dtype) -> Tensor:
            return torch.zeros(rows, num_envs, *shape, dtype=of, device=device)

        self.storage = TensorDict(
            {
                "state": ring(state_size, of=dtype),
                "action": ring(action_size, of=dtype),
                "trajectory": ring(of=torch.int32),
                "last_row": ring(of=torch.int32),
            },
            batch_size=[rows, num_envs],
        )
        self.next_row = 0
        # For draws, which a CUDA graph repeats while the ring moves on.
        self._position = torch.zeros((), dtype=torch.int64, device=device)
        self._columns = torch.arange(num_envs, device=device)

    @property
    def filled(self) -> int:
        """Rows that hold data."""
        return min(self.next_row, self.rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage."""
        return sum(int(tensor.nbytes) for tensor in self.tensors().values())

    def add(self, state_NS: Tensor, action_NA: Tensor, trajectory_N: Tensor) -> None:
        """Write one step of every env over the oldest one."""
        slot = self.next_row % self.rows
        storage = self.storage
        storage["state"][slot].copy_(state_NS)
        storage["action"][slot].copy_(action_NA)
        storage["trajectory"][slot].copy_(trajectory_N)
        key_N = storage["trajectory"][slot].long() % self.rows
        storage["last_row"][key_N, self._columns] = self.next_row
        self._move_to(self.next_row + 1)

    def sample(
        self, batch_size: int, *, discount: float, generator: Generator, window: int = 0
    ) -> TensorDict:
        """Steps drawn uniformly from all but the newest row, each with a goal from its future.

        The goal of a step is achieved `truncated_geometric` steps later in its trajectory, or in
        the step itself where the ring holds no later one. A `window` above 0 draws each step in a
        window of that many rows which also ends the reach of goals: the reference's procedure.

        Returns:
            TensorDict of float32 `state` [B, S], `action` [B, A], `goal` [B, G].
        """
        if self.filled < 2:
            raise ValueError(f"the replay holds {self.filled} rows; a hindsight goal needs 2")
        # Nothing below is a number of the host: the ring's position is read on the device.
        uniform_4B = torch.rand(
            4, batch_size, generator=generator, device=self.device, dtype=torch.float64
        )
        filled = self._position.clamp(max=self.rows)
        oldest = self._position - filled
        column_B = (uniform_4B[0] * self.num_envs).long()
        end_B = None
        if window:
            reach = filled.clamp(max=window)
            first_B = oldest + (uniform_4B[3] * (filled - reach).clamp(min=1)).long()
            row_B = first_B + (uniform_4B[1] * (reach - 1)).long()
            end_B = first_B + reach - 1
        else:
            row_B = oldest + (uniform_4B[1] * (filled - 1)).long()
        return self._gather(row_B, column_B, end_B, uniform_4B[2], discount=discount)

    def _gather(
        self,
        row_B: Tensor,
        column_B: Tensor,
        end_B: Tensor | None,
        uniform_B: Tensor,
        *,
        discount: float,
    ) -> TensorDict:
        storage = self.storage
        slot_B = row_B % self.rows
        key_B = storage["trajectory"][slot_B, column_B].long() % self.rows
        last_B = storage["last_row"][key_B, column_B].long()
        if end_B is not None:
            last_B = torch.minimum(last_B, end_B)
        future_B = row_B + truncated_geometric(uniform_B, last_B - row_B, discount=discount)
        first, stop = self.goal_slice
        return TensorDict(
            {
                "state": storage["state"][slot_B, column_B].float(),
                "action": storage["action"][slot_B, column_B].float(),
                "goal": storage["state"][future_B % self.rows, column_B, first:stop].float(),
            },
            batch_size=row_B.shape,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The filled part of the ring and its position."""
        tensors = {name: tensor[: self.filled] for name, tensor in self.tensors().items()}
        # Numbers of trajectories point anywhere into `last_row`, filled or not.
        tensors["last_row"] = self.storage["last_row"]
        return tensors | {"next_row": torch.tensor(self.next_row)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, into a replay of equal sizes."""
        self._move_to(int(tensors["next_row"]))
        for name, tensor in self.tensors().items():
            tensor[: len(tensors[name])].copy_(tensors[name])

    def _move_to(self, row: int) -> None:
        self.next_row = row
        self._position.fill_(row)

    def tensors(self) -> dict[str, Tensor]:
        """The storage by name."""
        return {str(name): self.storage[name] for name in self.storage.keys()}  # noqa: SIM118
