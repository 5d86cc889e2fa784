"""Times to goals: values worked out by hand, fp64 gradients, and sums that must be one."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from torch_crl.agent.objectives.time_to_goal import (
    bin_discounts,
    distinct,
    first_hit,
    hazard_nll,
    hazard_value,
    log_survival,
    occupancy_labels,
    occupancy_loss,
    pair_distances,
    separation,
    time_distance,
)
from torch_crl.agent.sizes import bin_edges
from torch_crl.envs.task import euclidean_distance

ALWAYS, NEVER = 60.0, -60.0


def nll(start: Tensor, hazard: Tensor, *, time: int = 0, censor: int | None = None) -> Tensor:
    rows = len(start)
    return hazard_nll(
        start,
        hazard,
        event_B=torch.full((rows,), censor is None),
        time_B=torch.full((rows,), time),
        censor_B=torch.full((rows,), censor or 0),
    )


def test_value_and_likelihood_of_two_even_steps() -> None:
    start, hazard = torch.zeros(1), torch.zeros(1, 2)
    assert hazard_value(start, hazard, discount=0.5).item() == pytest.approx(-0.625)
    assert nll(start, hazard, time=0).item() == pytest.approx(0.6931, abs=1e-4)
    assert nll(start, hazard, time=1).item() == pytest.approx(2.0794, abs=1e-4)
    for censor, expected in ((0, 0.6931), (1, 1.3863), (2, 2.0794)):
        assert nll(start, hazard, censor=censor).item() == pytest.approx(expected, abs=1e-4)


def random_logits(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(0)
    start = torch.randn(rows, generator=generator, dtype=torch.float64)
    return start, torch.randn(rows, steps, generator=generator, dtype=torch.float64) - 2.0


def test_probabilities_of_all_outcomes_sum_to_one() -> None:
    start, hazard = random_logits(7, 50)
    not_there = functional.logsigmoid(-start)[:, None]
    before = log_survival(hazard)
    arrivals = (not_there + before[:, :-1] + functional.logsigmoid(hazard)).exp().sum(1)
    never = (not_there[:, 0] + before[:, -1]).exp()
    torch.testing.assert_close(start.sigmoid() + arrivals + never, torch.ones_like(start))
    # The same by the likelihood, where an arrival in step 0 of the hazards never happens.
    told = sum((-nll(start, hazard, time=time)).exp() for time in range(50))
    told = told + (-nll(start, hazard, censor=50)).exp()
    step0 = (not_there[:, 0] + functional.logsigmoid(hazard[:, 0])).exp()
    torch.testing.assert_close(told + step0, torch.ones_like(start))


@pytest.mark.parametrize(("time", "value"), [(1, -1.999), (10, -10.945), (100, -96.113)])
def test_the_value_of_a_sure_arrival(time: int, value: float) -> None:
    hazard = torch.full((1, 1000), NEVER, dtype=torch.float64)
    hazard[0, time] = ALWAYS
    start = torch.tensor([NEVER], dtype=torch.float64)
    found = hazard_value(start, hazard, discount=0.999).item()
    assert found == pytest.approx(value, abs=1e-3)
    assert found == pytest.approx(-(1 - 0.999 ** (time + 1)) / 0.001)


def test_the_values_of_being_there_and_of_never_arriving() -> None:
    hazard = torch.full((2, 1000), NEVER, dtype=torch.float64)
    start = torch.tensor([ALWAYS, NEVER], dtype=torch.float64)
    found = hazard_value(start, hazard, discount=0.999)
    assert found.tolist() == pytest.approx([0.0, -632.305], abs=1e-3)


def test_without_any_step_seen_only_being_there_is_learned() -> None:
    start, hazard = (each.requires_grad_() for each in random_logits(3, 5))
    nll(start, hazard, censor=0).sum().backward()
    assert start.grad is not None and hazard.grad is not None
    assert (start.grad > 0).all() and (hazard.grad == 0).all()


def test_gradients_are_those_of_differences_and_finite_at_the_ends() -> None:
    start, hazard = (each.requires_grad_() for each in random_logits(4, 6))
    labels = {
        "event_B": torch.tensor([True, True, False, False]),
        "time_B": torch.tensor([0, 3, 6, 6]),
        "censor_B": torch.tensor([0, 0, 2, 6]),
    }
    assert torch.autograd.gradcheck(lambda x, y: hazard_nll(x, y, **labels), (start, hazard))
    assert torch.autograd.gradcheck(lambda x, y: hazard_value(x, y, discount=0.9), (start, hazard))
    for logit in (-50.0, 50.0):
        far = torch.full((4,), logit, requires_grad=True)
        furthest = torch.full((4, 6), logit, requires_grad=True)
        both = hazard_nll(far, furthest, **labels) + hazard_value(far, furthest, discount=0.9)
        both.sum().backward()
        assert both.isfinite().all() and far.grad is not None and furthest.grad is not None
        assert far.grad.isfinite().all() and furthest.grad.isfinite().all()


def test_the_first_offset_inside() -> None:
    inside = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    event, time = first_hit(inside)
    assert event.tolist() == [True, True, False] and time.tolist() == [2, 0, 4]


def test_bins_of_a_thousand_steps() -> None:
    edges = bin_edges(1000)
    assert len(edges) - 1 == 30 and edges[-2:] == [806, 1000]
    assert edges[:12] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 17]
    discounts = bin_discounts(edges, discount=0.999)
    assert sum(discounts) == pytest.approx((1 - 0.999**1000) / 0.001)
    assert sum(discounts[1:]) == pytest.approx(631.305, abs=1e-3)
    assert bin_edges(1) == [0, 1]


def test_occupancy_after_a_failure_is_zero_and_after_a_cut_unknown() -> None:
    # At the goal at offset 2 and within the radius at offset 3, where both trajectories end.
    distance = torch.full((2, 10), 1.0)
    distance[:, 2], distance[:, 3] = 0.0, 0.3
    occupied, seen = occupancy_labels(
        distance,
        horizon_B=torch.tensor([3, 3]),
        failed_B=torch.tensor([True, False]),
        radius=0.5,
        edge_P=torch.tensor([0, 1, 2, 3, 4, 7, 10]),
    )
    assert occupied[0].tolist() == pytest.approx([0, 0, 1, 1 / 3, 0, 0]) and seen[0].all()
    assert seen[1].tolist() == [True] * 4 + [False] * 2
    assert occupied[1, :4].tolist() == pytest.approx([0, 0, 1, 1 / 3])
    logit = torch.zeros(2, 6)
    loss = occupancy_loss(logit, occupied_BO=occupied, seen_BO=seen)
    assert loss.item() == pytest.approx(math.log(2))
    nothing = occupancy_loss(logit, occupied_BO=occupied, seen_BO=torch.zeros_like(seen))
    assert nothing.item() == 0.0


def test_distances_and_their_losses_by_hand() -> None:
    distance = torch.tensor([0.5, 3.0, 9.0])
    time = torch.tensor([100, 1000, 5])
    counts = torch.tensor([True, True, False])
    # Huber: half the square of 0.4, and 2 - 1/2; the last row does not count.
    expected = (0.5 * 0.4**2 + 1.5) / 2
    found = time_distance(distance, time, counts, per_step=0.001)
    assert found.item() == pytest.approx(expected)
    none = time_distance(distance[:1], torch.tensor([0]), counts[:1], per_step=0.001)
    assert none.item() == 0.0
    phi, psi = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.5]])
    pairs = pair_distances(phi, psi)
    torch.testing.assert_close(pairs, torch.cdist(phi, psi), atol=1e-5, rtol=1e-5)
    missed = torch.tensor([False, True])
    # Two pairs of goals apart, both further than 2, and one row that missed, at 0.5.
    euclidean = {"distance": euclidean_distance, "radius": 0.5}
    apart = distinct(torch.tensor([[0.0], [1.0]]), **euclidean)
    assert apart.tolist() == [[False, True], [True, False]]
    assert separation(pairs, apart, missed_B=missed, least=2.0).item() == pytest.approx(1.5 / 3)
    near = distinct(torch.tensor([[0.0], [0.3]]), **euclidean)
    assert separation(pairs, near, missed_B=~missed & False, least=2.0).item() == 0.0


def test_goals_are_distinct_by_the_distance_of_the_task_far_from_the_origin_too() -> None:
    # By the farther of two objects, goals are as near as their success says.
    goals = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.08, 0.0, 0.08, 0.0], [0.0, 0.11, 0.0, 0.0]])

    def farthest(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).view(-1, 2, 2).norm(dim=-1).amax(-1)

    expected = [[False, False, True], [False, False, True], [True, True, False]]
    assert distinct(goals, distance=farthest, radius=0.1).tolist() == expected
    generator = Generator().manual_seed(0)
    goals = 200.0 + torch.rand(512, 2, generator=generator)
    pairs = distinct(goals, distance=euclidean_distance, radius=0.5)
    exact = (goals.double()[:, None] - goals.double()).norm(dim=-1)
    assert torch.equal(pairs, (exact > 0.5) & (exact > 0))


def test_small_distances_of_large_vectors_keep_their_digits() -> None:
    generator = Generator().manual_seed(0)
    psi, step = (
        functional.normalize(torch.randn(64, 32, generator=generator), dim=-1) for _ in range(2)
    )
    psi = 8.0 * psi
    phi = (psi + 2e-3 * step).requires_grad_()
    distance = pair_distances(phi, psi).diagonal()
    torch.testing.assert_close(distance, torch.full((64,), 2e-3), rtol=1e-3, atol=0.0)
    (gradient,) = torch.autograd.grad(distance.sum(), phi)
    torch.testing.assert_close(gradient.norm(dim=-1), torch.ones(64), rtol=1e-3, atol=1e-3)
