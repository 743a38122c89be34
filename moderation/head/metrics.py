"""How good scores are: areas under curves, recall at a false-positive rate, calibration error; by label and group.

Everywhere: `truth` (n,) of 0 and 1, `scores` (n,) of probabilities, higher is worse. A figure that is not defined
(such as an area with one class only) is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.calibration import expected_calibration_error
from moderation.head.data import Row

ANY = "any"
BINS = 15


def auprc(truth: ArrayLike, scores: ArrayLike) -> float | None:
    """Average precision in [0, 1], higher is better; a scorer that knows nothing gets the share of positives."""
    y, s = _pair(truth, scores)
    if not 0 < y.sum() < len(y):
        return None
    from sklearn.metrics import average_precision_score  # type: ignore[import-untyped]

    return float(average_precision_score(y, s))


def auroc(truth: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve in [0, 1], higher is better, 0.5 for chance."""
    y, s = _pair(truth, scores)
    if not 0 < y.sum() < len(y):
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, s))


def threshold_at(scores: ArrayLike, rate: float) -> float:
    """The lowest threshold that at most a share `rate` of these (negative) scores reach; ValueError for no scores."""
    if not 0 <= rate < 1:
        raise ValueError(f"the false-positive rate is {rate}; it must be from 0 to below 1, such as 0.01")
    s = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if not len(s):
        raise ValueError("no negative rows: a false-positive rate needs some")
    allowed = int(np.floor(rate * len(s) + 1e-9))
    return float(np.nextafter(s[allowed], np.inf))


def recall_at_fpr(truth: ArrayLike, scores: ArrayLike, rate: float = 0.01) -> float | None:
    """The share of positives that reach `threshold_at` of the negatives; higher is better."""
    y, s = _pair(truth, scores)
    if not 0 < y.sum() < len(y):
        return None
    return float((s[y == 1] >= threshold_at(s[y == 0], rate)).mean())


def ece(truth: ArrayLike, scores: ArrayLike, bins: int = BINS) -> float | None:
    """Expected calibration error in [0, 1], lower is better: |mean score - share of positives|, averaged over bins
    of equal width by their number of rows."""
    y, s = _pair(truth, scores)
    return expected_calibration_error(s, y, bins) if len(y) else None


def any_truth(row: Row) -> float:
    """1.0 where the text is unsafe by any label, 0.0 where it is known not to be, NaN else."""
    if "unsafe" in row.labels:
        return float(row.labels["unsafe"])
    if any(row.labels.values()):
        return 1.0
    return 0.0 if row.labels else float("nan")


def any_score(scores: Mapping[str, float | None]) -> float:
    """The score of `unsafe` where the classifier has one, else the highest of all; NaN where it knows none."""
    if (overall := scores.get("unsafe")) is not None:
        return overall
    return max((score for score in scores.values() if score is not None), default=float("nan"))


def figures(truth: ArrayLike, scores: ArrayLike, rate: float = 0.01) -> dict[str, Any]:
    """All of the above for one label, and the numbers of rows and of positives."""
    y, s = _pair(truth, scores)
    return {
        "rows": len(y),
        "positives": int(y.sum()),
        "auprc": auprc(y, s),
        "auroc": auroc(y, s),
        "recall": recall_at_fpr(y, s, rate),
        "ece": ece(y, s),
    }


def evaluate(
    rows: Sequence[Row],
    scores: Sequence[Mapping[str, float | None]],
    rate: float = 0.01,
    group: Callable[[Row], str] = lambda row: row.source,
) -> dict[str, Any]:
    """`labels`: label (and ANY) -> figures; `groups`: group -> figures of ANY; `unjudged`: rows without any score.

    A row counts for a label where both the row knows it and the classifier judges it.
    """
    names = sorted({label for row in rows for label in row.labels})
    by_label: dict[str, tuple[list[float], list[float]]] = {
        label: (
            [float(row.labels.get(label, "nan")) for row in rows],
            [_number(score.get(label)) for score in scores],
        )
        for label in names
    }
    truth, overall = np.array([any_truth(row) for row in rows]), np.array([any_score(score) for score in scores])
    groups = np.array([group(row) for row in rows])
    result = {ANY: figures(truth, overall, rate)}
    result |= {label: figures(y, s, rate) for label, (y, s) in by_label.items()}
    return {
        "rate": rate,
        "labels": result,
        "groups": {name: figures(truth[groups == name], overall[groups == name], rate) for name in sorted(set(groups))},
        "unjudged": int(np.isnan(overall).sum()),
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _pair(truth: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as arrays, without the rows where either is NaN. ValueError where they differ in length."""
    y, s = np.asarray(truth, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape:
        raise ValueError(f"{y.size} labels but {s.size} scores; give one score for each row")
    known = ~(np.isnan(y) | np.isnan(s))
    return y[known], s[known]
