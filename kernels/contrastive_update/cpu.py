"""All gradients of contrastive RL's losses in one call, for one CPU core.

`torch_crl.agent.actor_critic` has the definition. The towers, the scores of all pairs and the
actor's distribution are those of the other folders' `cpu.py`. B batch, S state, G goal, A action,
R representation.
"""

import numpy as np

from torch_crl.kernels.cpu import entry, loops, products, room
from torch_crl.kernels.infonce.cpu import backward_scores, forward_scores
from torch_crl.kernels.infonce.reference import EPSILON
from torch_crl.kernels.squashed_gaussian import cpu as squashed_gaussian
from torch_crl.kernels.tower.cpu import backward_tower, forward_tower

_draw, _of_drawn = squashed_gaussian.forward_rows, squashed_gaussian.backward_rows

METRICS = (
    "actor_loss",
    "temperature_loss",
    "critic_loss",
    "entropy",
    "alpha",
    "contrastive_loss",
    "logsumexp",
    "categorical_accuracy",
    "logits_positive",
    "logits_negative",
)
"""Names of the numbers that a call gives beside the gradients, in their order."""


@loops
def _critic_loss(scores, whole, masked, rows, columns, softplus, penalty, upstream, metrics):
    """Metrics of the critic, and upstream [4, B], the gradients of its loss by the scores."""
    batch = scores.shape[1]
    diagonal, logsumexp, of_columns = scores[0], scores[1], scores[2]
    of_softplus, rival, row_sum = scores[3], scores[4], scores[5]
    count = float(batch)
    if masked:
        count = 0.0
        for i in range(batch):
            count += whole[i]
        count = max(count, 1.0)
    contrastive, squares, logsumexps, right, positive, total = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(batch):
        for k in range(4):
            upstream[k, i] = 0.0
        if not masked or whole[i] > 0:
            weight = 1.0 / count
            if rows:
                contrastive += weight * (logsumexp[i] - diagonal[i])
                upstream[0, i] -= weight
                upstream[1, i] += weight
            if columns:
                contrastive += weight * (of_columns[i] - diagonal[i])
                upstream[0, i] -= weight
                upstream[2, i] += weight
            if softplus:
                weight /= batch
                contrastive += weight * (of_softplus[i] - diagonal[i])
                upstream[0, i] -= weight
                upstream[3, i] += weight
        upstream[1, i] += 2.0 * penalty * logsumexp[i] / batch
        squares += np.float64(logsumexp[i]) * logsumexp[i] / batch
        logsumexps += logsumexp[i] / batch
        positive += diagonal[i] / batch
        total += row_sum[i] / batch
        if diagonal[i] > rival[i]:
            right += 1.0 / batch
    metrics[2] = contrastive + penalty * squares
    metrics[5] = contrastive
    metrics[6] = logsumexps
    metrics[7] = right
    metrics[8] = positive
    metrics[9] = (total - positive) / max(batch - 1, 1)


@loops
def _centre(phi, psi):
    """Subtracts the mean of psi from both; the reference of infonce says why."""
    batch, size = psi.shape
    share = psi.dtype.type(1.0 / batch)
    mean = np.zeros(size, psi.dtype)
    for i in range(batch):
        for j in range(size):
            mean[j] += psi[i, j]
    for j in range(size):
        mean[j] *= share
    for i in range(batch):
        for j in range(size):
            phi[i, j] -= mean[j]
            psi[i, j] -= mean[j]


@loops
def _policy_scores(phi, psi, goal_of, kind, score, dphi):
    """The energies [B] of the policy's actions, and dphi, the gradient of minus their mean."""
    batch, size = phi.shape
    share = phi.dtype.type(1.0 / batch)
    for i in range(batch):
        goal = psi[goal_of[i]]
        total = phi.dtype.type(0.0)
        if kind == 0:
            for j in range(size):
                total += phi[i, j] * goal[j]
                dphi[i, j] = -share * goal[j]
            score[i] = total
        else:
            for j in range(size):
                difference = phi[i, j] - goal[j]
                total += difference * difference
            slope = share + share
            if kind == 2:
                root = np.sqrt(total + phi.dtype.type(EPSILON))
                score[i], slope = -root, share / root
            else:
                score[i] = -total
            for j in range(size):
                dphi[i, j] = slope * (phi[i, j] - goal[j])


@loops
def _actor_losses(score, log_prob, log_alpha, target_entropy, dlog_alpha, dlog_prob, metrics):
    """Losses of actor and temperature, and their gradients by log_prob and log_alpha."""
    batch = len(score)
    alpha = np.exp(np.float64(log_alpha[0]))
    entropy, scores = 0.0, 0.0
    for i in range(batch):
        entropy -= log_prob[i] / batch
        scores += score[i] / batch
        dlog_prob[i] = alpha / batch
    temperature_loss = alpha * (entropy - target_entropy)
    dlog_alpha[0] = temperature_loss
    metrics[0] = -alpha * entropy - scores
    metrics[1] = temperature_loss
    metrics[3] = entropy
    metrics[4] = alpha


@loops
def _join(first, second, second_of, out):
    """out = concat(first, second[second_of])."""
    for i in range(len(first)):
        for j in range(first.shape[1]):
            out[i, j] = first[i, j]
        for j in range(second.shape[1]):
            out[i, first.shape[1] + j] = second[second_of[i], j]


@entry
@products
def contrastive_gradients(
    state, action, goal, whole, masked, place, placed, noise, own, goal_of,
    log_alpha, dlog_alpha, target_entropy, towers, dtowers, spaces,
    kind, rows, columns, softplus, penalty, metrics,
):  # fmt: skip
    """Every gradient of the losses together, and their metrics.

    With `placed`, `place` has the places of the goals, and goals of one place are no negatives of
    each other. Three towers, of the actor, of states and actions, and of goals, hold parameters,
    activation and scale, dtowers their gradients, and spaces what their passes keep.
    """
    batch, states = state.shape
    dtype = state.dtype
    inputs = room(batch, states + goal.shape[1], state)
    _join(state, goal, goal_of, inputs)
    output = room(batch, 2 * noise.shape[1], state)
    chosen, squashed = np.empty_like(noise), np.empty_like(noise)
    log_prob, dlog_prob, score = np.empty((3, batch), dtype)
    pairs = room(2 * batch, states + action.shape[1], state)
    _join(state, action, own, pairs[:batch])
    size = len(towers[2][9])
    phi, dphi = room(2 * batch, size, state), room(2 * batch, size, state)
    psi, dpsi = room(batch, size, state), room(batch, size, state)

    # One call in a loop, since each one is compiled as if it stood there written out.
    given, outputs = (inputs, pairs, goal), (output, phi, psi)
    for k in range(3):
        if k == 1:
            _draw(output, noise, chosen, squashed, log_prob)
            _join(state, chosen, own, pairs[batch:])
        forward_tower(given[k], *towers[k], *spaces[k], outputs[k])

    _policy_scores(phi[batch:], psi, goal_of, kind, score, dphi[batch:])
    energy, scores = room(batch, batch, state), np.empty((6, batch), dtype)
    upstream = np.empty((4, batch), dtype)
    phi = phi[:batch]
    if kind:
        _centre(phi, psi)
    forward_scores(phi, psi, kind, whole, masked, place, placed, columns, softplus, energy, scores)
    _critic_loss(scores, whole, masked, rows, columns, softplus, penalty, upstream, metrics)
    backward_scores(
        phi, psi, kind, whole, masked, columns, softplus, energy, scores, upstream,
        dphi[:batch], dpsi,
    )  # fmt: skip

    _actor_losses(score, log_prob, log_alpha, target_entropy, dlog_alpha, dlog_prob, metrics)
    dchosen, unused = room(*noise.shape, state), room(0, 0, state)
    doutput = room(*output.shape, state)
    doutputs, dgiven = (doutput, dphi, dpsi), (unused, dchosen, unused)
    for k in (1, 2, 0):
        if k == 0:
            _of_drawn(dchosen, dlog_prob, noise, chosen, squashed, doutput)
        backward_tower(doutputs[k], batch, given[k], *towers[k], *spaces[k], dgiven[k], *dtowers[k])
