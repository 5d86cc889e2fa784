"""Statistics of seeds, against computations of another kind: fractions, loops, counting."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from torch_crl.study.statistics import (
    estimate,
    interquartile_mean,
    permutation_test,
    pooled,
    probability_of_improvement,
    stratified_bootstrap_interval,
)

GENERATOR = np.random.default_rng(7)
TOLERANCE = 1e-12


def exact_iqm(values: list[float]) -> float:
    """In exact arithmetic, one value at a time."""
    left = sorted(map(Fraction, values))
    for _ in range(int(Fraction(1, 4) * len(values))):
        left.remove(min(left))
        left.remove(max(left))
    return float(sum(left) / len(left))


def exact_percentile(values: list[float], share: Fraction) -> float:
    """Between the two nearest of the sorted values, linearly."""
    ordered = sorted(map(Fraction, values))
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10, 41])
def test_interquartile_mean_equals_exact_arithmetic(count: int) -> None:
    values = GENERATOR.lognormal(sigma=2.0, size=count)
    assert interquartile_mean(values) == pytest.approx(exact_iqm(values.tolist()), abs=TOLERANCE)


def test_interquartile_mean_by_hand_and_along_an_axis() -> None:
    # Five values lose one at each end, whatever it is; three lose none.
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, -50.0]) == 2.0
    assert interquartile_mean([0.0, 1.0, 5.0]) == 2.0
    curves_RX = GENERATOR.normal(size=(6, 3))
    by_point = [exact_iqm(curves_RX[:, point].tolist()) for point in range(3)]
    np.testing.assert_allclose(interquartile_mean(curves_RX), by_point, atol=TOLERANCE)
    np.testing.assert_allclose(interquartile_mean(curves_RX.T, axis=1), by_point, atol=TOLERANCE)
    with pytest.raises(ValueError, match="no values"):
        interquartile_mean([])


def test_a_weight_repeats_a_value() -> None:
    values, weights = GENERATOR.normal(size=(7, 2)), GENERATOR.integers(1, 5, size=7)
    repeated = interquartile_mean(np.repeat(values, weights, axis=0))
    np.testing.assert_allclose(interquartile_mean(values, weights=weights), repeated)
    np.testing.assert_allclose(interquartile_mean(values.T, axis=1, weights=weights), repeated)
    once = interquartile_mean(values, weights=np.ones(7))
    np.testing.assert_allclose(once, interquartile_mean(values))


def test_interquartile_mean_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for count in range(1, 30):
        values = GENERATOR.normal(size=count)
        expected = stats.trim_mean(values, 0.25)
        assert interquartile_mean(values) == pytest.approx(expected, abs=TOLERANCE)


def test_interval_equals_a_bootstrap_in_exact_arithmetic() -> None:
    counts = (3, 2, 4)
    strata = [GENERATOR.normal(size=count).tolist() for count in counts]
    resamples, generator = 200, np.random.default_rng(11)
    indices = [
        generator.integers(len(scores), size=(resamples, len(scores))).tolist() for scores in strata
    ]
    drawn = []
    for resample in range(resamples):
        together = []
        for scores, chosen in zip(strata, indices, strict=True):
            # Tasks count alike: each has as many entries, those of three seeds 4 times each.
            together += [scores[index] for index in chosen[resample]] * (12 // len(scores))
        drawn.append(exact_iqm(together))
    interval = stratified_bootstrap_interval(strata, resamples=resamples, seed=11)
    assert interval is not None
    expected = exact_percentile(drawn, Fraction(1, 40)), exact_percentile(drawn, Fraction(39, 40))
    assert (interval.low, interval.high) == pytest.approx(expected, abs=TOLERANCE)
    wide = stratified_bootstrap_interval(strata, resamples=resamples, seed=11, confidence=0.99)
    assert wide is not None and wide.low <= interval.low and wide.high >= interval.high


def test_interval_tends_to_that_of_all_resamples() -> None:
    scores = [0.1, 0.4, 1.0]
    every = [np.mean(drawn) for drawn in itertools.product(scores, repeat=3)]
    expected = [np.quantile(every, share, method="inverted_cdf") for share in (0.025, 0.975)]
    interval = stratified_bootstrap_interval([scores], resamples=200_000)
    assert interval is not None
    assert [interval.low, interval.high] == pytest.approx(expected, abs=TOLERANCE)


def test_a_drawn_seed_brings_its_whole_curve_and_stays_in_its_task() -> None:
    # Every seed's curve is constant, so every resample's is, and both ends are too.
    flat_RX = np.tile(GENERATOR.normal(size=(4, 1)), (1, 6))
    interval = stratified_bootstrap_interval([flat_RX, flat_RX + 1.0])
    assert interval is not None and interval.low.shape == (6,)
    assert np.ptp(interval.low) < TOLERANCE and np.ptp(interval.high) < TOLERANCE
    # Without strata the share of each task would vary, and so would this mean.
    tasks_apart = stratified_bootstrap_interval([[0.0] * 5, [1.0] * 5], statistic=np.average)
    assert tasks_apart == (0.5, 0.5)


@pytest.mark.parametrize("strata", [[[0.5]], [[0.1, 0.2, 0.3], [0.5]]])
def test_one_seed_gives_no_interval(strata: list[list[float]]) -> None:
    assert stratified_bootstrap_interval(strata) is None
    result = estimate(strata)
    assert result.interval is None and result.seeds == tuple(map(len, strata))
    assert result.point == pytest.approx(pooled(strata))
    assert probability_of_improvement(strata, strata).interval is None


def test_estimate_holds_point_interval_and_seeds() -> None:
    strata = [[0.1, 0.2, 0.9], [0.5, 0.6]]
    result, interval = estimate(strata), stratified_bootstrap_interval(strata)
    assert interval is not None and result.interval == (interval.low, interval.high)
    # Twelve entries, six of each task, lose three at each end.
    assert result.point == pytest.approx((0.2 + 3 * 0.5 + 2 * 0.6) / 6, abs=TOLERANCE)
    assert result.seeds == (3, 2)


def test_probability_of_improvement_counts_pairs() -> None:
    ours, theirs = [[1.0, 2.0, 3.0], [0.0, 0.0]], [[2.0, 2.5], [1.0, 1.0, 1.0]]
    # First task: 1 beats none, 2 ties one of two, 3 beats both: 2.5 of 6. Second: none.
    result = probability_of_improvement(ours, theirs)
    assert result.point == pytest.approx(2.5 / 6 / 2, abs=TOLERANCE)
    assert result.seeds == (3, 2, 2, 3)
    assert result.interval is not None and result.interval[0] <= result.point <= result.interval[1]
    reverse = probability_of_improvement(theirs, ours)
    assert reverse.point == pytest.approx(1.0 - result.point, abs=TOLERANCE)


def test_interval_of_improvement_equals_a_loop() -> None:
    ours, theirs = GENERATOR.normal(size=4), GENERATOR.normal(size=3)
    generator = np.random.default_rng(3)
    our_draws = generator.integers(4, size=(100, 4))
    their_draws = generator.integers(3, size=(100, 3))
    shares = []
    for our_draw, their_draw in zip(our_draws, their_draws, strict=True):
        pairs = [(ours[i], theirs[j]) for i in our_draw for j in their_draw]
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
        shares.append(sum(wins) / len(wins))
    result = probability_of_improvement([ours], [theirs], resamples=100, seed=3)
    ends = exact_percentile(shares, Fraction(1, 40)), exact_percentile(shares, Fraction(39, 40))
    assert result.interval == pytest.approx(ends, abs=TOLERANCE)


def test_permutation_test_by_hand() -> None:
    # The observed labels and their opposite are the most extreme of C(6, 3) = 20.
    result = permutation_test([[4.0, 5.0, 6.0]], [[1.0, 2.0, 3.0]])
    assert (result.difference, result.p_value, result.smallest_p) == (3.0, 0.1, 0.1)
    assert result.exact and result.permutations == 20
    # Signs of 1, 2, 3: only +++ and --- reach a mean of 2, out of 8.
    pairs = permutation_test([[2.0, 3.0, 4.0]], [[1.0, 1.0, 1.0]], paired=True)
    assert (pairs.difference, pairs.p_value, pairs.smallest_p) == (2.0, 0.25, 0.25)
    same = permutation_test([[1.0, 1.0]], [[1.0, 1.0]])
    assert (same.difference, same.p_value) == (0.0, 1.0)
    # Two against one: 3 ways, and no opposite of the observed one among them.
    assert permutation_test([[5.0, 6.0]], [[0.0]]).smallest_p == pytest.approx(1 / 3)


@pytest.mark.parametrize("paired", [False, True])
def test_permutation_test_over_tasks_equals_counting(paired: bool) -> None:
    ours, theirs = GENERATOR.normal(size=(2, 3)), GENERATOR.normal(0.8, size=(2, 3))
    labels = [
        label
        for label in itertools.product((0, 1), repeat=6)
        if (all(label[i] != label[i + 3] for i in range(3)) if paired else sum(label) == 3)
    ]

    def difference(task: int, label: tuple[int, ...]) -> float:
        scores = [*ours[task], *theirs[task]]
        first = [score for score, side in zip(scores, label, strict=True) if side == 0]
        second = [score for score, side in zip(scores, label, strict=True) if side == 1]
        return math.fsum(first) / 3 - math.fsum(second) / 3

    differences = [
        (difference(0, first) + difference(1, second)) / 2
        for first, second in itertools.product(labels, repeat=2)
    ]
    observed = (difference(0, (0, 0, 0, 1, 1, 1)) + difference(1, (0, 0, 0, 1, 1, 1))) / 2
    extreme = sum(abs(value) >= abs(observed) - 1e-9 for value in differences)
    result = permutation_test(ours, theirs, paired=paired)
    assert result.permutations == len(differences)
    assert result.difference == pytest.approx(observed, abs=TOLERANCE)
    assert result.p_value == pytest.approx(extreme / len(differences), abs=TOLERANCE)


@pytest.mark.parametrize("paired", [False, True])
def test_sampled_permutations_tend_to_the_exact_p(paired: bool) -> None:
    ours, theirs = [GENERATOR.normal(0.7, size=6)], [GENERATOR.normal(size=6)]
    exact = permutation_test(ours, theirs, paired=paired)
    # Fewer than the 2**6 and C(12, 6) there are: drawn, with the observed labels among them.
    sampled = permutation_test(ours, theirs, paired=paired, permutations=60)
    assert exact.exact and not sampled.exact and sampled.permutations == 61
    assert sampled.p_value >= sampled.smallest_p == 1 / 61
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.2)


def test_groups_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="ours has 1 tasks and theirs 2"):
        permutation_test([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="as many seeds"):
        permutation_test([[1.0, 2.0]], [[1.0]], paired=True)
