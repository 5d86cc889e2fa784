"""Statistics of a few seeds on a few tasks, after Agarwal et al., 2021 (arXiv 2108.13264).

Scores are given as strata, one array for each task: [R] has a score of each of its R seeds, and
[R, X] a curve of each over X points. Legend: R seeds of one task, B resamples, X further axes or
none.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.05
"""Largest p value at which seeds tell two groups apart."""

Array = NDArray[np.float64]

RESAMPLES = 2000
# If there are more ways than this to exchange the labels, a test draws this many at random.
_EXACT_PERMUTATIONS = 10_000
# Differences this close to the observed one count as equal to it: they are sums in another order.
_TIE = 1e-12


class Interval(NamedTuple):
    """Both ends of an interval, each a number or, for curves, an array [X]."""

    low: Array
    high: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its uncertainty."""

    point: float
    interval: tuple[float, float] | None
    """Percentile interval of a stratified bootstrap; None where a task has one seed only."""
    seeds: tuple[int, ...]
    """Number of seeds of each task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PermutationTest:
    """Result of testing whether two groups of seeds differ, by exchanging their labels."""

    difference: float
    """Mean of ours minus mean of theirs, averaged over tasks."""
    p_value: float
    """Two-sided."""
    smallest_p: float
    """Smallest p value that these numbers of seeds can give; for 3 against 3 it is 0.1."""
    permutations: int
    exact: bool
    """Whether every permutation was counted, or a random sample of them."""


def interquartile_mean(
    values: ArrayLike, *, axis: int = 0, weights: ArrayLike | None = None
) -> Array:
    """Mean of what is left after dropping floor(n / 4) of n values at each end, along `axis`.

    This is scipy.stats.trim_mean(values, 0.25), the definition of rliable: if n is no multiple of
    four, no value gets a fractional weight, and of up to three values nothing is dropped. `weights`
    are whole numbers, one for each value along `axis`: as often the value is repeated.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.shape[axis]:
        raise ValueError("no values to take an interquartile mean of")
    if weights is None:
        sorted_values, count = np.sort(array, axis=axis), array.shape[axis]
        middle = range(count // 4, count - count // 4)
        return np.asarray(np.take(sorted_values, middle, axis=axis).mean(axis=axis))
    repeats = np.asarray(weights)
    order = np.argsort(array, axis=axis)
    total = int(repeats.sum())
    dropped = total // 4
    ends = np.cumsum(repeats[order], axis=axis)
    begins = ends - repeats[order]
    kept = np.maximum(np.minimum(ends, total - dropped) - np.maximum(begins, dropped), 0)
    sums = (kept * np.take_along_axis(array, order, axis=axis)).sum(axis=axis)
    return np.asarray(sums / (total - 2 * dropped))


def pooled(strata: Sequence[ArrayLike]) -> Array:
    """The interquartile mean over all seeds of all tasks, which count alike; [X]."""
    arrays = [np.asarray(stratum) for stratum in strata]
    return interquartile_mean(np.concatenate(arrays), weights=_equal_tasks(map(len, arrays)))


def stratified_bootstrap_interval(
    strata: Sequence[ArrayLike],
    *,
    statistic: Callable[..., Array] = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of `statistic` over all seeds, which are resampled within each task.

    Tasks count alike, however many seeds each has.

    Args:
        strata: one array [R, X] for each task, R may differ; a seed is drawn with its whole curve.
        statistic: takes values, `axis` and `weights`, as `interquartile_mean` and `numpy.average`.
        confidence: the share of the resamples between both ends.
        seed: random seed of the draws, which are `integers(R, size=(B, R))` for each task in turn.

    Returns:
        The interval; None if any task has one seed, which would seem to have no uncertainty.
    """
    resampled = _resample(strata, resamples=resamples, generator=np.random.default_rng(seed))
    if resampled is None:
        return None
    weights = _equal_tasks(len(np.asarray(stratum)) for stratum in strata)
    statistics_BX = statistic(np.concatenate(resampled, axis=1), axis=1, weights=weights)
    return _percentiles(statistics_BX, confidence)


def estimate(strata: Sequence[ArrayLike], *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Interquartile mean of all scores [R] of all tasks, which count alike, with its interval."""
    interval = stratified_bootstrap_interval(strata, confidence=confidence, seed=seed)
    return Estimate(
        point=float(pooled(strata)),
        interval=interval and (float(interval.low), float(interval.high)),
        seeds=tuple(len(np.asarray(stratum)) for stratum in strata),
    )


def probability_of_improvement(
    ours: Sequence[ArrayLike],
    theirs: Sequence[ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Probability that a seed of ours beats one of theirs on the same task; a tie counts half.

    It is averaged over tasks. Its interval is from a bootstrap over the seeds of both, ours drawn
    before theirs. `Estimate.seeds` has the numbers of ours, then those of theirs.
    """
    _require_same_tasks(ours, theirs)
    generator = np.random.default_rng(seed)
    drawn = _resample([*ours, *theirs], resamples=resamples, generator=generator)
    interval = None
    if drawn is not None:
        ends = _percentiles(_improvement(drawn[: len(ours)], drawn[len(ours) :]), confidence)
        interval = (float(ends.low), float(ends.high))
    single = [np.asarray(stratum, dtype=np.float64)[None] for stratum in (*ours, *theirs)]
    return Estimate(
        point=float(_improvement(single[: len(ours)], single[len(ours) :])[0]),
        interval=interval,
        seeds=tuple(stratum.shape[1] for stratum in single),
    )


def permutation_test(
    ours: Sequence[ArrayLike],
    theirs: Sequence[ArrayLike],
    *,
    paired: bool = False,
    permutations: int = _EXACT_PERMUTATIONS,
    seed: int = 0,
) -> PermutationTest:
    """Two-sided test of equal scores, by exchanging labels within each task.

    The test is exact if there are at most `permutations` ways to exchange them. Otherwise that many
    are drawn, and the observed labels are counted as one more.

    Args:
        ours, theirs: one array [R] for each task.
        paired: whether seed i of ours belongs to seed i of theirs; labels are then exchanged only
            within such pairs.

    Raises:
        ValueError: tasks that do not match or, with `paired`, numbers of seeds that do not match.
    """
    _require_same_tasks(ours, theirs)
    pairs = [
        (np.asarray(a, float), np.asarray(b, float)) for a, b in zip(ours, theirs, strict=True)
    ]
    if paired and any(len(a) != len(b) for a, b in pairs):
        raise ValueError("a paired test needs as many seeds of ours as of theirs on every task")
    ways = math.prod(
        2 ** len(a) if paired else math.comb(len(a) + len(b), len(a)) for a, b in pairs
    )
    exact = ways <= permutations
    observed = float(np.mean([a.mean() - b.mean() for a, b in pairs]))
    if exact:
        # The differences of all ways within each task, then all combinations over tasks.
        choices = [_all_differences(a, b, paired=paired) for a, b in pairs]
        differences = np.array([np.mean(chosen) for chosen in itertools.product(*choices)])
    else:
        generator = np.random.default_rng(seed)
        drawn = [
            _drawn_differences(a, b, paired=paired, count=permutations, generator=generator)
            for a, b in pairs
        ]
        differences = np.append(np.mean(drawn, axis=0), observed)
    scale = max(1.0, float(np.abs(differences).max()))
    extreme = np.abs(differences) >= abs(observed) - _TIE * scale
    return PermutationTest(
        difference=observed,
        p_value=float(extreme.mean()),
        smallest_p=_smallest_p(pairs, paired=paired, ways=ways, drawn=0 if exact else permutations),
        permutations=len(differences),
        exact=exact,
    )


def corrected(tests: Sequence[PermutationTest]) -> list[PermutationTest]:
    """The same tests with p values corrected for their number, in the same order (Holm, 1979).

    `smallest_p` is corrected likewise, for the case that every test gives its smallest p value.
    """
    p_values = holm([test.p_value for test in tests])
    smallest = holm([test.smallest_p for test in tests])
    return [
        replace(test, p_value=p, smallest_p=least)
        for test, p, least in zip(tests, p_values, smallest, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for their number, in the same order (Holm's step-down method)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def _equal_tasks(seeds: Iterable[int]) -> Array | None:
    """A weight for each seed of each task, so that tasks count alike; None if all are equal."""
    counts = [*seeds]
    repeats = [math.lcm(*counts) // count for count in counts]
    return np.repeat(repeats, counts).astype(float) if len(set(counts)) > 1 else None


def _resample(
    strata: Sequence[ArrayLike], *, resamples: int, generator: np.random.Generator
) -> list[Array] | None:
    """One array [B, R, X] for each task; None if a task has fewer than two seeds."""
    arrays = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    if not arrays or any(len(array) < 2 for array in arrays):
        return None
    return [array[generator.integers(len(array), size=(resamples, len(array)))] for array in arrays]


def _percentiles(statistics_BX: Array, confidence: float) -> Interval:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(statistics_BX, [tail, 100.0 - tail], axis=0)
    return Interval(low, high)


def _improvement(ours: Sequence[Array], theirs: Sequence[Array]) -> Array:
    """Probability of improvement [B] from arrays [B, R] of each task."""
    shares = []
    for our_BR, their_BR in zip(ours, theirs, strict=True):
        gap_BRR = our_BR[:, :, None] - their_BR[:, None, :]
        shares.append((0.5 + 0.5 * np.sign(gap_BRR)).mean(axis=(1, 2)))
    return np.asarray(np.mean(shares, axis=0))


def _all_differences(ours_R: Array, theirs_R: Array, *, paired: bool) -> list[float]:
    if paired:
        gap_R = ours_R - theirs_R
        signs = itertools.product((1.0, -1.0), repeat=len(gap_R))
        return [float(np.mean(gap_R * sign)) for sign in signs]
    everything, count = np.concatenate([ours_R, theirs_R]), len(ours_R)
    total = everything.sum()
    sums = (
        everything[list(chosen)].sum()
        for chosen in itertools.combinations(range(len(everything)), count)
    )
    return [float(ours / count - (total - ours) / (len(everything) - count)) for ours in sums]


def _drawn_differences(
    ours_R: Array, theirs_R: Array, *, paired: bool, count: int, generator: np.random.Generator
) -> Array:
    if paired:
        signs_BR = generator.choice((1.0, -1.0), size=(count, len(ours_R)))
        return np.asarray((signs_BR * (ours_R - theirs_R)).mean(axis=1))
    shuffled_BR = generator.permuted(
        np.tile(np.concatenate([ours_R, theirs_R]), (count, 1)), axis=1
    )
    ours_BR, theirs_BR = shuffled_BR[:, : len(ours_R)], shuffled_BR[:, len(ours_R) :]
    return np.asarray(ours_BR.mean(axis=1) - theirs_BR.mean(axis=1))


def _smallest_p(pairs: list[tuple[Array, Array]], *, paired: bool, ways: int, drawn: int) -> float:
    # Exchanging all labels gives a difference that is as extreme, but it is possible only if the
    # groups are equally large.
    mirrored = paired or all(len(ours) == len(theirs) for ours, theirs in pairs)
    return 1 / (drawn + 1) if drawn else (2 if mirrored else 1) / ways


def _require_same_tasks(ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike]) -> None:
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(
            f"ours has {len(ours)} tasks and theirs {len(theirs)}; both need the same, at least one"
        )
