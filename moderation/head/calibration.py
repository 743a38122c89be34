"""From logits to probabilities, and thresholds that hold the joint false-positive rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_BENIGN = 30  # rows that a source needs to count as one of harmless texts
LEAST_THRESHOLD = 0.5  # nothing is flagged that is more likely harmless, however rare a label is
MIN_SLOPE, MAX_SLOPE = 0.05, 10.0


def fit_line(truth: ArrayLike, logits: ArrayLike, weights: ArrayLike) -> tuple[float, float]:
    """(a, c) such that sigmoid(a logit + c) is calibrated (Platt scaling); a is above 0, so the order stays.

    (1, 0) where only one class is there. Newton's method on the weighted log-loss, with Platt's softened targets.
    """
    y, z, w = (np.asarray(values, dtype=np.float64) for values in (truth, logits, weights))
    positives, negatives = float((y == 1).sum()), float((y == 0).sum())
    if not positives or not negatives:
        return 1.0, 0.0
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs = np.stack([z, np.ones_like(z)], axis=1)
    line = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(inputs @ line, -30, 30)))
        gradient = inputs.T @ (w * (p - target)) + 1e-6 * line
        curvature = (inputs * (w * p * (1 - p))[:, None]).T @ inputs + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        line = line - step * min(1.0, 2.0 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return float(np.clip(line[0], MIN_SLOPE, MAX_SLOPE)), float(line[1])


def benign_sources(sources: Sequence[str], truth_NL: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
    """Source -> its row numbers, for sources of LEAST_BENIGN rows and more in which no row has a label.

    Where there is no such source, all rows that are known to have no label count as one.
    """
    names = np.asarray(sources)
    harmful: NDArray[np.bool_] = np.any(truth_NL == 1, axis=1)
    known: NDArray[np.bool_] = ~np.all(np.isnan(truth_NL), axis=1)
    found = {
        str(name): np.flatnonzero(names == name)
        for name in np.unique(names)
        if (names == name).sum() >= LEAST_BENIGN and not harmful[names == name].any() and known[names == name].all()
    }
    together = np.flatnonzero(known & ~harmful)
    return found or ({"all sources": together} if len(together) >= LEAST_BENIGN else {})


def joint_thresholds(
    probabilities_NL: NDArray[np.float64],
    labels: Sequence[str],
    benign: Mapping[str, NDArray[np.int64]],
    rate: float,
    rates: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    """Label -> threshold, such that at most a share `rate` of each benign source (its own, where `rates` has one)
    reaches any of them.

    All labels get the same share of false positives each, of all sources together with the same weight, and as large
    as that allows (found by halving). No threshold is below LEAST_THRESHOLD. ValueError for no source.
    """
    if not benign:
        raise ValueError(
            f"no source of harmless texts to set thresholds on; give more rows whose labels are all 0, until "
            f"{LEAST_BENIGN} of them are held back"
        )

    pooled = np.concatenate(list(benign.values()))
    weights = np.concatenate([np.full(len(rows), 1 / (len(benign) * len(rows))) for rows in benign.values()])

    def at(share: float) -> NDArray[np.float64]:
        of_label = (_weighted_threshold(probabilities_NL[pooled, j], weights, share) for j in range(len(labels)))
        return np.array([max(LEAST_THRESHOLD, threshold) for threshold in of_label])

    def joint(thresholds_L: NDArray[np.float64]) -> float:
        flagged: NDArray[np.bool_] = np.any(probabilities_NL >= thresholds_L, axis=1)
        return max(_within(flagged[rows], rates.get(source, rate)) for source, rows in benign.items())

    low, high = 0.0, max([rate, *rates.values()])
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if joint(at(middle)) <= 0 else (low, middle)
    found = at(low if joint(at(high)) > 0 else high)
    return {label: float(min(value, 1.0)) for label, value in zip(labels, found, strict=True)}


def _within(flagged: NDArray[np.bool_], rate: float) -> float:
    """How many more are flagged than the rate allows."""
    return float(flagged.sum() - np.floor(rate * len(flagged) + 1e-9))


def _weighted_threshold(scores: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """The lowest threshold that at most `share` of the weight (1 in all) reaches."""
    order = np.argsort(-scores)
    reached = np.cumsum(weights[order])
    first = int(np.searchsorted(reached, share + 1e-12, side="right"))
    return float(np.nextafter(scores[order[min(first, len(order) - 1)]], np.inf))
