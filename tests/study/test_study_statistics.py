"""Critical depths, change points and Pareto fronts of data whose answer is known."""

import itertools

import numpy as np
import pytest

from torch_crl.study.change_points import LARGEST, onset
from torch_crl.study.critical_depth import critical_depth
from torch_crl.study.pareto import cheapest_near_best, pareto_front
from torch_crl.study.statistics import holm


def test_a_jump_is_found_and_is_more_than_luck() -> None:
    noise = np.random.default_rng(0).normal(size=(4, 6))
    scores = dict(zip((4, 8, 16, 32), np.array([[10], [12], [300], [310]]) + noise, strict=True))
    found = critical_depth(scores)
    assert found.depth == 16
    assert found.share_of_rise == pytest.approx(288 / 300, abs=0.01)
    assert found.stability == {8: 0.0, 16: 1.0, 32: 0.0, None: 0.0}
    # 6 against 6 seeds, all of 16 above all of 8: 2 of C(12, 6) = 924 ways, times three steps.
    assert found.jump is not None
    assert found.jump.p_value == pytest.approx(3 * 2 / 924)
    assert found.jump.smallest_p == pytest.approx(3 * 2 / 924)
    assert found.jump.rise == pytest.approx(float(np.mean(scores[16]) - np.mean(scores[8])))


def test_growth_in_equal_steps_has_no_stable_critical_depth() -> None:
    noise = np.random.default_rng(1).normal(scale=60, size=(4, 5))
    scores = dict(zip((4, 8, 16, 32), np.array([[0], [50], [100], [150]]) + noise, strict=True))
    found = critical_depth(scores)
    assert found.stability is not None
    assert max(found.stability.values()) < 0.9
    assert min(step.p_value for step in found.steps) > 0.05


def test_one_seed_has_no_stability_and_no_rise_no_depth() -> None:
    found = critical_depth({4: [1.0], 8: [5.0]})
    assert (found.depth, found.stability) == (8, None)
    assert found.steps[0].p_value == 1.0
    falling = critical_depth({4: [3.0, 3.1], 8: [2.0, 2.1], 16: [1.0, 1.1]})
    assert falling.depth is None and falling.jump is None
    assert falling.stability == {8: 0.0, 16: 0.0, None: 1.0}
    with pytest.raises(ValueError, match="at least two depths"):
        critical_depth({4: [1.0, 2.0]})


def test_stability_equals_counting_every_resample() -> None:
    scores = {4: [0.0, 4.0], 8: [3.0, 5.0], 16: [6.0, 9.0]}
    counts = {8: 0.0, 16: 0.0}
    for drawn in itertools.product(*(itertools.product(s, repeat=2) for s in scores.values())):
        means = [sum(pair) / 2 for pair in drawn]
        first, second = means[1] - means[0], means[2] - means[1]
        counts[8 if first >= second else 16] += 1 / 64
    found = critical_depth(scores, resamples=20_000).stability
    assert found is not None
    for depth, share in counts.items():
        assert found[depth] == pytest.approx(share, abs=0.015)


def test_holm_by_hand() -> None:
    # 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]


def test_what_tests_could_show_is_corrected_as_they_are() -> None:
    # Depth 4 against 8: 2 of C(12, 6) = 924 ways; 8 against 16: 1 of C(8, 2) = 28 ways.
    found = critical_depth({4: range(6), 8: range(10, 16), 16: range(20, 22)})
    first, second = found.steps
    assert (first.p_value, first.smallest_p) == pytest.approx((2 * 2 / 924, 2 * 2 / 924))
    # Not 2 / 28, which would be more than the p that was found.
    assert (second.p_value, second.smallest_p) == pytest.approx((1 / 28, 1 / 28))


X = np.linspace(0, 10e6, 41)


def curves(mean: np.ndarray, seeds: int = 3, noise: float = 8.0) -> np.ndarray:
    return mean + np.random.default_rng(3).normal(scale=noise, size=(seeds, len(mean)))


def test_an_onset_is_found_where_it_is() -> None:
    found = onset(X, curves(400 * ((X - 4e6) / 3e6).clip(0, 1)))
    assert found.ramp.onset == pytest.approx(4e6, abs=0.3e6)
    assert found.ramp.plateau == pytest.approx(7e6, abs=0.3e6)
    assert found.ramp.low == pytest.approx(0, abs=5)
    assert found.ramp.high == pytest.approx(400, abs=5)
    assert found.change_p < 0.01 and found.slow_start_p < 0.01
    assert found.interval is not None
    assert found.interval[0] <= found.ramp.onset <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 1e6


def test_a_ramp_without_noise_is_fitted_exactly() -> None:
    found = onset(X, 5 + 100 * ((X[None] - X[10]) / (X[30] - X[10])).clip(0, 1))
    ramp = (found.ramp.onset, found.ramp.plateau, found.ramp.low, found.ramp.high)
    assert ramp == pytest.approx((X[10], X[30], 5, 105))
    assert found.interval is None and found.seeds == 1
    assert found.slow_start_p < 0.01


def test_learning_from_the_start_is_no_slow_start() -> None:
    for mean in (400 * X / X[-1], 400 * (X / 4e6).clip(0, 1)):
        found = onset(X, curves(mean))
        assert found.change_p < 0.01
        assert found.slow_start_p > 0.02 and found.ramp.onset < 0.5e6


def test_a_smooth_sigmoid_is_a_slow_start_too() -> None:
    found = onset(X, curves(400 / (1 + np.exp(-(X - 5e6) / 0.8e6))))
    assert found.slow_start_p < 0.05


def test_tests_reject_as_rarely_as_they_say() -> None:
    generator = np.random.default_rng(5)
    change, threshold = 0, 0
    for trial in range(40):
        flat, rising = generator.normal(size=(2, 1, 25))
        change += onset(X[:25], flat, resamples=99, seed=trial).change_p <= 0.05
        rising += np.arange(25.0)
        threshold += onset(X[:25], rising, resamples=99, seed=trial).slow_start_p <= 0.05
    # Of 40 at 5 % expect 2; the chance of 7 or more is 0.3 %.
    assert change < 7 and threshold < 7


def test_many_evaluations_are_averaged_and_few_refused() -> None:
    x = np.arange(1, 151.0)
    found = onset(x, curves(400 * ((x - 60) / 50).clip(0, 1)), resamples=50)
    assert len(x) > LARGEST
    assert found.ramp.onset == pytest.approx(60, abs=6)
    with pytest.raises(ValueError, match="at least 5 evaluations"):
        onset(X[:4], np.zeros((2, 4)))
    assert onset(X, np.zeros((2, len(X)))).change_p == 1.0


def test_pareto_by_hand() -> None:
    costs, values = [1.0, 2.0, 2.0, 3.0, 4.0, 5.0], [10.0, 30.0, 40.0, 40.0, 96.0, 100.0]
    assert pareto_front(costs, values) == [0, 2, 4, 5]
    assert cheapest_near_best(costs, values) == 4
    assert cheapest_near_best(costs, values, share=0.4) == 2
    with pytest.raises(ValueError, match="above 0"):
        cheapest_near_best([1.0], [0.0])


def test_nothing_on_the_front_is_beaten_and_everything_else_is() -> None:
    costs, values = np.random.default_rng(6).integers(0, 6, size=(2, 25)).astype(float).tolist()
    front = pareto_front(costs, values)

    def beaten(i: int) -> bool:
        return any(
            (costs[j], -values[j]) != (costs[i], -values[i])
            and costs[j] <= costs[i]
            and values[j] >= values[i]
            for j in range(25)
        )

    assert not any(map(beaten, front))
    kept = {(costs[i], values[i]) for i in front}
    assert all(beaten(i) or (costs[i], values[i]) in kept for i in range(25))
