"""Hindsight batches: from uniform draws to steps of a trajectory ring and goals of their future."""

import torch
from torch import Tensor

from torch_crl.kernels.relabel import reference
from torch_crl.kernels.relabel.reference import Ring as Ring
from torch_crl.kernels.relabel.reference import truncated_geometric as truncated_geometric

IMPLEMENTATIONS = ("reference", "triton")


def relabel(
    uniform_4B: Tensor,
    position: Tensor,
    ring: Ring,
    *,
    goal_slice: tuple[int, int],
    discount: float,
    window: int = 0,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps drawn uniformly from the ring, each with a goal from its future.

    The goal of a step is what its trajectory had achieved `truncated_geometric` steps after its
    state: after the step itself for one, at the end of the trajectory for the most. Where physics
    diverged in the step there is nothing after it, and its own state is its goal.

    With a window, which is the published procedure, goals are states of the ring: the one after
    the last step of a trajectory is not among them, and the newest row has none and is not drawn.

    Args:
        uniform_4B: float64 draws from U[0, 1): of the column, the row, the goal, the window.
        position: int64 scalar on the device, the number of rows written so far; at least 1, with
            a window 2.
        ring: what has been written.
        goal_slice: first and stop of the achieved goal in a state.
        discount: in (0, 1).
        window: above 0, each step is drawn in a window of that many rows (at least 2), which also
            ends the reach of goals.
        implementation: "reference" is plain torch; "triton" one kernel, on a CUDA device or under
            Triton's interpreter.

    Returns:
        float32 state [B, S], action [B, A] and goal [B, G]. Nothing is read on the host, and no
        gradient flows.

    Raises:
        ValueError: For shapes that do not match, an unknown name, or tensors that the asked
            implementation does not take.
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
    if implementation == "reference":
        return reference.relabel(
            uniform_4B, position, ring, goal_slice=goal_slice, discount=discount, window=window
        )
    if implementation != "triton":
        raise ValueError(
            f"implementation {implementation!r} is unknown; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    # Here, so that Triton is imported only where its kernels are asked for.
    from torch_crl.kernels.relabel import kernel

    return kernel.relabel(
        uniform_4B, position, ring, goal_slice=goal_slice, discount=discount, window=window
    )
