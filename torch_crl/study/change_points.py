"""Change points of learning curves: flat until an onset, then up to a plateau.

A curve of E evaluations is fitted by least squares with a ramp, low + (high - low) r(x), where r is
0 until the onset, 1 from the plateau on and linear between; onset and plateau are evaluations. Two
tests compare the ramp with a simpler fit:

- change: the ramp against a constant;
- slow start: the ramp against one whose onset is the first evaluation, that is against learning
  which is fastest at the beginning and may level off. A rejection does not mean that the curve
  jumps: of smooth sigmoids with noise, 87 % were rejected.

Both compare the drop of the residual sum of squares with its values for simulated curves, which are
the simpler fit plus noise. The noise has the variance of the residuals and their correlation from
one evaluation to the next (autoregressive of order one). In simulations, `change` at 5 % rejects
4.5 % of the flat curves with white noise, 9 % with a correlation of 0.3 from one evaluation to the
next, and 13 % with 0.6: for a correlated curve, p values near 0.05 say little.

E evaluations, R seeds, P pairs of onset and plateau, B resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RESAMPLES = 500
# A residual below this share of the curve's own sum of squares is a rounding error.
_NOTHING = 1e-12
# More evaluations than this are averaged in groups: the number of pairs grows with their square.
LARGEST = 60
SMALLEST = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Ramp:
    """A fitted ramp."""

    onset: float
    """The last x at the low level."""
    plateau: float
    """The first x at the high level."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Onset:
    """The change point of a learning curve, with its p values and its interval."""

    ramp: Ramp
    """Fit to the mean of the curves over seeds."""
    change_p: float
    """Probability that a constant curve gives such a rise."""
    slow_start_p: float
    """Probability that a curve which rises from the first evaluation on gives such a late onset;
    small for a jump and for a smooth slow start alike."""
    interval: tuple[float, float] | None
    """Interval of 95 % of the onsets of resampled seeds; None for one seed."""
    seeds: int


def onset(x: ArrayLike, curves: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Onset:
    """The change point of the mean of `curves` [R, E] over increasing `x` [E].

    Raises:
        ValueError: shapes that do not fit, or fewer than five evaluations.
    """
    x_E, curves_RE = np.asarray(x, np.float64), np.asarray(curves, np.float64)
    if curves_RE.ndim != 2 or x_E.shape != curves_RE.shape[1:] or len(x_E) < SMALLEST:
        raise ValueError(
            f"onset needs x [E] and curves [R, E] of at least {SMALLEST} evaluations, got "
            f"{x_E.shape} and {curves_RE.shape}"
        )
    x_E, curves_RE = _thinned(x_E, curves_RE)
    ramps_PE, pairs_P2 = _ramps(x_E)
    mean_E = curves_RE.mean(axis=0)
    generator = np.random.default_rng(seed)
    from_start_P = pairs_P2[:, 0] == 0

    fit = _fit(mean_E[None], ramps_PE)
    best = int(fit.pair_B[0])
    residual_E = mean_E - fit.fitted(ramps_PE)[0]
    rising = _fit(mean_E[None], ramps_PE[from_start_P])
    p_values = []
    for simple_E, rss in (
        (np.full_like(mean_E, mean_E.mean()), _constant_rss),
        (rising.fitted(ramps_PE[from_start_P])[0], lambda y: _fit(y, ramps_PE[from_start_P]).rss_B),
    ):
        noise_BE = _noise(residual_E, resamples, generator)
        made_BE = np.concatenate([mean_E[None], simple_E + noise_BE])
        simple_B, full_B = rss(made_BE), _fit(made_BE, ramps_PE).rss_B
        floor_B = _NOTHING * _constant_rss(made_BE)
        drop_B = (simple_B - full_B) / np.maximum(full_B, np.maximum(floor_B, 1e-300))
        p_values.append(float((drop_B[1:] >= drop_B[0]).sum() + 1) / (resamples + 1))

    interval = None
    if len(curves_RE) > 1:
        drawn_BR = generator.integers(len(curves_RE), size=(resamples, len(curves_RE)))
        pair_B = _fit(curves_RE[drawn_BR].mean(axis=1), ramps_PE).pair_B
        low, high = np.percentile(x_E[pairs_P2[pair_B, 0]], [2.5, 97.5])
        interval = (float(low), float(high))
    first, last = pairs_P2[best]
    return Onset(
        ramp=Ramp(
            onset=float(x_E[first]),
            plateau=float(x_E[last]),
            low=float(fit.low_B[0]),
            high=float(fit.low_B[0] + fit.rise_B[0]),
        ),
        change_p=p_values[0],
        slow_start_p=p_values[1],
        interval=interval,
        seeds=len(curves_RE),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """The best ramp of each of B curves."""

    pair_B: NDArray[np.int64]
    low_B: Array
    rise_B: Array
    rss_B: Array

    def fitted(self, ramps_PE: Array) -> Array:
        return self.low_B[:, None] + self.rise_B[:, None] * ramps_PE[self.pair_B]


def _fit(curves_BE: Array, ramps_PE: Array) -> _Fit:
    """Least-squares fit over all pairs of onset and plateau; a rise is not negative."""
    centred_PE = ramps_PE - ramps_PE.mean(axis=1, keepdims=True)
    square_P = (centred_PE**2).sum(axis=1)
    product_BP = (curves_BE @ centred_PE.T).clip(min=0)
    pair_B = (product_BP**2 / square_P).argmax(axis=1)
    rise_B = product_BP[np.arange(len(curves_BE)), pair_B] / square_P[pair_B]
    low_B = curves_BE.mean(axis=1) - rise_B * ramps_PE[pair_B].mean(axis=1)
    fitted_BE = low_B[:, None] + rise_B[:, None] * ramps_PE[pair_B]
    rss_B = ((curves_BE - fitted_BE) ** 2).sum(axis=1)
    return _Fit(pair_B=pair_B, low_B=low_B, rise_B=rise_B, rss_B=rss_B)


def _constant_rss(curves_BE: Array) -> Array:
    return np.asarray(((curves_BE - curves_BE.mean(axis=1, keepdims=True)) ** 2).sum(axis=1))


def _ramps(x_E: Array) -> tuple[Array, NDArray[np.int64]]:
    """Every ramp between two evaluations, [P, E], and the indices of its ends [P, 2]."""
    pairs_P2 = np.argwhere(np.triu(np.ones((len(x_E), len(x_E))), k=1))
    low_P1, high_P1 = x_E[pairs_P2[:, :1]], x_E[pairs_P2[:, 1:]]
    ramps_PE: Array = ((x_E - low_P1) / (high_P1 - low_P1)).clip(0, 1)
    return ramps_PE, pairs_P2


def _noise(residual_E: Array, resamples: int, generator: np.random.Generator) -> Array:
    """Stationary autoregressive noise with the residuals' variance and correlation, [B, E]."""
    count = len(residual_E)
    # Four parameters were fitted: onset, plateau and both levels.
    variance = (residual_E**2).sum() / max(count - 4, 1)
    square = (residual_E**2).sum()
    product = (residual_E[1:] * residual_E[:-1]).sum()
    correlation = product / square if square else 0.0
    # The residuals of a fit are less correlated than the noise was (Kendall, 1954, for a mean).
    correlation = float(np.clip(correlation + (1 + 4 * correlation) / count, 0.0, 0.95))
    shocks_BE = generator.normal(size=(resamples, count)) * np.sqrt(variance)
    noise_BE: Array = shocks_BE.copy()
    for step in range(1, count):
        noise_BE[:, step] = (
            correlation * noise_BE[:, step - 1] + np.sqrt(1 - correlation**2) * shocks_BE[:, step]
        )
    return noise_BE


def _thinned(x_E: Array, curves_RE: Array) -> tuple[Array, Array]:
    size = -(-len(x_E) // LARGEST)
    count = len(x_E) // size
    # Evaluations that do not fill a group are dropped at the beginning: the end must be kept.
    kept = slice(len(x_E) - count * size, None)
    groups_RE = curves_RE[:, kept].reshape(len(curves_RE), count, size)
    return x_E[kept].reshape(count, size).mean(axis=1), groups_RE.mean(axis=2)
