"""Scores of answers by a reward model, and how well they agree with those that people gave.

A pair is two answers to one prompt of which people scored one higher. The model's confidence in the one it prefers is
sigma(|difference|) (Bradley and Terry 1952).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.calibration import expected_calibration_error
from tools.evaluation.answers import Answered
from tools.evaluation.statistics import Interval, bootstrap_ratio, wilson
from training.rl.rewards import Reward

_AT_ONCE = 64  # rows that are scored together


def scored(reward: Reward, rows: Iterable[Answered]) -> Iterator[tuple[Answered, list[float]]]:
    """Each row with the scores of its answers, finite numbers."""
    rows = iter(rows)
    while some := list(itertools.islice(rows, _AT_ONCE)):
        prompts: Any = [row.prompt for row in some]  # models and servers take None too
        yield from zip(some, reward(prompts, [row.answers for row in some]), strict=True)


def to_record(row: Answered, scores: Sequence[float]) -> dict[str, Any]:
    """A row of data for training (`ranked`) that also says what people gave."""
    record: dict[str, Any] = {"place": row.place, "prompt": None if row.prompt is None else row.prompt.to_dicts()}
    record |= {"responses": list(row.answers), "scores": list(scores)}
    return record if row.given is None else record | {"given": list(row.given)}


@dataclass
class Agreement:
    """What is counted of scored rows: of every row its scores; of every pair the difference of its scores, better
    minus worse, its row, and whether it is of the row's first two answers."""

    scores: list[list[float]] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    first_two: list[bool] = field(default_factory=list)

    def add(self, scores: Sequence[float], given: Sequence[float | None] | None) -> None:
        """A row; a score given of None is an answer that nobody has scored."""
        for i, j in itertools.permutations(range(len(scores)), 2) if given else ():
            better, worse = given[i], given[j]  # type: ignore[index]
            if better is not None and worse is not None and better > worse:
                self.differences.append(scores[i] - scores[j])
                self.rows.append(len(self.scores))
                self.first_two.append(max(i, j) < 2)
        self.scores.append(list(scores))

    def confidence(self) -> tuple[list[float], list[bool]]:
        """Of every pair how sure the model is of its preference, and whether people share it."""
        sure = [1 / (1 + math.exp(-abs(each))) for each in self.differences]
        return sure, [each > 0 for each in self.differences]

    def figures(self, bins: Sequence[int], by: str) -> dict[str, Any]:
        """Numbers of rows, answers and pairs, and the mean score; with pairs also `pair_accuracy`, and of each row's
        first two answers alone `first_two_accuracy`, both with an interval (Wilson's where no row has two pairs, else a
        bootstrap over rows), the mean difference (`margin`) and `ece_N` for each number of bins."""
        flat = np.array([score for row in self.scores for score in row])
        told: dict[str, Any] = {"rows": len(self.scores), "answers": len(flat), "pairs": len(self.differences)}
        if not len(flat):
            raise ValueError("there is nothing to score; the data has no row that can be used")
        told |= {"mean_score": float(flat.mean()), "std_score": float(flat.std())}
        told["mean_score_ci"] = bootstrap_ratio([sum(row) for row in self.scores], [len(row) for row in self.scores])
        if not self.differences:
            return told
        right = np.array(self.differences) > 0
        everything = np.ones_like(right)
        for name, which in (("pair_accuracy", everything), ("first_two_accuracy", np.array(self.first_two))):
            if which.any():
                told[name] = float(right[which].mean())
                rows = np.array(self.rows)[which]
                told[f"{name}_ci"] = _interval(np.bincount(rows, right[which]), np.bincount(rows))
        told["margin"] = float(np.mean(self.differences))
        sure, correct = self.confidence()
        told |= {f"ece_{num}": expected_calibration_error(sure, correct, num, by) for num in bins}
        return told


def _interval(hits: Any, counts: Any) -> Interval | None:
    if counts.max() == 1:
        return wilson(int(hits.sum()), int(counts.sum()))
    return bootstrap_ratio(hits, counts)
