"""Pure functions of the time until a goal is reached, as a distribution over K steps.

A hazard is the probability of arriving in a step if one has not arrived before: p0 = sigmoid(l0)
for being there already, h_k = sigmoid(l_k) for k = 1 ... K - 1. (h_0 is part of the survival
function as published, though no arrival is ever in step 0.) Sources: the code of arXiv 2605.31273
(hazards) and of arXiv 2609.36238 (distances, occupancy).

B batch, K steps, W window of steps that are looked at, O bins of offsets.
"""

import itertools
import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from torch_crl.agent.objectives.objective import Distance


def first_hit(inside_BW: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a row is ever inside (bool [B]), and the first offset where (int64), W if never."""
    window = inside_BW.shape[1]
    offset_W = torch.arange(window, device=inside_BW.device)
    time_B = torch.where(inside_BW, offset_W, window).amin(1)
    return time_B < window, time_B


def log_survival(hazard_BK: Tensor) -> Tensor:
    """Sum over j < k of log(1 - h_j) from the hazards' logits, [B, K + 1] for k = 0 ... K."""
    return functional.pad(functional.logsigmoid(-hazard_BK).cumsum(1), (1, 0))


def hazard_nll(
    start_B: Tensor,
    hazard_BK: Tensor,
    *,
    event_B: Tensor,
    time_B: Tensor,
    censor_B: Tensor,
    implementation: Literal["reference", "numba", "triton"] = "reference",
) -> Tensor:
    """Negative log-likelihood [B] of arriving at `time_B`, or of not having arrived.

    Args:
        start_B, hazard_BK: logits of being there already, and of the hazards.
        event_B: bool: whether the row arrives.
        time_B: int64: when, 0 for being there already; below K where there is an event.
        censor_B: int64 in 0 ... K: steps seen without an arrival, where there is none.
        implementation: `triton` is one kernel each way; all others are plain torch.
    """
    if implementation == "triton":
        # Imported here, so that Triton is needed only if its kernels are requested.
        from torch_crl.kernels.hazards import kernel

        labels = {"event_B": event_B, "time_B": time_B, "censor_B": censor_B}
        return kernel.hazard_nll(start_B, hazard_BK, **labels)
    before_BK = log_survival(hazard_BK)
    time_B = time_B.clamp(max=hazard_BK.shape[1] - 1)
    steps_B = torch.where(event_B, time_B, censor_B)
    survived_B = before_BK.gather(1, steps_B[:, None])[:, 0]
    arrival_B = functional.logsigmoid(hazard_BK.gather(1, time_B[:, None])[:, 0])
    later_B = functional.logsigmoid(-start_B) + survived_B + torch.where(event_B, arrival_B, 0.0)
    return -torch.where(event_B & (time_B == 0), functional.logsigmoid(start_B), later_B)


def hazard_value(
    start_B: Tensor,
    hazard_BK: Tensor,
    *,
    discount: float,
    implementation: Literal["reference", "numba", "triton"] = "reference",
) -> Tensor:
    """Minus the expected discounted number of steps before the arrival, [B].

    V = -sum_{k<K} discount^k S_k with S_k = (1 - p0) prod_{j<k} (1 - h_j). The implementation
    `triton` is one kernel each way; all others are plain torch.
    """
    if implementation == "triton":
        # Imported here, so that Triton is needed only if its kernels are requested.
        from torch_crl.kernels.hazards import kernel

        return kernel.hazard_value(start_B, hazard_BK, discount=discount)
    survival_BK = torch.exp(
        functional.logsigmoid(-start_B)[:, None] + log_survival(hazard_BK)[:, :-1]
    )
    step_K = torch.arange(hazard_BK.shape[1], device=hazard_BK.device, dtype=survival_BK.dtype)
    return -(survival_BK @ torch.exp(step_K * math.log(discount)))


def bin_discounts(edges: list[int], *, discount: float) -> list[float]:
    """Sum of discount^offset over the offsets of each bin."""
    return [
        discount**first * -math.expm1((stop - first) * math.log(discount)) / (1.0 - discount)
        for first, stop in itertools.pairwise(edges)
    ]


def occupancy_labels(
    distance_BW: Tensor, *, horizon_B: Tensor, failed_B: Tensor, radius: float, edge_P: Tensor
) -> tuple[Tensor, Tensor]:
    """How much of each bin is spent at the goal [B, O], and whether the bin was seen (bool).

    "At the goal" is the mean of being within the radius, half and a quarter of it. Offsets after
    `horizon_B` are outside if the trajectory failed, and else unseen. `edge_P` are the int64 edges
    of the bins.
    """
    window = distance_BW.shape[1]
    offset_W = torch.arange(window, device=distance_BW.device)
    levels = [(distance_BW <= radius / part).float() for part in (1.0, 2.0, 4.0)]
    inside_BW = torch.stack(levels).mean(0) * (offset_W <= horizon_B[:, None])
    total_BW = functional.pad(inside_BW.cumsum(1), (1, 0))
    inside_BO = total_BW[:, edge_P[1:]] - total_BW[:, edge_P[:-1]]
    seen_B1 = torch.where(failed_B, window, horizon_B + 1)[:, None]
    count_BO = (torch.minimum(seen_B1, edge_P[1:]) - edge_P[:-1]).clamp_min(0)
    return inside_BO / count_BO.clamp_min(1), count_BO > 0


def occupancy_loss(logit_BO: Tensor, *, occupied_BO: Tensor, seen_BO: Tensor) -> Tensor:
    """Mean cross-entropy over the bins that were seen."""
    each_BO = functional.binary_cross_entropy_with_logits(logit_BO, occupied_BO, reduction="none")
    return (each_BO * seen_BO).sum() / seen_BO.sum().clamp_min(1)


def pair_distances(phi_BR: Tensor, psi_BR: Tensor) -> Tensor:
    """Euclidean distances of all pairs of rows, [B, B].

    Those of equal rows, which may be very small, are computed from the difference itself.
    """
    # |x|^2 + |y|^2 - 2 x.y cancels if x and y are far from the origin; distances do not change
    # under a shift.
    offset_R = psi_BR.mean(0).detach()
    x_BR, y_BR = phi_BR - offset_R, psi_BR - offset_R
    squares_BB = x_BR.square().sum(1)[:, None] + y_BR.square().sum(1) - 2 * x_BR @ y_BR.T
    own_B1 = (phi_BR - psi_BR).square().sum(1)[:, None]
    on_diagonal_BB = torch.eye(len(phi_BR), dtype=torch.bool, device=phi_BR.device)
    squares_BB = torch.where(on_diagonal_BB, own_B1, squares_BB.clamp_min(1e-6))
    return (squares_BB + 1e-12).sqrt()


def time_distance(
    distance_B: Tensor, time_B: Tensor, counts_B: Tensor, *, per_step: float
) -> Tensor:
    """Huber loss between distances and `per_step` times the time to the goal.

    A mean over the rows in `counts_B` that arrive after at least one step.
    """
    counts_B = (counts_B & (time_B >= 1)).float()
    each_B = functional.huber_loss(distance_B, per_step * time_B.float(), reduction="none")
    return (each_B * counts_B).sum() / counts_B.sum().clamp_min(1)


def distinct(goal_BG: Tensor, *, distance: Distance, radius: float) -> Tensor:
    """bool [B, B]: whether two goals are more than `radius` apart, by a task's distance."""
    pair_BBG = goal_BG.expand(len(goal_BG), *goal_BG.shape)
    one, other = pair_BBG.flatten(0, 1), pair_BBG.transpose(0, 1).flatten(0, 1)
    return (distance(one, other) > radius).view(pair_BBG.shape[:2])


def separation(
    distance_BB: Tensor, distinct_BB: Tensor, *, missed_B: Tensor, least: float
) -> Tensor:
    """Mean shortfall, below `least`, of the distances that should be large.

    Those are the pairs of different rows whose goals are `distinct`, and the own goals of the rows
    in `missed_B`, which did not reach them.
    """
    own_BB = torch.eye(len(distinct_BB), dtype=torch.bool, device=distinct_BB.device)
    counts_BB = (distinct_BB & ~own_BB) | (own_BB & missed_B[:, None])
    shortfall_BB = functional.relu(least - distance_BB) * counts_BB
    return shortfall_BB.sum() / counts_BB.sum().clamp_min(1)
