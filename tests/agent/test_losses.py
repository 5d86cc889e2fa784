"""Losses and energies on small cases worked out by hand, and against plain loops in fp64."""

import math

import pytest
import torch
from torch import Tensor

from torch_crl.agent.losses import (
    CONTRASTIVE_LOSSES,
    actor_loss,
    backward_info_nce,
    binary_nce,
    cloning_loss,
    critic_loss,
    forward_info_nce,
    symmetric_info_nce,
    temperature_loss,
)
from torch_crl.kernels.infonce import ENERGIES, EPSILON, PairScores, pair_scores, reduce_energies

# Rows: logsumexp(log 1, log 3) = log 4 and logsumexp(log 2, log 2) = log 4.
# Columns: log(1 + 2) = log 3 and log(3 + 2) = log 5.
LOGITS = torch.tensor([[1.0, 3.0], [2.0, 2.0]], dtype=torch.float64).log()


def all_scores(logits_BB: Tensor) -> PairScores:
    return reduce_energies(logits_BB, columns=True, softplus=True)


def test_scores_by_hand() -> None:
    scores = all_scores(LOGITS)
    # log(1 + x) summed along rows: log(2 * 4) and log(3 * 3).
    expected = {
        "diagonal_B": [1, 2],
        "row_logsumexp_B": [4, 4],
        "column_logsumexp_B": [3, 5],
        "row_softplus_B": [8, 9],
        "row_rival_B": [3, 2],
        "row_sum_B": [3, 4],
    }
    for name, values in expected.items():
        torch.testing.assert_close(
            getattr(scores, name), torch.tensor(values, dtype=torch.float64).log()
        )


def test_scores_that_no_loss_asked_for_are_absent() -> None:
    phi = torch.ones(2, 3)
    scores = pair_scores(phi, phi, energy="dot", implementation="reference")
    assert scores.column_logsumexp_B is None and scores.row_softplus_B is None


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_table_names_the_scores_that_each_loss_reads(name: str) -> None:
    kind = CONTRASTIVE_LOSSES[name]
    asked = reduce_energies(LOGITS, columns=kind.columns, softplus=kind.softplus)
    assert float(kind.loss(asked)) == float(kind.loss(all_scores(LOGITS)))


def test_forward_info_nce_by_hand() -> None:
    # -[(log 1 - log 4) + (log 2 - log 4)] / 2 = (log 4 + log 2) / 2 = 1.5 log 2
    assert float(forward_info_nce(all_scores(LOGITS))) == pytest.approx(1.5 * math.log(2))


def test_backward_info_nce_by_hand() -> None:
    # -[(log 1 - log 3) + (log 2 - log 5)] / 2 = log(3 * 5 / 2) / 2
    assert float(backward_info_nce(all_scores(LOGITS))) == pytest.approx(0.5 * math.log(7.5))


def test_symmetric_info_nce_is_the_sum_of_both_directions() -> None:
    expected = 1.5 * math.log(2) + 0.5 * math.log(7.5)
    assert float(symmetric_info_nce(all_scores(LOGITS))) == pytest.approx(expected)


def test_binary_nce_by_hand() -> None:
    # sigmoid(log x) = x / (1 + x). Positives: -log(1/2), -log(2/3); negatives: -log(1 - 3/4),
    # -log(1 - 2/3). The mean of log 2, log 1.5, log 4, log 3 is log(36) / 4.
    assert float(binary_nce(all_scores(LOGITS))) == pytest.approx(math.log(36) / 4)


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_uniform_and_perfect_logits(name: str) -> None:
    batch = 8
    limit = {
        "forward_info_nce": math.log(batch),
        "backward_info_nce": math.log(batch),
        "symmetric_info_nce": 2 * math.log(batch),
        "binary_nce": math.log(2),
    }[name]
    loss = CONTRASTIVE_LOSSES[name].loss
    assert float(loss(all_scores(torch.zeros(batch, batch)))) == pytest.approx(limit)
    perfect = torch.full((batch, batch), -50.0).fill_diagonal_(50.0)
    assert float(loss(all_scores(perfect))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_every_loss_lifts_the_diagonal_and_lowers_the_rest(name: str) -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    CONTRASTIVE_LOSSES[name].loss(all_scores(logits)).backward()
    assert logits.grad is not None
    on_diagonal = torch.eye(6, dtype=torch.bool)
    assert (logits.grad[on_diagonal] < 0).all()
    assert (logits.grad[~on_diagonal] > 0).all()


def test_critic_loss_penalty_and_metrics_by_hand() -> None:
    loss, aux = critic_loss(
        all_scores(LOGITS), contrastive_loss="forward_info_nce", logsumexp_penalty=0.1
    )
    # Both rows have logsumexp log 4.
    assert float(loss) == pytest.approx(1.5 * math.log(2) + 0.1 * math.log(4) ** 2)
    assert float(aux["logsumexp"]) == pytest.approx(math.log(4))
    assert float(aux["logits_positive"]) == pytest.approx(math.log(2) / 2)
    assert float(aux["logits_negative"]) == pytest.approx(math.log(6) / 2)
    # Row 0 prefers goal 1; in row 1 both goals tie, which is not a hit.
    assert float(aux["categorical_accuracy"]) == 0.0
    own = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    _, aux = critic_loss(
        all_scores(own), contrastive_loss="forward_info_nce", logsumexp_penalty=0.1
    )
    assert float(aux["categorical_accuracy"]) == pytest.approx(2 / 3)


def test_penalty_runs_over_rows_for_the_backward_loss_too() -> None:
    loss, _ = critic_loss(
        all_scores(LOGITS), contrastive_loss="backward_info_nce", logsumexp_penalty=1.0
    )
    assert float(loss) == pytest.approx(0.5 * math.log(7.5) + math.log(4) ** 2)


def test_actor_loss_by_hand_and_where_its_gradient_goes() -> None:
    energy = torch.tensor([-1.0, -3.0], requires_grad=True)
    log_prob = torch.tensor([0.5, 1.5], requires_grad=True)
    log_alpha = torch.tensor(math.log(2.0), requires_grad=True)
    loss, aux = actor_loss(energy, log_prob, log_alpha)
    # [(2 * 0.5 + 1) + (2 * 1.5 + 3)] / 2
    assert float(loss.detach()) == pytest.approx(4.0)
    assert float(aux["entropy"]) == pytest.approx(-1.0)
    loss.backward()
    assert energy.grad is not None and energy.grad.tolist() == [-0.5, -0.5]
    assert log_prob.grad is not None and log_prob.grad.tolist() == pytest.approx([1.0, 1.0])
    assert log_alpha.grad is None


def test_temperature_rises_while_entropy_is_below_target() -> None:
    log_prob = torch.tensor([1.0, 3.0], requires_grad=True)
    log_alpha = torch.tensor(math.log(0.5), requires_grad=True)
    loss, aux = temperature_loss(log_prob, log_alpha, target_entropy=-1.0)
    # Entropy -2 is below the target of -1: 0.5 * (-2 + 1).
    assert float(loss.detach()) == pytest.approx(-0.5)
    assert float(aux["alpha"]) == pytest.approx(0.5)
    loss.backward()
    assert log_prob.grad is None
    # A gradient step goes against the gradient: alpha grows.
    assert log_alpha.grad is not None and float(log_alpha.grad) < 0


def _energy_loop(name: str, x: list[float], y: list[float]) -> float:
    if name in ("norm", "l2"):
        square = math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))
        return -math.sqrt(square + EPSILON) if name == "norm" else -square
    product = math.fsum(a * b for a, b in zip(x, y, strict=True))
    if name == "dot":
        return product
    norms = (math.sqrt(math.fsum(a * a for a in part) + EPSILON) for part in (x, y))
    return product / math.prod(norms)


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_energies_against_a_double_loop(name: str, offset: float) -> None:
    generator = torch.Generator().manual_seed(1)
    phi, psi = (offset + torch.randn(n, 64, generator=generator) for n in (5, 7))
    expected = torch.tensor(
        [[_energy_loop(name, x, y) for y in psi.tolist()] for x in phi.tolist()]
    )
    # A common offset of 1000 must not swallow distances of about 10 in fp32.
    tolerance = 1e-4 if name in ("norm", "l2") else 1e-5
    torch.testing.assert_close(
        ENERGIES[name].pairwise(phi, psi), expected, rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(
        ENERGIES[name].paired(phi, psi[:5]), expected[:, :5].diagonal(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ENERGIES)
def test_pairwise_and_paired_have_the_gradient_of_a_numerical_difference(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    phi, psi = (
        torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        for _ in range(2)
    )
    for function in (ENERGIES[name].pairwise, ENERGIES[name].paired):
        assert torch.autograd.gradcheck(function, (phi, psi))


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_gradient_at_zero_distance_is_finite(name: str, value: float) -> None:
    def gradient(function: str) -> tuple[Tensor, Tensor]:
        phi = torch.full((4, 8), value, requires_grad=True)
        psi = torch.full((4, 8), value, requires_grad=True)
        getattr(ENERGIES[name], function)(phi, psi).sum().backward()
        assert phi.grad is not None and psi.grad is not None
        return phi.grad, psi.grad

    for function in ("pairwise", "paired"):
        for grad in gradient(function):
            assert grad.isfinite().all()
            if name in ("norm", "l2"):
                assert grad.abs().max() == 0.0


def test_cloning_loss_is_the_squashed_density_up_to_what_the_policy_cannot_change() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, before = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    mean.requires_grad_()
    log_std.requires_grad_()
    action = torch.tanh(before)
    loss, aux = cloning_loss(mean, log_std, action)
    squashed = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform()
    )
    expected = -squashed.log_prob(action).sum(-1).mean()
    own = torch.log(1 - action.square()).sum(-1).mean()
    torch.testing.assert_close(loss + own, expected)
    ours = torch.autograd.grad(loss, (mean, log_std), retain_graph=True)
    theirs = torch.autograd.grad(expected, (mean, log_std))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(aux["action_error"], (torch.tanh(mean) - action).abs().mean())
    # An action at the bound stays finite.
    assert cloning_loss(mean, log_std, torch.ones_like(mean))[0].isfinite()
