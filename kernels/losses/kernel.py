"""Losses that are means over a batch, with their metrics and gradients. See the README.

The definitions are `critic_loss` and `policy_losses` of `torch_crl.agent.losses`. B batch.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from torch_crl.kernels.launch import require_device

CRITIC_METRICS = (
    "contrastive_loss",
    "logsumexp",
    "categorical_accuracy",
    "logits_positive",
    "logits_negative",
)
POLICY_METRICS = ("actor_loss", "temperature_loss", "entropy", "alpha")
# Rows that a program looks at together.
_LARGEST_BLOCK = 1024
NUM_WARPS = 4


@triton.jit(do_not_specialize=["B", "C", "penalty"])
def critic_loss_kernel(
    # inputs
    p_diagonal, p_row_logsumexp, p_column_logsumexp, p_softplus, p_rival, p_sum, p_whole, p_weight,
    # outputs
    p_loss, p_metrics, p_gradients,
    # sizes
    B, C, penalty,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr, WEIGHTED: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """Grid: one program. The gradients [4, B] are by diagonal, rows, columns and softplus."""
    o_b = tl.arange(0, BB)
    count = tl.cast(B, tl.float32)
    if MASKED:
        b_count = tl.zeros([BB], tl.float32)
        for start in range(0, B, BB):
            b_count += tl.load(p_whole + start + o_b, mask=start + o_b < B, other=0.0)
        count = tl.maximum(tl.sum(b_count, 0), 1.0)
    b_loss = tl.zeros([BB], tl.float32)
    b_square = tl.zeros([BB], tl.float32)
    b_logsumexp = tl.zeros([BB], tl.float32)
    b_positive = tl.zeros([BB], tl.float32)
    b_sum = tl.zeros([BB], tl.float32)
    b_right = tl.zeros([BB], tl.float32)
    for start in range(0, B, BB):
        o = start + o_b
        m = o < B
        b_diagonal = tl.load(p_diagonal + o, mask=m, other=0.0)
        b_row = tl.load(p_row_logsumexp + o, mask=m, other=0.0)
        b_rival = tl.load(p_rival + o, mask=m, other=0.0)
        b_share = tl.where(m, 1.0 / count, 0.0)
        if SOFTPLUS:
            b_share /= C
        if MASKED:
            b_share = tl.where(tl.load(p_whole + o, mask=m, other=0.0) > 0.0, b_share, 0.0)
        if WEIGHTED:
            b_share *= tl.load(p_weight + o, mask=m, other=0.0)
        # What is left out may be very large, so it is replaced and not multiplied by 0.
        b_terms = tl.zeros([BB], tl.float32)
        b_row_gradient = 2.0 * penalty * b_row / B
        b_diagonal_gradient = tl.zeros([BB], tl.float32)
        if ROWS:
            b_terms += b_row - b_diagonal
            b_row_gradient += b_share
            b_diagonal_gradient -= b_share
        if COLUMNS:
            b_terms += tl.load(p_column_logsumexp + o, mask=m, other=0.0) - b_diagonal
            b_diagonal_gradient -= b_share
            tl.store(p_gradients + 2 * B + o, b_share, mask=m)
        if SOFTPLUS:
            b_terms += tl.load(p_softplus + o, mask=m, other=0.0) - b_diagonal
            b_diagonal_gradient -= b_share
            tl.store(p_gradients + 3 * B + o, b_share, mask=m)
        b_loss += tl.where(b_share == 0.0, 0.0, b_share * b_terms)
        tl.store(p_gradients + o, b_diagonal_gradient, mask=m)
        tl.store(p_gradients + B + o, b_row_gradient, mask=m)
        b_square += b_row * b_row
        b_logsumexp += b_row
        b_positive += b_diagonal
        b_sum += tl.load(p_sum + o, mask=m, other=0.0)
        b_right += tl.where((b_diagonal > b_rival) & m, 1.0, 0.0)
    contrastive, positive = tl.sum(b_loss, 0), tl.sum(b_positive, 0) / B
    tl.store(p_loss, contrastive + penalty * (tl.sum(b_square, 0) / B))
    tl.store(p_metrics, contrastive)
    tl.store(p_metrics + 1, tl.sum(b_logsumexp, 0) / B)
    tl.store(p_metrics + 2, tl.sum(b_right, 0) / B)
    tl.store(p_metrics + 3, positive)
    tl.store(p_metrics + 4, (tl.sum(b_sum, 0) / B - positive) / tl.maximum(C - 1, 1))


@triton.jit(do_not_specialize=["B", "target_entropy"])
def policy_losses_kernel(
    # inputs
    p_score, p_log_prob, p_log_alpha,
    # outputs
    p_loss, p_metrics, p_gradients,
    # sizes
    B, target_entropy,
    BB: tl.constexpr,
):  # fmt: skip
    """Grid: one program. The gradients [2 B + 1] are by score, log-density and log alpha."""
    o_b = tl.arange(0, BB)
    alpha = tl.exp(tl.load(p_log_alpha))
    b_score = tl.zeros([BB], tl.float32)
    b_log_prob = tl.zeros([BB], tl.float32)
    for start in range(0, B, BB):
        o = start + o_b
        m = o < B
        b_score += tl.load(p_score + o, mask=m, other=0.0)
        b_log_prob += tl.load(p_log_prob + o, mask=m, other=0.0)
        tl.store(p_gradients + o, tl.zeros([BB], tl.float32) - 1.0 / B, mask=m)
        tl.store(p_gradients + B + o, tl.zeros([BB], tl.float32) + alpha / B, mask=m)
    entropy = -tl.sum(b_log_prob, 0) / B
    actor_loss = -alpha * entropy - tl.sum(b_score, 0) / B
    temperature_loss = alpha * (entropy - target_entropy)
    tl.store(p_gradients + 2 * B, temperature_loss)
    tl.store(p_loss, actor_loss + temperature_loss)
    tl.store(p_metrics, actor_loss)
    tl.store(p_metrics + 1, temperature_loss)
    tl.store(p_metrics + 2, entropy)
    tl.store(p_metrics + 3, alpha)


def block_of(batch: int) -> int:
    """Rows that a program looks at together."""
    return min(triton.next_power_of_2(batch), _LARGEST_BLOCK)


@torch.library.custom_op("torch_crl::critic_loss", mutates_args=())
def _critic_loss(
    scores: list[Tensor],
    rival_B: Tensor,
    sum_B: Tensor,
    whole_B: Tensor | None,
    weight_B: Tensor | None,
    rows: bool,
    columns: bool,
    softplus: bool,
    goals: int,
    penalty: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its metrics, and its gradients [4, B] by the scores.

    The scores are diagonal, row and column logsumexp and softplus, empty where not asked for.
    """
    batch = len(rival_B)
    loss, metrics = rival_B.new_empty(()), rival_B.new_empty(len(CRITIC_METRICS))
    gradients = rival_B.new_empty(4, batch)
    with torch.cuda.device_of(rival_B):
        critic_loss_kernel[(1,)](
            *scores, rival_B, sum_B,
            rival_B if whole_B is None else whole_B, rival_B if weight_B is None else weight_B,
            loss, metrics, gradients,
            batch, goals, penalty,
            ROWS=rows, COLUMNS=columns, SOFTPLUS=softplus,
            MASKED=whole_B is not None, WEIGHTED=weight_B is not None,
            BB=block_of(batch), num_warps=NUM_WARPS,
        )  # fmt: skip
    return loss, metrics, gradients


@_critic_loss.register_fake
def _(_scores: list[Tensor], rival_B: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    metrics = rival_B.new_empty(len(CRITIC_METRICS))
    return rival_B.new_empty(()), metrics, rival_B.new_empty(4, len(rival_B))


def _keep_critic(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    scores, *_, columns, softplus, _, _ = inputs
    read = (True, True, columns, softplus)
    ctx.read = [is_read and len(score) > 0 for is_read, score in zip(read, scores, strict=True)]
    _keep_gradients(ctx, inputs, output)


def _critic_backward(ctx: Any, upstream: Tensor, *_: object) -> tuple[object, ...]:
    (gradients,) = ctx.saved_tensors
    rows = (gradients * upstream).unbind(0)
    by_score = [row if read else None for row, read in zip(rows, ctx.read, strict=True)]
    return by_score, *[None] * 9


@torch.library.custom_op("torch_crl::policy_losses", mutates_args=())
def _policy_losses(
    score_B: Tensor, log_prob_B: Tensor, log_alpha: Tensor, target_entropy: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of both losses, their metrics, and its gradients [2 B + 1] by the three tensors."""
    batch = len(score_B)
    loss, metrics = score_B.new_empty(()), score_B.new_empty(len(POLICY_METRICS))
    gradients = score_B.new_empty(2 * batch + 1)
    with torch.cuda.device_of(score_B):
        policy_losses_kernel[(1,)](
            score_B, log_prob_B, log_alpha,
            loss, metrics, gradients,
            batch, target_entropy,
            BB=block_of(batch), num_warps=NUM_WARPS,
        )  # fmt: skip
    return loss, metrics, gradients


@_policy_losses.register_fake
def _(score_B: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    metrics = score_B.new_empty(len(POLICY_METRICS))
    return score_B.new_empty(()), metrics, score_B.new_empty(2 * len(score_B) + 1)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2])
    # Otherwise autograd would make tensors of zeros as the gradients of the other outputs.
    ctx.set_materialize_grads(False)


def _policy_backward(ctx: Any, upstream: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    (gradients,) = ctx.saved_tensors
    scaled = gradients * upstream
    batch = len(scaled) // 2
    return scaled[:batch], scaled[batch:-1], scaled[-1], None


_critic_loss.register_autograd(_critic_backward, setup_context=_keep_critic)
_policy_losses.register_autograd(_policy_backward, setup_context=_keep_gradients)


def critic_loss(
    scores: list[Tensor],
    rival_B: Tensor,
    sum_B: Tensor,
    *,
    rows: bool,
    columns: bool,
    softplus: bool,
    logsumexp_penalty: float,
    goals: int,
    whole_B: Tensor | None,
    weight_B: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a critic and its metrics, all 0-D, from what `pair_scores` gives.

    Each row was compared with so many `goals`. `scores` are those with a gradient, in the order of
    `PairScores`, with an empty tensor for each that was not asked for. The contrastive loss is the
    mean of those of rows, columns and softplus that are chosen, each less the energies of the true
    pairs.
    """
    require_device(rival_B, "critic_loss")
    scores = [score.contiguous() for score in scores]
    of_rows = [x if x is None else x.float().contiguous() for x in (whole_B, weight_B)]
    options = (*of_rows, rows, columns, softplus, goals, logsumexp_penalty)
    loss, metrics, _ = _critic_loss(scores, rival_B.contiguous(), sum_B.contiguous(), *options)
    return loss, dict(zip(CRITIC_METRICS, metrics.detach().unbind(), strict=True))


def policy_losses(
    score_B: Tensor, log_prob_B: Tensor, log_alpha: Tensor, *, target_entropy: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the losses of actor and temperature, and both with their metrics, all 0-D."""
    require_device(score_B, "policy_losses")
    rows = score_B.contiguous(), log_prob_B.contiguous()
    loss, metrics, _ = _policy_losses(*rows, log_alpha, target_entropy)
    return loss, dict(zip(POLICY_METRICS, metrics.detach().unbind(), strict=True))
