"""When the steps of a batch arrive at their goals, read off the ring of trajectories.

B batch, W window of offsets, G goal, O bins of offsets and P their edges. Offset 0 is a step's own
state, and offset k the state k steps later, up to the final state of a trajectory that ended.
"""

import torch
from torch import Tensor

from torch_crl.agent.objectives.objective import HitLabels
from torch_crl.agent.objectives.time_to_goal import first_hit, occupancy_labels
from torch_crl.kernels.relabel import RelabeledBatch, Ring


def other_goals(
    drawn: RelabeledBatch,
    ring: Ring,
    *,
    uniform_3B: Tensor,
    filled: Tensor,
    oldest: Tensor,
    goal_slice: tuple[int, int],
    labels: HitLabels,
) -> Tensor:
    """Goals [B, G]: the drawn ones from the future, the steps' own, or those of random steps.

    `uniform_3B` are draws from [0, 1): for the kind of goal, and for row and column of a random
    step. `filled` and `oldest` are the number of rows in the ring and the first of them.
    """
    rows, num_envs = ring.trajectory.shape
    first, stop = goal_slice
    own_BG = ring.state[drawn.row_B % rows, drawn.column_B, first:stop].float()
    row_B = oldest + (uniform_3B[1] * filled).long()
    column_B = (uniform_3B[2] * num_envs).long()
    random_BG = ring.state[row_B % rows, column_B, first:stop].float()
    kind_B1 = uniform_3B[0][:, None]
    past_BG = torch.where(kind_B1 < labels.future + labels.own, own_BG, random_BG)
    return torch.where(kind_B1 < labels.future, drawn.goal, past_BG)


def hit_labels(
    drawn: RelabeledBatch,
    goal_BG: Tensor,
    ring: Ring,
    *,
    failed_B: Tensor,
    goal_slice: tuple[int, int],
    labels: HitLabels,
    edge_P: Tensor,
) -> dict[str, Tensor]:
    """Labels of the batch, for goals [B, G] that need not be those that were drawn.

    Returns `event` [B] (bool: the step arrives within the window), `time` [B] (int64: the offset of
    its first arrival), `censor` [B] (int64: the number of offsets seen without one), `failed` [B]
    (bool: the trajectory failed within the window), and `occupied` and `seen` [B, O] if there are
    bins, whose int64 edges are `edge_P`.
    """
    rows, window = len(ring.trajectory), labels.window
    first, stop = goal_slice
    # The offset of the last goal that the trajectory achieved (so far).
    horizon_B = drawn.last_B + 1 - drawn.row_B
    offset_W = torch.arange(window, device=goal_BG.device)
    known_BW = offset_W <= horizon_B[:, None]
    row_BW = drawn.row_B[:, None] + torch.where(known_BW, offset_W, 0)
    after_BWG = ring.achieved[(row_BW - 1) % rows, drawn.column_B[:, None]].float()
    own_BG = ring.state[drawn.row_B % rows, drawn.column_B, first:stop].float()
    reached_BWG = torch.where((offset_W > 0)[:, None], after_BWG, own_BG[:, None])
    distance_BW = labels.distance(
        reached_BWG.flatten(0, 1), goal_BG[:, None].expand_as(reached_BWG).flatten(0, 1)
    ).view_as(known_BW)
    event_B, time_B = first_hit((distance_BW < labels.radius) & known_BW)
    failed_B = failed_B & (horizon_B + 1 < window)
    seen_B = (horizon_B + 1).clamp(max=window)
    never_B = failed_B | labels.never
    found = {
        "event": event_B,
        "time": time_B,
        # Who failed will never arrive; of the others it is known for as long as they were seen.
        "censor": torch.where(never_B, window, seen_B),
        "failed": failed_B,
    }
    if labels.edges:
        found["occupied"], found["seen"] = occupancy_labels(
            torch.where(known_BW, distance_BW, torch.inf),
            horizon_B=seen_B - 1,
            failed_B=failed_B,
            radius=labels.radius,
            edge_P=edge_P,
        )
    return found
