"""Several indexes as one: each is searched on its own, and answers only where it trusts itself to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from retrieval.hiding import without
from retrieval.search.filters import Filter
from retrieval.types import Hit, Searcher

FLOOR = 0.5  # of the common scale that the confidences are brought to


class SeveralIndexes:
    """A `types.Searcher` over others, whose indexes may have different encoders.

    Hits of those that do not reach their own floor come after those of the ones that do; within both, by score. The
    confidences, each on the scale of its index, are stretched so that every floor lies at 0.5.
    """

    floor = FLOOR

    def __init__(self, searchers: Sequence[Searcher]) -> None:
        if not searchers:
            raise ValueError("no index is given; name at least one")
        self._searchers = tuple(searchers)

    def __str__(self) -> str:
        return " and ".join(str(searcher) for searcher in self._searchers)

    def limited(self, where: Filter) -> SeveralIndexes:
        """All of them, over the documents that meet these conditions too. ValueError where one knows no conditions."""
        searchers: Sequence[Any] = self._searchers
        if not all(hasattr(searcher, "limited") for searcher in searchers):
            raise ValueError("one of the indexes knows no conditions on documents; leave them out")
        return SeveralIndexes([searcher.limited(where) for searcher in searchers])

    def without(self, hidden: Collection[str]) -> SeveralIndexes:
        """All of them, as if the passages with these ids were not there; see `hiding.without`."""
        return SeveralIndexes([without(searcher, hidden) for searcher in self._searchers])

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        """See `types.Searcher`."""
        found = [(searcher.floor, searcher.search(queries, k, contexts)) for searcher in self._searchers]
        return [_merged([(floor, hits[i]) for floor, hits in found], k) for i in range(len(queries))]


def _merged(found: Sequence[tuple[float, list[Hit]]], k: int) -> list[Hit]:
    scaled = [(_scaled(hit.confidence, floor), hit) for floor, hits in found for hit in hits]
    scaled.sort(key=lambda each: (each[0] < FLOOR, -each[1].score))
    best = max((confidence for confidence, _ in scaled), default=0.0)
    return [Hit(hit.passage, hit.score, best) for _, hit in scaled[:k]]


def _scaled(confidence: float, floor: float) -> float:
    """Piecewise linear: 0 to 0, `floor` to FLOOR, 1 to 1. Without a floor every confidence counts as enough."""
    if floor <= 0:
        return max(confidence, FLOOR)
    if confidence < floor:
        return FLOOR * confidence / floor
    return FLOOR + (1 - FLOOR) * (confidence - floor) / max(1 - floor, 1e-9)
