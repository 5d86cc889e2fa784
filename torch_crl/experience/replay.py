"""Trajectory ring on the training device, and the hindsight goals drawn from it.

    column (env)  0   1   2            `rows` rows of N columns; row r lives in slot r % rows.
    slot 0      [r=6 r=6 r=6]          Rows are numbered from 0 for ever; the newest is
    slot 1      [r=7 r=7 r=7] newest   `next_row` - 1. Here rows = 5: slots 2-4 hold rows 3-5
    slot 2      [r=3 r=3 r=3] oldest   of the pass before, and slot 0 has been written over.
    slot 3      [r=4 r=4 r=4]
    slot 4      [r=5 r=5 r=5]

A row is one control step of every env: the state acted on, the action, and the goal achieved
after it. That one is also part of the next row's state, but for the last step of an episode, after
which the next row begins another:

    state[r] --action[r]--> achieved[r] = goal of state[r + 1] --action[r + 1]--> achieved[r + 1]
                            a goal 1 step ahead of row r                          2 steps ahead

A column's trajectories are numbered upwards, so at most `rows` of them are in the ring and their
numbers differ modulo `rows`: `last_row` holds, for each, the newest row that it reaches. With it
the horizon of a hindsight goal is one subtraction: last_row - r + 1.

B batch, N envs, S state, G goal, A action.
"""

from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from torch_crl.kernels.relabel import Ring, relabel


class Transition(NamedTuple):
    """One control step of N envs, as the replay takes it."""

    state: Tensor
    """[N, S], which was acted on."""
    action: Tensor
    """[N, A]"""
    achieved: Tensor
    """[N, G], the achieved goal after the step; of the last state where the episode ended."""
    trajectory: Tensor
    """[N] whole numbers: which trajectory of its env the step is in, counted upwards."""
    unstable: Tensor
    """bool [N]: physics diverged in the step, so that nothing was achieved after it."""


class Replay:
    """The newest `rows` steps of N envs.

    `storage` is a TensorDict of [rows, N, ...] tensors: `state`, `action`, the goal `achieved`
    after the step, its `trajectory`, and `last_row` of each trajectory.
    """

    def __init__(
        self,
        *,
        rows: int,
        num_envs: int,
        state_size: int,
        action_size: int,
        goal_slice: tuple[int, int],
        window: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        implementation: str = "reference",
    ) -> None:
        """Reserve all memory now.

        Args:
            window: above 0, draw by the published procedure, in windows of that many rows.
            dtype: float32, or bfloat16 for half the bytes.
            implementation: of the draws, see `torch_crl.kernels.relabel.relabel`.
        """
        self.rows, self.num_envs = rows, num_envs
        self.goal_slice, self.window = goal_slice, window
        self.device = torch.device(device)
        self.implementation = implementation

        def ring(*shape: int, of: torch.dtype) -> Tensor:
            return torch.zeros(rows, num_envs, *shape, dtype=of, device=device)

        self.storage = TensorDict(
            {
                "state": ring(state_size, of=dtype),
                "action": ring(action_size, of=dtype),
                "achieved": ring(goal_slice[1] - goal_slice[0], of=dtype),
                "trajectory": ring(of=torch.int32),
                "last_row": ring(of=torch.int32),
            },
            batch_size=[rows, num_envs],
        )
        self.next_row = 0
        # The same on the device, for what a CUDA graph repeats while the ring moves on.
        self._position = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def filled(self) -> int:
        """Rows that hold data."""
        return min(self.next_row, self.rows)

    def add(self, step: Transition) -> None:
        """Write one step of every env over the oldest one."""
        self.write(step)
        self.advance()

    def advance(self) -> None:
        """What `add` does on the host, for a caller whose CUDA graph holds the `write`."""
        self.next_row += 1

    def write(self, step: Transition) -> None:
        """What `add` does on the device."""
        slot_1 = (self._position % self.rows)[None]
        for name in ("state", "action", "achieved", "trajectory"):
            ring, part = self.storage[name], getattr(step, name)
            ring.index_copy_(0, slot_1, part.to(ring.device, ring.dtype)[None])
        key_1N = (step.trajectory.to(self.device, torch.int64) % self.rows)[None]
        row_1N = self._position.int().expand(1, self.num_envs)
        if not self.window:
            # A step in which physics diverged achieved nothing; its state, a window's goal, stays.
            row_1N = row_1N - step.unstable.to(self.device, torch.int32)
        self.storage["last_row"].scatter_(0, key_1N, row_1N)
        self._position += 1

    def sample(self, batch_size: int, *, discount: float, generator: Generator) -> TensorDict:
        """Steps drawn uniformly from all rows, each with a goal from its future.

        The goal of a step was achieved `truncated_geometric` steps after its state, in the same
        trajectory; the state's own goal stands in where physics diverged in the step. With a
        window each step is drawn in one, and its goal from the later states in it.

        Returns:
            TensorDict of float32 `state` [B, S], `action` [B, A], `goal` [B, G].
        """
        needed = 2 if self.window else 1
        if self.filled < needed:
            raise ValueError(f"the replay holds {self.filled} rows; a goal needs {needed}")
        # Nothing below is a number of the host: the ring's position is read on the device.
        uniform_4B = torch.rand(
            4, batch_size, generator=generator, device=self.device, dtype=torch.float64
        )
        state_BS, action_BA, goal_BG = relabel(
            uniform_4B,
            self._position,
            Ring(**self.tensors()),
            goal_slice=self.goal_slice,
            discount=discount,
            window=self.window,
            implementation=self.implementation,
        )
        return TensorDict(
            {"state": state_BS, "action": action_BA, "goal": goal_BG}, batch_size=[batch_size]
        )

    def forget_after(self, row: int) -> None:
        """Go back to where `row` rows were written. What was written over is lost until as many
        rows have been added again, and nothing may be drawn before.
        """
        self.next_row = row
        self._position.fill_(row)
        self.storage["last_row"].clamp_(max=row - 1)

    def check_rows(self, tensors: dict[str, Tensor]) -> None:
        """Raise ValueError if what `state_dict` returned, of the right shapes, is no ring: kernels
        look up rows by these numbers.
        """
        next_row, trajectory = int(tensors["next_row"]), tensors["trajectory"].long()
        newest = tensors["last_row"].long()
        slots = torch.arange(len(trajectory))
        rows = next_row - 1 - (next_row - 1 - slots) % self.rows
        reached = newest.gather(0, trajectory % self.rows)
        # A step in which physics diverged is not reached by its own trajectory.
        if trajectory.lt(0).any() or newest.ge(max(1, next_row)).any():
            raise ValueError("its replay has rows that were never written")
        if (reached < rows[:, None] - 1).any():
            raise ValueError("its replay has rows behind the end of their trajectory")

    @property
    def growing(self) -> list[str]:
        """Names of tensors of which `state_dict` holds the filled rows alone."""
        return [name for name in self.tensors() if name != "last_row"]

    def state_dict(self) -> dict[str, Tensor]:
        """The filled part of the ring and its position."""
        tensors = {name: tensor[: self.filled] for name, tensor in self.tensors().items()}
        # Numbers of trajectories point anywhere into `last_row`, filled or not.
        tensors["last_row"] = self.storage["last_row"]
        return tensors | {"next_row": torch.tensor(self.next_row)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, into a replay of equal sizes."""
        self.next_row = int(tensors["next_row"])
        self._position.fill_(self.next_row)
        for name, tensor in self.tensors().items():
            tensor[: len(tensors[name])].copy_(tensors[name])

    def tensors(self) -> dict[str, Tensor]:
        """The storage by name."""
        return {str(name): self.storage[name] for name in self.storage.keys()}  # noqa: SIM118
