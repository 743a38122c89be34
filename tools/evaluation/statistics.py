"""How sure a rate is: intervals that hold the true value in 95 of 100 cases; and a win rate at equal lengths."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
_Z = 1.959964  # the normal distribution's 97.5th percentile
_SEED = 0
_RIDGE = 0.1  # of the length's coefficient: next to nothing beside real data, but finite where lengths say it all
_STEPS, _TOLERANCE = 100, 1e-10

Interval = tuple[float, float]
Floats = NDArray[np.float64]


def wilson(successes: int, total: int) -> Interval | None:
    """The interval of a share of independent trials (Wilson 1927, score interval); None of no trials."""
    if not total:
        return None
    share, z2 = successes / total, _Z * _Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_ratio(sums: ArrayLike, counts: ArrayLike) -> Interval | None:
    """The interval of sum(sums) / sum(counts), from rows drawn anew with replacement (Efron 1979, percentiles): rows
    are independent, what is counted within one need not be. None where nothing is counted."""
    tops, bottoms = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    if not bottoms.sum():
        return None
    rng = np.random.default_rng(_SEED)
    found = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(bottoms), size=len(bottoms))
        if total := bottoms[drawn].sum():
            found.append(tops[drawn].sum() / total)
    return _percentiles(np.array(found))


def length_controlled(wins: ArrayLike, lengths: ArrayLike) -> float:
    """The win rate that would be had at equal lengths, from 0 to 1 (Dubois et al. 2024, section 3, without the terms
    that tell prompts and further models apart).

    `wins` (n): 1, 0, or 0.5 for a tie. `lengths` (n): ours minus theirs. Of the regression
    P(win) = sigma(theta + phi tanh(length / std(lengths))) it is sigma(theta).
    """
    y, x = np.asarray(wins, np.float64), _squashed(np.asarray(lengths, np.float64))
    return _rate_at_zero(y, x)


def length_controlled_interval(wins: ArrayLike, lengths: ArrayLike) -> Interval:
    """The interval of `length_controlled`, from rows drawn anew with replacement."""
    y, x = np.asarray(wins, np.float64), _squashed(np.asarray(lengths, np.float64))
    rng = np.random.default_rng(_SEED)
    drawn = (rng.integers(len(y), size=len(y)) for _ in range(RESAMPLES))
    return _percentiles(np.array([_rate_at_zero(y[rows], x[rows]) for rows in drawn]))


def _squashed(lengths: Floats) -> Floats:
    spread = lengths.std()
    return np.tanh(lengths / spread) if spread else np.zeros_like(lengths)


def _rate_at_zero(y: Floats, x: Floats) -> float:
    """sigma(theta) of P(y) = sigma(theta + phi x), by Newton's method with a small ridge on phi."""
    if y.min() == y.max() and y[0] in (0.0, 1.0):
        return float(y[0])  # theta would be infinite
    features, ridge = np.column_stack([np.ones_like(x), x]), np.diag([0.0, _RIDGE])
    weights = np.zeros(2)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        gradient = features.T @ (y - p) - ridge @ weights
        curvature = (features * (p * (1 - p))[:, None]).T @ features + ridge
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        weights += step / max(1.0, float(np.abs(step).max()))  # far from the end Newton's step may be too long
        if np.abs(step).max() < _TOLERANCE:
            break
    return float(1 / (1 + np.exp(-weights[0])))


def _percentiles(values: Floats) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
