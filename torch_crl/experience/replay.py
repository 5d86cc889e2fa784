"""Ring buffer of trajectories on the training device, and the hindsight goals drawn from it.

    column (env)  0   1   2            `rows` rows of N columns; row r is in slot r % rows.
    slot 0      [r=5 r=5 r=5]          Rows are numbered from 0 for ever; the newest is
    slot 1      [r=6 r=6 r=6]          `next_row` - 1. Here rows = 5: slots 3-4 hold rows 3-4
    slot 2      [r=7 r=7 r=7] newest   of the previous pass; slots 0-2 have been overwritten.
    slot 3      [r=3 r=3 r=3] oldest
    slot 4      [r=4 r=4 r=4]

A row is one control step of every env: the state before the step, the action, and the goal
achieved after the step. The achieved goal is also part of the next row's state, except after the
last step of an episode, where the next row begins a new episode:

    state[r] --action[r]--> achieved[r] = goal of state[r + 1] --action[r + 1]--> achieved[r + 1]
                            a goal 1 step ahead of row r                          2 steps ahead

The trajectories of a column are numbered consecutively. At most `rows` of them are in the ring, so
their numbers differ modulo `rows`, and `last_row` holds at that index the newest row of each. The
horizon of a hindsight goal is then one subtraction: last_row - r + 1.

B batch, N envs, S state, G goal, A action.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor

from torch_crl.agent.objectives.objective import HitLabels
from torch_crl.experience.labels import hit_labels, other_goals
from torch_crl.goals.space import GoalSpace, StateGoals
from torch_crl.kernels.relabel import RelabeledBatch, Ring, relabel, slots_of_chunks

if TYPE_CHECKING:
    from tensordict import TensorDict


class Transition(NamedTuple):
    """One control step of N envs, as the replay takes it."""

    state: Tensor
    """[N, S], the state before the step."""
    action: Tensor
    """[N, A]"""
    achieved: Tensor
    """[N, G], the goal achieved after the step; that of the final state if the episode ended."""
    trajectory: Tensor
    """[N] integers: the number of the step's trajectory, counted upwards in each env."""
    unstable: Tensor
    """bool [N]: whether the physics diverged in the step, so that no goal was achieved after it."""
    failed: Tensor | None = None
    """bool [N]: whether the step ended its episode by failing; None where nobody asks."""


def _table(parts: dict[str, Tensor], *lengths: int) -> "TensorDict":
    # Imported here, since it takes seconds, and training needs none.
    from tensordict import TensorDict

    return TensorDict(parts, batch_size=lengths)


# Tensors of the ring that are indexed by trajectories and not by rows.
_BY_TRAJECTORY = ("last_row", "failed")


def survival_mass(steps_B: Tensor, failed_B: Tensor, *, discount: float) -> Tensor:
    """Share of the discounted future that a failure `steps_B` later leaves (arXiv 2608.26571).

    Float32: 1 - discount^steps where `failed_B`, else 1.
    """
    mass_B = -torch.expm1(steps_B.double() * math.log(discount))
    return torch.where(failed_B, mass_B, 1.0).float()


def filled_up(action_BHA: Tensor, inside_BH: Tensor) -> Tensor:
    """Chunks [B, H A] with actions of whole chunks in the steps that are not `inside_BH`.

    Actions after the end of a trajectory have no effect. A critic that learns from such rows would
    take any mark of the end, such as zeros, for its cause. Without whole chunks, nothing changes.
    """
    whole_B = inside_BH[:, -1]
    # Whole chunks come first, and are taken one after the other.
    order_B = torch.argsort(whole_B.int(), descending=True, stable=True)
    number_B = torch.arange(len(whole_B), device=whole_B.device)
    other_B = order_B[number_B % whole_B.sum().clamp_min(1)]
    return torch.where(inside_BH[..., None], action_BHA, action_BHA[other_B]).flatten(1)


class Replay:
    """The newest `rows` steps of N envs."""

    def __init__(
        self,
        *,
        rows: int,
        num_envs: int,
        state_size: int,
        action_size: int,
        goal_slice: tuple[int, int],
        window: int = 0,
        failures: bool = False,
        labels: HitLabels | None = None,
        goals: GoalSpace | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        implementation: str = "reference",
    ) -> None:
        """Allocate all memory.

        Args:
            window: if above 0, draw by the published procedure, in windows of that many rows.
            failures: keep which trajectories ended by failing, without a window.
            labels: what `sample` tells about arrivals at goals; needs `failures`.
            goals: what a batch has of the goals that were drawn; by default the goals themselves.
            dtype: float32, or bfloat16 for half the bytes.
            implementation: that of `sample`; see `torch_crl.kernels.relabel.relabel`.
        """
        if failures and window:
            raise ValueError("failures are not kept together with a window, which may end earlier")
        if labels is not None and not failures:
            raise ValueError("labels of arrivals need to know failures; give failures=True")
        self.rows, self.num_envs = rows, num_envs
        self.goal_slice, self.window, self.failures = goal_slice, window, failures
        self.labels = labels
        self.goals = goals or StateGoals(goal_slice[1] - goal_slice[0])
        # Made here, since a captured CUDA graph cannot copy them to the device.
        self._edge_P = torch.tensor(labels.edges if labels else [], device=device)
        self.device = torch.device(device)
        self.implementation = implementation

        def ring(*shape: int, of: torch.dtype) -> Tensor:
            return torch.zeros(rows, num_envs, *shape, dtype=of, device=device)

        parts = {
            "state": ring(state_size, of=dtype),
            "action": ring(action_size, of=dtype),
            "achieved": ring(goal_slice[1] - goal_slice[0], of=dtype),
            "trajectory": ring(of=torch.int32),
            "last_row": ring(of=torch.int32),
        }
        if failures:
            # Like `last_row` at the number of the trajectory modulo `rows`.
            parts["failed"] = ring(of=torch.bool)
        self._tensors = parts
        self.next_row = 0
        # `next_row` on the device, where a captured CUDA graph can read and increment it.
        self._position = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def storage(self) -> "TensorDict":
        """The memory itself, as a TensorDict of [rows, N, ...] tensors.

        `state`, `action`, the goal `achieved` after the step, its `trajectory`, and `last_row` of
        each trajectory. With `failures` there is also `failed` of each trajectory, and the state
        after a failure is no goal.
        """
        return _table(self._tensors, self.rows, self.num_envs)

    @property
    def _ring(self) -> Ring:
        return Ring(**{name: self._tensors[name] for name in Ring._fields})

    @property
    def filled(self) -> int:
        """Number of rows that hold data."""
        return min(self.next_row, self.rows)

    def add(self, step: Transition) -> None:
        """Write one step of every env over the oldest one."""
        self.write(step)
        self.advance()

    def advance(self) -> None:
        """The part of `add` on the host, for a caller that captures `write` in a CUDA graph."""
        self.next_row += 1

    def write(self, step: Transition) -> None:
        """The part of `add` on the device."""
        slot_1 = (self._position % self.rows)[None]
        for name in ("state", "action", "achieved", "trajectory"):
            ring, part = self._tensors[name], getattr(step, name)
            ring.index_copy_(0, slot_1, part.to(ring.device, ring.dtype)[None])
        key_1N = (step.trajectory.to(self.device, torch.int64) % self.rows)[None]
        row_1N = self._position.int().expand(1, self.num_envs)
        if not self.window:
            # No goal was achieved after a step in which the physics diverged. With a window, goals
            # are states of the ring, and the state before such a step remains a valid goal.
            row_1N = row_1N - step.unstable.to(self.device, torch.int32)
        if self.failures and step.failed is not None:
            failed_1N = step.failed.to(self.device)[None]
            self._tensors["failed"].scatter_(0, key_1N, failed_1N)
            row_1N = row_1N - failed_1N.to(torch.int32)
        self._tensors["last_row"].scatter_(0, key_1N, row_1N)
        self._position += 1

    def sample(
        self, batch_size: int, *, discount: float, generator: Generator, chunk: int = 1
    ) -> "TensorDict":
        """What `draw` returns, as a TensorDict of shape [B]."""
        parts = self.draw(batch_size, discount=discount, generator=generator, chunk=chunk)
        return _table(parts, batch_size)

    def draw(
        self, batch_size: int, *, discount: float, generator: Generator, chunk: int = 1
    ) -> dict[str, Tensor]:
        """Draw steps uniformly from all rows, each with a goal from its future.

        The goal of a step was achieved `truncated_geometric` steps after its state, in the same
        trajectory. If the physics diverged in the step, the goal is that of its own state. With a
        window, each step is drawn from a random window of rows, and its goal from the later states
        in that window.

        With a chunk of H > 1, `action` holds the actions of H consecutive steps, and `whole` [B] is
        1 where all of them are in the trajectory, else 0. After the trajectory's end it holds 0, or
        with `failures` what `filled_up` returns.

        Returns:
            Float32 `state` [B, S], `action` [B, H A], and what the goal space tells
            of the goals: `goal` [B, F], and `place` [B] if there are places; `whole` [B] if
            H > 1, or if not every step has a goal in the goal space, then 0 for such steps;
            with `failures`, `survived` [B]: 1 - discount^L for a step that is L steps before the
            one in which its trajectory failed, 1 where it did not fail (so far); with `labels`,
            also what `hit_labels` returns, and goals that need not be of the future.
        """
        needed = 2 if self.window else 1
        if self.filled < needed:
            raise ValueError(f"the replay holds {self.filled} rows; a goal needs {needed}")
        # Nothing below depends on a number on the host: the ring's position is read on the device.
        uniform_4B = torch.rand(
            4, batch_size, generator=generator, device=self.device, dtype=torch.float64
        )
        drawn = relabel(
            uniform_4B,
            self._position,
            self._ring,
            goal_slice=self.goal_slice,
            discount=discount,
            window=self.window,
            chunk=chunk,
            implementation=self.implementation,
        )
        parts = {"state": drawn.state, "action": drawn.action, "goal": drawn.goal}
        if chunk > 1:
            parts["whole"] = drawn.whole_B
        if self.failures:
            failed_B = self._failed(drawn)
            # `last_row` of a failed trajectory is the one before the failure.
            steps_B = drawn.last_B + 1 - drawn.row_B
            if chunk > 1:
                parts["action"] = self._filled_up(drawn, chunk)
            parts["survived"] = survival_mass(steps_B, failed_B, discount=discount)
            if self.labels is not None:
                parts |= self._labelled(drawn, failed_B, self.labels, generator)
        told = self.goals.of_future(parts["goal"], drawn, generator)
        if "whole" in told and "whole" in parts:
            told["whole"] = told["whole"] * parts["whole"]
        return parts | told

    def _filled_up(self, drawn: RelabeledBatch, chunk: int) -> Tensor:
        _, inside_BH = slots_of_chunks(
            self._ring, drawn.row_B, drawn.column_B, self._position - 1, chunk=chunk
        )
        return filled_up(drawn.action.view(*inside_BH.shape, -1), inside_BH)

    def _failed(self, drawn: RelabeledBatch) -> Tensor:
        """bool [B]: whether the trajectories of these steps ended by failing."""
        trajectory_B = self._tensors["trajectory"][drawn.row_B % self.rows, drawn.column_B].long()
        failed_B: Tensor = self._tensors["failed"][trajectory_B % self.rows, drawn.column_B]
        return failed_B

    def _labelled(
        self, drawn: RelabeledBatch, failed_B: Tensor, labels: HitLabels, generator: Generator
    ) -> dict[str, Tensor]:
        """Goals and labels of these steps."""
        ring = self._ring
        uniform_3B = torch.rand(
            3, len(failed_B), generator=generator, device=self.device, dtype=torch.float64
        )
        filled = self._position.clamp(max=self.rows)
        goal_BG = other_goals(
            drawn,
            ring,
            uniform_3B=uniform_3B,
            filled=filled,
            oldest=self._position - filled,
            goal_slice=self.goal_slice,
            labels=labels,
        )
        found = hit_labels(
            drawn,
            goal_BG,
            ring,
            failed_B=failed_B,
            goal_slice=self.goal_slice,
            labels=labels,
            edge_P=self._edge_P,
        )
        return {"goal": goal_BG} | found

    def forget_after(self, row: int) -> None:
        """Return to the position at which `row` rows had been written.

        Rows that were overwritten since are lost, so `sample` may be called only after as many
        rows have been added again.
        """
        self.next_row = row
        self._position.fill_(row)
        if self.failures:
            # The last row of a failed trajectory is the one before the failure.
            self._tensors["failed"] &= self._tensors["last_row"] < row - 1
        self._tensors["last_row"].clamp_(max=row - 1)

    def check_rows(self, tensors: dict[str, Tensor]) -> None:
        """Raise ValueError if the tensors, from `state_dict`, hold invalid row numbers.

        Their shapes must be right already. Kernels index memory by these numbers, unchecked.
        """
        next_row, trajectory = int(tensors["next_row"]), tensors["trajectory"].long()
        newest = tensors["last_row"].long()
        slots = torch.arange(len(trajectory))
        rows = next_row - 1 - (next_row - 1 - slots) % self.rows
        reached = newest.gather(0, trajectory % self.rows)
        # A row in which the physics diverged may be one after the `last_row` of its trajectory.
        if trajectory.lt(0).any() or newest.ge(max(1, next_row)).any():
            raise ValueError("its replay has rows that were never written")
        if (reached < rows[:, None] - 1).any():
            raise ValueError("its replay has rows behind the end of their trajectory")

    @property
    def growing(self) -> list[str]:
        """Names of the tensors of which `state_dict` holds only the filled rows."""
        return [name for name in self.tensors() if name not in _BY_TRAJECTORY]

    def state_dict(self) -> dict[str, Tensor]:
        """The filled part of the ring and its position."""
        tensors = {name: tensor[: self.filled] for name, tensor in self.tensors().items()}
        # All of it, since trajectory numbers modulo `rows` index any entry, filled or not.
        tensors |= {name: self._tensors[name] for name in _BY_TRAJECTORY if name in tensors}
        return tensors | {"next_row": torch.tensor(self.next_row)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, into a replay of equal sizes."""
        self.next_row = int(tensors["next_row"])
        self._position.fill_(self.next_row)
        for name, tensor in self.tensors().items():
            tensor[: len(tensors[name])].copy_(tensors[name])

    def tensors(self) -> dict[str, Tensor]:
        """The storage by name, without a TensorDict around it."""
        return dict(self._tensors)
