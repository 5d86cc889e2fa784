"""Hindsight batches: steps drawn from a ring of trajectories, each with a goal of its future."""

from typing import Any

import torch
from torch import Tensor

from torch_crl.kernels.relabel import reference
from torch_crl.kernels.relabel.reference import RelabeledBatch as RelabeledBatch
from torch_crl.kernels.relabel.reference import Ring as Ring
from torch_crl.kernels.relabel.reference import multiple_ahead as multiple_ahead
from torch_crl.kernels.relabel.reference import slots_of_chunks as slots_of_chunks
from torch_crl.kernels.relabel.reference import truncated_geometric as truncated_geometric

IMPLEMENTATIONS = ("reference", "numba", "triton")


def relabel(
    uniform_4B: Tensor,
    position: Tensor,
    ring: Ring,
    *,
    goal_slice: tuple[int, int],
    discount: float,
    window: int = 0,
    chunk: int = 1,
    implementation: str,
) -> RelabeledBatch:
    """Draw steps uniformly from the ring, each with a goal from its future.

    The goal of a step is the one that its trajectory had achieved `truncated_geometric` steps after
    the step's state: 1 means after the step itself, the largest value at the end of the trajectory.
    If the physics diverged in the step, nothing was achieved after it, and its goal is that of its
    own state.

    With a window, which is the published procedure, goals are taken from the states in the ring.
    The state after the last step of a trajectory is not in the ring, so it is never a goal; the
    newest row has no later state and is not drawn.

    Args:
        uniform_4B: float64 draws from U[0, 1): for the column, the row, the goal and the window.
        position: int64 scalar on the device, the number of rows written so far; at least 1, or
            2 with a window.
        ring: the tensors of the replay.
        goal_slice: first and stop index of the achieved goal in a state.
        discount: discount factor in (0, 1).
        window: if above 0, each step is drawn from a window of that many rows (at least 2), and
            its goal from the same window.
        chunk: number H of consecutive actions, from the step's own on.
        implementation: "reference" is plain torch; "numba" is one loop on one CPU core, for
            float32; "triton" is one kernel, on a CUDA device or under Triton's interpreter.

    Returns:
        See `RelabeledBatch`. No value is read on the host, and there is no gradient.

    Raises:
        ValueError: For shapes that do not match, an unknown name, or tensors that the
            requested implementation does not take.
    """
    if uniform_4B.ndim != 2 or len(uniform_4B) != 4 or uniform_4B.dtype != torch.float64:
        raise ValueError(
            f"uniform is {tuple(uniform_4B.shape)} of {uniform_4B.dtype}; it must be [4, B] of "
            "torch.float64: in float32, late rows of a long replay would not be drawn"
        )
    first, stop = goal_slice
    if not 0 <= first < stop <= ring.state.shape[-1]:
        raise ValueError(
            f"the goal is [{first}:{stop}] of a state of {ring.state.shape[-1]} numbers; it must "
            "be a slice of at least one of them, with 0 <= first < stop"
        )
    if ring.achieved.shape[-1] != stop - first:
        raise ValueError(
            f"the achieved goals have {ring.achieved.shape[-1]} numbers; the goal [{first}:{stop}] "
            f"of a state has {stop - first}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    draws: dict[str, Any] = {"discount": discount, "window": window, "chunk": chunk}
    if implementation == "reference":
        return reference.relabel(uniform_4B, position, ring, goal_slice=goal_slice, **draws)
    if implementation == "numba":
        # Imported here, so that numba is needed only if its kernels are requested.
        from torch_crl.kernels.relabel import cpu

        return cpu.relabel(uniform_4B, position, ring, goal_slice=goal_slice, **draws)
    if implementation != "triton":
        raise ValueError(
            f"implementation {implementation!r} is unknown; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    # Imported here, so that Triton is needed only if its kernels are requested.
    from torch_crl.kernels.relabel import kernel

    return kernel.relabel(uniform_4B, position, ring, goal_slice=goal_slice, **draws)
