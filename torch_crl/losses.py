"""Energies and losses of contrastive RL: pure functions of tensors.

f(s, a, g) = energy(phi(s, a), psi(g)) is high where g lies in the future of (s, a). A critic's
logits_BB[i, j] is f of the i-th (state, action) and the j-th goal; the diagonal holds true pairs.

B batch, R representation. Sources: arXiv 2503.14858 (InfoNCE, actor), arXiv 2408.11052 (energies).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Under the root of a distance and of a norm, so that the gradient at zero is zero and not NaN.
EPSILON = 1e-6

Aux = dict[str, Tensor]


class Energy(NamedTuple):
    """One similarity, for matching rows and for all pairs of rows."""

    paired: Callable[[Tensor, Tensor], Tensor]
    """(phi [B, R], psi [B, R]) to [B]."""
    pairwise: Callable[[Tensor, Tensor], Tensor]
    """(phi [B, R], psi [C, R]) to [B, C], without a [B, C, R] tensor."""


def _squared_distance_matrix(phi_BR: Tensor, psi_BR: Tensor) -> Tensor:
    # |x|^2 + |y|^2 - 2 x.y is one matrix product, but cancels where both lie far from the origin;
    # distances do not change under a shift, so the common offset goes first.
    offset_R = psi_BR.mean(0).detach()
    x_BR, y_BR = phi_BR - offset_R, psi_BR - offset_R
    squares_B1 = x_BR.square().sum(-1, keepdim=True)
    squares_1B = y_BR.square().sum(-1).unsqueeze(0)
    return torch.addmm(squares_B1 + squares_1B, x_BR, y_BR.T, alpha=-2.0).clamp_min(0.0)


def _safe_norm(x_BR: Tensor) -> Tensor:
    return (x_BR.square().sum(-1, keepdim=True) + EPSILON).sqrt()


ENERGIES: dict[str, Energy] = {
    "norm": Energy(
        paired=lambda phi, psi: -((phi - psi).square().sum(-1) + EPSILON).sqrt(),
        pairwise=lambda phi, psi: -(_squared_distance_matrix(phi, psi) + EPSILON).sqrt(),
    ),
    "l2": Energy(
        paired=lambda phi, psi: -(phi - psi).square().sum(-1),
        pairwise=lambda phi, psi: -_squared_distance_matrix(phi, psi),
    ),
    "dot": Energy(
        paired=lambda phi, psi: (phi * psi).sum(-1),
        pairwise=lambda phi, psi: phi @ psi.T,
    ),
    "cosine": Energy(
        paired=lambda phi, psi: (phi / _safe_norm(phi) * (psi / _safe_norm(psi))).sum(-1),
        pairwise=lambda phi, psi: (phi / _safe_norm(phi)) @ (psi / _safe_norm(psi)).T,
    ),
}


def forward_info_nce(logits_BB: Tensor) -> Tensor:
    """Classify the goal of each (state, action): -mean_i [L_ii - logsumexp_j L_ij]."""
    return (logits_BB.logsumexp(1) - logits_BB.diagonal()).mean()


def backward_info_nce(logits_BB: Tensor) -> Tensor:
    """Classify the (state, action) of each goal: -mean_j [L_jj - logsumexp_i L_ij]."""
    return forward_info_nce(logits_BB.T)


def symmetric_info_nce(logits_BB: Tensor) -> Tensor:
    """The sum of both directions."""
    return forward_info_nce(logits_BB) + backward_info_nce(logits_BB)


def binary_nce(logits_BB: Tensor) -> Tensor:
    """Mean over all pairs of the sigmoid cross-entropy: label 1 on the diagonal, 0 off it."""
    labels_BB = torch.eye(len(logits_BB), dtype=logits_BB.dtype, device=logits_BB.device)
    return functional.binary_cross_entropy_with_logits(logits_BB, labels_BB)


CONTRASTIVE_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "forward_info_nce": forward_info_nce,
    "backward_info_nce": backward_info_nce,
    "symmetric_info_nce": symmetric_info_nce,
    "binary_nce": binary_nce,
}


def _accuracy(logits_BB: Tensor) -> Tensor:
    """Share of rows whose own goal has the highest logit."""
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (logits_BB.argmax(1) == own_B).float().mean()


def critic_loss(
    logits_BB: Tensor, *, contrastive_loss: str, logsumexp_penalty: float
) -> tuple[Tensor, Aux]:
    """Contrastive loss plus penalty * mean_i (logsumexp_j L_ij)^2, and what the logits tell.

    The penalty runs over rows for every loss; it keeps the logits from drifting, which InfoNCE
    alone leaves free (a constant added to a row changes nothing).
    """
    contrastive = CONTRASTIVE_LOSSES[contrastive_loss](logits_BB)
    logsumexp_B = logits_BB.logsumexp(1)
    loss = contrastive + logsumexp_penalty * logsumexp_B.square().mean()
    with torch.no_grad():
        batch = len(logits_BB)
        positive_B = logits_BB.diagonal()
        off_diagonal = (logits_BB.sum() - positive_B.sum()) / max(batch * (batch - 1), 1)
        aux = {
            "contrastive_loss": contrastive.detach(),
            "logsumexp": logsumexp_B.mean(),
            "categorical_accuracy": _accuracy(logits_BB),
            "logits_positive": positive_B.mean(),
            "logits_negative": off_diagonal,
        }
    return loss, aux


def actor_loss(energy_B: Tensor, log_prob_B: Tensor, log_alpha: Tensor) -> tuple[Tensor, Aux]:
    """Mean [alpha * log pi(a|s,g) - f(s, a, g)] for reparameterised actions a.

    The gradient flows through both arguments, and not into the temperature.
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
