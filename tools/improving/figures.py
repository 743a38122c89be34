"""The figures of tools/evaluate.py rag, of two models on the same questions, and how sure their difference is.

A figure is a share, sum(top) / sum(bottom) over questions, or a quantile of seconds. Its intervals, and that of the
difference, are of questions drawn anew with replacement, the same ones for both models (Efron 1979, percentiles;
paired), so that what makes a question hard for both is no difference between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.evaluation.rag_figures import FIGURES as RAG_FIGURES
from tools.evaluation.rag_figures import Figure, Row, is_right
from tools.evaluation.statistics import RESAMPLES, Interval

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]  # (rows of values, as many of weights) -> a figure for each row

_SEED = 0
_BLOCK = 100  # of the resamples, held in memory at a time


@dataclass(frozen=True)
class Compared:
    """A figure of the old and the new model, with 95 % intervals; `gain` is how much better the new one is (so that
    more is better for every figure), in the figure's own unit. None where nothing is counted."""

    old: float | None
    new: float | None
    gain: float | None
    old_interval: Interval | None
    new_interval: Interval | None
    gain_interval: Interval | None


FIGURES: dict[str, Figure] = {
    "right_replies": Figure("an accepted answer, or a refusal where that is right", is_right, lambda _: 1.0),
    **RAG_FIGURES,
}


def compare(old: Sequence[Row], new: Sequence[Row]) -> dict[str, Compared]:
    """All figures of two runs on the same questions, in the same order. Raises ValueError for other ones."""
    if [row["question"] for row in old] != [row["question"] for row in new]:
        raise ValueError("the two models were asked different questions; measure both on the same file")
    rng = np.random.default_rng(_SEED)
    drawn = [rng.integers(len(old), size=(_BLOCK, len(old))) for _ in range(RESAMPLES // _BLOCK)]
    return {name: _compared(figure, old, new, drawn) for name, figure in FIGURES.items()}


def _compared(figure: Figure, old: Sequence[Row], new: Sequence[Row], drawn: Sequence[NDArray[np.int64]]) -> Compared:
    sides = [
        (
            np.array([figure.top(row) for row in rows], np.float64),
            np.array([figure.bottom(row) for row in rows], np.float64),
        )
        for rows in (old, new)
    ]
    statistic = _share_of if figure.quantile is None else _quantile_of(figure.quantile)
    before, after = (float(statistic(top[None], bottom[None])[0]) for top, bottom in sides)
    sign = -1.0 if figure.lower_is_better else 1.0
    olds, news = (np.concatenate([statistic(top[rows], bottom[rows]) for rows in drawn]) for top, bottom in sides)
    gains = sign * (news - olds) + 0.0  # and no -0.0
    return Compared(
        _known(before),
        _known(after),
        _known(sign * (after - before) + 0.0),
        _interval(olds),
        _interval(news),
        _interval(gains),
    )


def _share_of(top: Floats, bottom: Floats) -> Floats:
    totals = bottom.sum(axis=1)
    return np.where(totals > 0, top.sum(axis=1) / np.where(totals > 0, totals, 1), np.nan)


def _quantile_of(share: float) -> Statistic:
    """As `Figure.of` takes it: one of the values."""

    def quantile(values: Floats, _: Floats) -> Floats:
        num = values.shape[1]
        return np.sort(values, axis=1)[:, min(num - 1, int(share * num))]

    return quantile


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _interval(values: Floats) -> Interval | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
