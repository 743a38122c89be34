"""Rows of preferences and scores -> the lists of answers that methods compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum

from training.data.converting import LeftOut
from training.data.rows import PreferenceRow, RankedRow
from training.examples.answers import Answer

UNSCORED = "answers left out: no score"
ALL_EQUAL = "no two answers have different scores"


class Pairs(str, Enum):
    """Which pairs are built of ranked answers. Equal scores never make one."""

    best_over_rest = "best_over_rest"
    best_over_worst = "best_over_worst"
    one_over_rest = "one_over_rest"


def scored(row: RankedRow, counts: Counter[str]) -> list[tuple[str, float]]:
    """(answer, score) of all that somebody has scored."""
    found = [(text, score) for text, score in zip(row.responses, row.scores, strict=True) if score is not None]
    counts[UNSCORED] += len(row.responses) - len(found)
    return found


def list_of(row: PreferenceRow | RankedRow, counts: Counter[str]) -> Iterator[list[Answer]]:
    """All scored answers of a row, with (score, margin) as values; the margin is 0 where none is known.

    Raises LeftOut for a row without two different scores.
    """
    if isinstance(row, PreferenceRow):
        margin = row.margin or 0.0
        yield [
            Answer(row.prompt, row.chosen, (1.0, margin), row.weight),
            Answer(row.prompt, row.rejected, (0.0, margin), row.weight),
        ]
        return
    found = scored(row, counts)
    if len({score for _, score in found}) < 2:
        raise LeftOut(ALL_EQUAL)
    yield [Answer(row.prompt, text, (score, 0.0), row.weight) for text, score in found]


def pairs_of(row: PreferenceRow | RankedRow, counts: Counter[str], pairs: Pairs) -> Iterator[list[Answer]]:
    """(better, worse) lists: of a preference its own, of scores those that `pairs` says. Raises LeftOut for
    scores that make none."""
    if isinstance(row, PreferenceRow):
        yield [Answer(row.prompt, text, (), row.weight) for text in (row.chosen, row.rejected)]
        return
    found = sorted(scored(row, counts), key=lambda each: -each[1])
    chosen = found if pairs == Pairs.one_over_rest else found[:1]
    rest = found[-1:] if pairs == Pairs.best_over_worst else found
    made = [(better, worse) for better in chosen for worse in rest if better[1] > worse[1]]
    if not made:
        raise LeftOut(ALL_EQUAL)
    for both in made:
        yield [Answer(row.prompt, text, (), row.weight) for text, _ in both]
