"""Losses of contrastive RL, and of behaviour cloning: pure functions of tensors.

f(s, a, g) = energy(phi(s, a), psi(g)) is high where g lies in the future of (s, a). E_ij is f of
the i-th (state, action) and the j-th goal; the diagonal holds the true pairs. The critic's losses
read only the PairScores of E, so the matrix itself need not be stored.

B batch, N blocks, E experts. Sources: arXiv 2503.14858 (InfoNCE, actor), arXiv 2408.11052
(energies).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torch_crl.kernels.infonce import ENERGIES as ENERGIES
from torch_crl.kernels.infonce import PairScores

Aux = dict[str, Tensor]


Mean = Callable[[Tensor], Tensor]
"""From the losses [B] of the rows to their mean over the rows that count."""


def mean_over(
    whole_B: Tensor | None, weight_B: Tensor | None = None, count: Tensor | None = None
) -> Mean:
    """The mean over the rows where `whole_B` is 1, 0 if there are none; over all rows for None.

    Rows are multiplied by `weight_B`, if given; the mean is never divided by the sum of weights.
    `count` is what the sum is divided by if it is not the number of these rows: with several ranks,
    the number that each of them has on average.
    """
    if weight_B is not None:
        unweighted = mean_over(whole_B, None, count)
        return lambda x_B: unweighted(weight_B * x_B)
    if whole_B is None:
        return torch.mean
    if count is None:
        count = whole_B.sum().clamp_min(1.0)
    # What is left out may be very large, so it is replaced and not multiplied by 0.
    return lambda x_B: torch.where(whole_B > 0, x_B, 0.0).sum() / count


def forward_info_nce(scores: PairScores, mean: Mean = torch.mean) -> Tensor:
    """Classify the goal of each (state, action): -mean_i [E_ii - logsumexp_j E_ij]."""
    return mean(scores.row_logsumexp_B - scores.diagonal_B)


def backward_info_nce(scores: PairScores, mean: Mean = torch.mean) -> Tensor:
    """Classify the (state, action) of each goal: -mean_j [E_jj - logsumexp_i E_ij]."""
    assert scores.column_logsumexp_B is not None
    return mean(scores.column_logsumexp_B - scores.diagonal_B)


def symmetric_info_nce(scores: PairScores, mean: Mean = torch.mean) -> Tensor:
    """The sum of the forward and the backward InfoNCE loss."""
    return forward_info_nce(scores, mean) + backward_info_nce(scores, mean)


def binary_nce(scores: PairScores, mean: Mean = torch.mean) -> Tensor:
    """Mean over all pairs of the sigmoid cross-entropy: label 1 on the diagonal, 0 off it.

    Cross-entropy is softplus(E) - label * E, so only the diagonal is subtracted.
    """
    assert scores.row_softplus_B is not None
    return mean(scores.row_softplus_B - scores.diagonal_B) / scores.goals


class ContrastiveLoss(NamedTuple):
    """A loss, and which of the optional scores of PairScores it reads."""

    loss: Callable[[PairScores, Mean], Tensor]
    columns: bool = False
    softplus: bool = False
    rows: bool | None = None
    """Whether it reads the sums over rows. None keeps it from the kernels, which know only losses
    that are the mean of the scores they read, each less the energies of the true pairs."""


CONTRASTIVE_LOSSES: dict[str, ContrastiveLoss] = {
    "forward_info_nce": ContrastiveLoss(forward_info_nce, rows=True),
    "backward_info_nce": ContrastiveLoss(backward_info_nce, columns=True, rows=False),
    "symmetric_info_nce": ContrastiveLoss(symmetric_info_nce, columns=True, rows=True),
    "binary_nce": ContrastiveLoss(binary_nce, softplus=True, rows=False),
}


def critic_loss(
    scores: PairScores,
    *,
    contrastive_loss: str,
    logsumexp_penalty: float,
    whole_B: Tensor | None = None,
    weight_B: Tensor | None = None,
    count: Tensor | None = None,
    implementation: Literal["reference", "numba", "triton"] = "reference",
) -> tuple[Tensor, Aux]:
    """Contrastive loss plus penalty * mean_i (logsumexp_j E_ij)^2, and metrics of the energies.

    The penalty is taken over rows for every contrastive loss. It keeps the energies from drifting,
    which InfoNCE alone does not (it is the same if a constant is added to a row). A row counts as
    correctly classified if the energy of its own goal is strictly above those of all others.

    Rows where `whole_B` is 0 hold a chunk of actions that its trajectory cut short. They have no
    contrastive loss of their own, and their goals stay negatives of the other rows. `weight_B`
    weights the contrastive loss of each row, and not the penalty. `count`: see `mean_over`.

    The implementation `triton` is one kernel, without `count`; all others are plain torch.
    """
    kind = CONTRASTIVE_LOSSES[contrastive_loss]
    if implementation == "triton" and kind.rows is not None and count is None:
        # Imported here, so that Triton is needed only if its kernels are requested.
        from torch_crl.kernels.losses import kernel

        nothing_0 = scores.row_sum_B[:0]
        return kernel.critic_loss(
            [nothing_0 if score is None else score for score in scores[:4]],
            scores.row_rival_B,
            scores.row_sum_B,
            rows=kind.rows,
            columns=kind.columns,
            softplus=kind.softplus,
            logsumexp_penalty=logsumexp_penalty,
            goals=scores.goals,
            whole_B=whole_B,
            weight_B=weight_B,
        )
    contrastive = kind.loss(scores, mean_over(whole_B, weight_B, count))
    loss = contrastive + logsumexp_penalty * scores.row_logsumexp_B.square().mean()
    with torch.no_grad():
        right_B = (scores.diagonal_B > scores.row_rival_B).float()
        rows = (scores.row_logsumexp_B, scores.diagonal_B, scores.row_sum_B, right_B)
        # One mean of the stack, since in a CUDA graph a small op costs as much as a large one.
        logsumexp, positive, row_sum, accuracy = torch.stack(rows).mean(1)
        aux = {
            "contrastive_loss": contrastive.detach(),
            "logsumexp": logsumexp,
            "categorical_accuracy": accuracy,
            "logits_positive": positive,
            "logits_negative": (row_sum - positive) / max(scores.goals - 1, 1),
        }
    return loss, aux


def actor_loss(energy_B: Tensor, log_prob_B: Tensor, log_alpha: Tensor) -> tuple[Tensor, Aux]:
    """Mean [alpha * log pi(a|s,g) - f(s, a, g)] for reparameterised actions a.

    The gradient flows into `energy_B` and `log_prob_B`, but not into the temperature.
    """
    loss = (log_alpha.detach().exp() * log_prob_B - energy_B).mean()
    return loss, {"entropy": -log_prob_B.detach().mean()}


def temperature_loss(
    log_prob_B: Tensor, log_alpha: Tensor, *, target_entropy: float
) -> tuple[Tensor, Aux]:
    """Alpha * mean (entropy - target): alpha grows while the policy's entropy is below target.

    The gradient flows into log_alpha only.
    """
    alpha = log_alpha.exp()
    loss = alpha * (-log_prob_B.detach() - target_entropy).mean()
    return loss, {"alpha": alpha.detach()}


class Balance(NamedTuple):
    """How evenly a mixture of experts is used; nothing for a dense actor."""

    losses: tuple[Tensor, ...] = ()
    """The loss, with its coefficient, if that is not 0."""
    metrics: Aux = {}


def load_balance(routes: tuple[Tensor, Tensor] | None, coefficient: float) -> Balance:
    """`load_balance_loss` of the ways of a batch, as one of the actor's losses and as a metric."""
    if routes is None:
        return Balance()
    loss = load_balance_loss(*routes)
    losses = (coefficient * loss,) if coefficient else ()
    return Balance(losses, {"load_balance_loss": loss.detach()})


def load_balance_loss(expert_NB: Tensor, probability_NBE: Tensor) -> Tensor:
    """E * sum_e f_e P_e of each block, mean over the blocks (arXiv 2101.03961, section 2.2).

    f_e is the share of the batch's rows whose expert is e, which has no gradient, and P_e the mean
    probability that the gate gives it. The loss is 1 where both are uniform, and E at most.
    """
    experts = probability_NBE.shape[-1]
    numbers_E = torch.arange(experts, device=expert_NB.device)
    share_NE = (expert_NB[..., None] == numbers_E).to(probability_NBE.dtype).mean(1)
    return experts * (share_NE * probability_NBE.mean(1)).sum(-1).mean()


def policy_losses(
    energy_B: Tensor,
    log_prob_B: Tensor,
    log_alpha: Tensor,
    *,
    target_entropy: float,
    implementation: Literal["reference", "numba", "triton"] = "reference",
) -> tuple[Tensor, Aux]:
    """`actor_loss` plus `temperature_loss`; each is also one of the metrics.

    The implementation `triton` is one kernel; all others are plain torch.
    """
    if implementation == "triton":
        # Imported here, so that Triton is needed only if its kernels are requested.
        from torch_crl.kernels.losses import kernel

        return kernel.policy_losses(energy_B, log_prob_B, log_alpha, target_entropy=target_entropy)
    actor, of_actor = actor_loss(energy_B, log_prob_B, log_alpha)
    temperature, of_temperature = temperature_loss(
        log_prob_B, log_alpha, target_entropy=target_entropy
    )
    losses = {"actor_loss": actor.detach(), "temperature_loss": temperature.detach()}
    return actor + temperature, losses | of_actor | of_temperature


def cloning_loss(mean_BA: Tensor, log_std_BA: Tensor, action_BA: Tensor) -> tuple[Tensor, Aux]:
    """Negative mean log-density of actions under a tanh-squashed Gaussian (arXiv 1912.06088).

    The log-derivative of the tanh is left out, since it does not depend on the Gaussian. Actions
    are clipped to magnitude 1 - 1e-6, which the inverse of tanh maps to 7.25.
    """
    before_BA = torch.atanh(action_BA.clamp(-1.0 + 1e-6, 1.0 - 1e-6))
    noise_BA = (before_BA - mean_BA) * (-log_std_BA).exp()
    log_prob_B = (-0.5 * noise_BA.square() - log_std_BA - 0.5 * math.log(2.0 * math.pi)).sum(-1)
    error = (torch.tanh(mean_BA) - action_BA).detach().abs().mean()
    return -log_prob_B.mean(), {"action_error": error}
