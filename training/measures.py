"""How good predictions are: calibration error, F1."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BY = ("uniform", "quantile")


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int, by: str = "uniform") -> float:
    """sum_b n_b / n |accuracy_b - mean confidence_b|, from 0 to 1, lower is better (Guo et al. 2017, eq. 3).

    `confidence` (n) from 0 to 1, `correct` (n) of 0 and 1. Bins are of equal width over [0, 1], or with `quantile` of
    equal numbers. Raises ValueError for another way and where n is 0.
    """
    p, hit = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if not len(p) or by not in BY:
        raise ValueError(f"no calibration error of {len(p)} values by '{by}'; it needs values, and one of {BY}")
    edges = np.linspace(0, 1, num_bins + 1) if by == "uniform" else np.quantile(p, np.linspace(0, 1, num_bins + 1))
    bins = np.clip(np.searchsorted(edges[1:-1], p, side="left"), 0, num_bins - 1)
    gaps = np.bincount(bins, hit - p, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(p))


def f1(said: NDArray[np.float64], true: NDArray[np.float64], label: int) -> float | None:
    """2 right / (said + true) of one label (n); None where it is neither said nor true anywhere."""
    right = float(((said == label) & (true == label)).sum())
    total = float((said == label).sum() + (true == label).sum())
    return 2 * right / total if total else None
