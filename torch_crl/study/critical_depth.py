"""The depth at which scores jump: where it is, whether it is more than luck, how stable it is.

R seeds of one depth, B resamples, K depths.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torch_crl.study.statistics import RESAMPLES, corrected, permutation_test


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The step from one depth of the study to the next deeper one."""

    shallow: int
    deep: int
    rise: float
    """Rise of the mean score over seeds."""
    p_value: float
    """Two-sided permutation test of equal scores, corrected for the number of steps (Holm)."""
    smallest_p: float
    """Smallest p value that the test can give with these numbers of seeds, corrected likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalDepth:
    """The critical depth: the deeper end of the step with the largest rise."""

    depth: int | None
    """None if no step rises."""
    share_of_rise: float
    """The largest rise as a share of all rises together; 1 / K for K steps of equal size."""
    steps: tuple[Step, ...]
    stability: Mapping[int | None, float] | None
    """Share of the resamples of the seeds in which each depth is the critical one; None where a
    depth has one seed only."""

    @property
    def jump(self) -> Step | None:
        """The step up to the critical depth."""
        return next((step for step in self.steps if step.deep == self.depth), None)


def critical_depth(
    scores: Mapping[int, ArrayLike], *, resamples: int = RESAMPLES, seed: int = 0
) -> CriticalDepth:
    """Find the critical depth, given depth to the scores [R] of its seeds; R may differ.

    Raises:
        ValueError: fewer than two depths.
    """
    if len(scores) < 2:
        raise ValueError(f"a critical depth needs at least two depths, got {sorted(scores)}")
    depths = sorted(scores)
    scores_KR = [np.asarray(scores[depth], dtype=np.float64) for depth in depths]
    rises = np.diff([scores_R.mean() for scores_R in scores_KR])
    tests = corrected(
        [
            permutation_test([deep_R], [shallow_R], seed=seed)
            for shallow_R, deep_R in itertools.pairwise(scores_KR)
        ]
    )
    best = int(rises.argmax())
    total = float(rises.clip(min=0).sum())
    return CriticalDepth(
        depth=depths[best + 1] if total else None,
        share_of_rise=float(rises[best]) / total if total else 0.0,
        steps=tuple(
            Step(
                shallow=depths[index],
                deep=depths[index + 1],
                rise=float(rises[index]),
                p_value=test.p_value,
                smallest_p=test.smallest_p,
            )
            for index, test in enumerate(tests)
        ),
        stability=_stability(depths, scores_KR, resamples=resamples, seed=seed),
    )


def _stability(
    depths: Sequence[int], scores_KR: Sequence[NDArray[np.float64]], *, resamples: int, seed: int
) -> dict[int | None, float] | None:
    if min(map(len, scores_KR)) < 2:
        return None
    generator = np.random.default_rng(seed)
    means_KB = [
        scores_R[generator.integers(len(scores_R), size=(resamples, len(scores_R)))].mean(axis=1)
        for scores_R in scores_KR
    ]
    rises_KB = np.diff(means_KB, axis=0)
    rising_B = rises_KB.max(axis=0) > 0
    found_B = np.where(rising_B, rises_KB.argmax(axis=0), -1)
    shares: dict[int | None, float] = {
        depth: float((found_B == index).mean()) for index, depth in enumerate(depths[1:])
    }
    return shares | {None: float((~rising_B).mean())}
