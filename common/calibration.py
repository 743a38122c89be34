"""How far confidence is from the truth: reliability by bins, and the expected calibration error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

BY = ("uniform", "quantile")


class Bin(NamedTuple):
    """`num` predictions with a confidence above `low`, up to `high` (the first bin: from `low`), their mean
    `confidence`, and the share of them that is right."""

    low: float
    high: float
    num: int
    confidence: float
    accuracy: float


def reliability(confidence: ArrayLike, correct: ArrayLike, num_bins: int, by: str = "uniform") -> list[Bin]:
    """The bins that hold something, in order.

    `confidence` (n) from 0 to 1, `correct` (n) of 0 and 1. Bins are of equal width over [0, 1], or with `quantile` of
    equal numbers, as far as equal values, which stay together, allow. Raises ValueError for another way, for fewer
    than one bin, and where n is 0.
    """
    p, hit = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if p.shape != hit.shape:
        raise ValueError(f"{p.size} confidences but {hit.size} outcomes; give one outcome for each")
    if not len(p) or by not in BY:
        raise ValueError(f"no calibration error of {len(p)} values by '{by}'; it needs values, and one of {BY}")
    if num_bins < 1:
        raise ValueError(f"{num_bins} bins; it takes at least 1")
    shares = np.linspace(0, 1, num_bins + 1)
    edges = shares if by == "uniform" else np.quantile(p, shares)
    which = np.clip(np.searchsorted(edges[1:-1], p, side="left"), 0, num_bins - 1)
    counts = np.bincount(which, minlength=num_bins)
    sums, hits = np.bincount(which, p, num_bins), np.bincount(which, hit, num_bins)
    return [
        Bin(
            float(edges[b]), float(edges[b + 1]), int(counts[b]), float(sums[b] / counts[b]), float(hits[b] / counts[b])
        )
        for b in np.flatnonzero(counts)
    ]


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int, by: str = "uniform") -> float:
    """sum_b n_b / n |accuracy_b - mean confidence_b|, from 0 to 1, lower is better (Guo et al. 2017, eq. 3); over the
    bins of `reliability`."""
    bins = reliability(confidence, correct, num_bins, by)
    return sum(each.num * abs(each.accuracy - each.confidence) for each in bins) / sum(each.num for each in bins)
