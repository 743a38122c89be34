"""Several indexes searched as one: whose hits come first, and what confidence they carry together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retrieval.several import FLOOR, SeveralIndexes
from retrieval.types import Hit, Passage

units = st.floats(0, 1)


class Fixed:
    """A searcher that finds the same for every query: one hit per score, all of one confidence."""

    def __init__(self, name: str, floor: float, confidence: float, scores: Sequence[float]) -> None:
        self.floor = floor
        self.asked: list[tuple[list[str], int, list[str] | None]] = []
        self._name, self._confidence, self._scores = name, confidence, scores

    def __str__(self) -> str:
        return f"index {self._name}"

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        self.asked.append((list(queries), k, None if contexts is None else list(contexts)))
        return [
            [
                Hit(Passage(f"{self._name}#{i}", query, "Title", "file.txt", 1, 1), score, self._confidence)
                for i, score in enumerate(self._scores[:k])
            ]
            for query in queries
        ]


def found(k: int, *searchers: Fixed) -> tuple[list[str], float]:
    """The ids of the hits of one query, and their confidence."""
    hits = SeveralIndexes(searchers).search(["query"], k)[0]
    (confidence,) = {hit.confidence for hit in hits}
    return [hit.passage.id for hit in hits], confidence


def test_hits_of_both_come_by_score_where_both_trust_themselves() -> None:
    ids, confidence = found(5, Fixed("a", 0.4, 0.7, [0.9, 0.5]), Fixed("b", 0.6, 0.8, [0.8, 0.6, 0.1]))
    assert ids == ["a#0", "b#0", "b#1", "a#1", "b#2"]
    assert confidence == pytest.approx(0.75)  # of both: half way from the floor to 1


def test_hits_below_their_own_floor_come_last_however_high_they_score() -> None:
    ids, confidence = found(3, Fixed("sure", 0.2, 0.6, [0.3, 0.2]), Fixed("unsure", 0.8, 0.7, [0.99, 0.98]))
    assert ids == ["sure#0", "sure#1", "unsure#0"]
    assert confidence == pytest.approx(0.75)


def test_nobody_reaches_a_floor() -> None:
    ids, confidence = found(4, Fixed("a", 0.5, 0.1, [0.2]), Fixed("b", 0.8, 0.4, [0.9]))
    assert ids == ["b#0", "a#0"]
    assert confidence == pytest.approx(0.25)
    assert confidence < SeveralIndexes([Fixed("a", 0.5, 0.1, [])]).floor


def test_of_equal_scores_the_index_named_first_comes_first() -> None:
    assert found(2, Fixed("a", 0, 1, [0.5]), Fixed("b", 0, 1, [0.5]))[0] == ["a#0", "b#0"]
    assert found(2, Fixed("b", 0, 1, [0.5]), Fixed("a", 0, 1, [0.5]))[0] == ["b#0", "a#0"]


def test_an_index_without_a_floor_always_counts_as_enough() -> None:
    assert found(1, Fixed("a", 0.0, 0.01, [0.1]))[1] == FLOOR
    assert found(1, Fixed("a", 0.0, 0.9, [0.1]))[1] == 0.9


@given(units, units)
def test_one_index_is_trusted_exactly_where_it_trusts_itself(floor: float, confidence: float) -> None:
    several = SeveralIndexes([Fixed("a", floor, confidence, [0.5])])
    (hit,) = several.search(["query"], 1)[0]
    assert (hit.confidence >= several.floor) is (confidence >= floor)
    assert 0 <= hit.confidence <= 1 + 1e-6


@given(units, units, units)
def test_more_confidence_never_counts_for_less(floor: float, one: float, other: float) -> None:
    assume(one <= other)
    assert found(1, Fixed("a", floor, one, [0.5]))[1] <= found(1, Fixed("a", floor, other, [0.5]))[1]


@given(st.lists(st.tuples(units, units, st.lists(units, max_size=6)), min_size=1, max_size=4), st.integers(1, 12))
def test_the_best_of_all_are_returned_each_once(indexes: list[tuple[float, float, list[float]]], k: int) -> None:
    searchers = [
        Fixed(str(i), floor, confidence, sorted(scores, reverse=True))
        for i, (floor, confidence, scores) in enumerate(indexes)
    ]
    hits = SeveralIndexes(searchers).search(["query"], k)[0]
    sure = sorted((s for floor, confidence, scores in indexes if confidence >= floor for s in scores), reverse=True)
    unsure = sorted((s for floor, confidence, scores in indexes if confidence < floor for s in scores), reverse=True)
    # Each index is asked for k hits, so none of the k best of all is missing.
    assert [hit.score for hit in hits] == [*sure[:k], *unsure][:k]
    assert len({hit.passage.id for hit in hits}) == len(hits)


def test_queries_k_and_contexts_reach_every_index_and_answers_keep_their_order() -> None:
    searchers = [Fixed("a", 0, 1, [0.5]), Fixed("b", 0, 1, [])]
    results = SeveralIndexes(searchers).search(["one", "two"], 3, ["", "before"])
    assert [[hit.passage.text for hit in hits] for hits in results] == [["one"], ["two"]]
    for searcher in searchers:
        assert searcher.asked == [(["one", "two"], 3, ["", "before"])]
    assert SeveralIndexes(searchers).search([], 3) == []
    assert SeveralIndexes(searchers[1:]).search(["one"], 3) == [[]]


def test_it_names_its_indexes_and_needs_at_least_one() -> None:
    assert str(SeveralIndexes([Fixed("a", 0, 1, []), Fixed("b", 0, 1, [])])) == "index a and index b"
    with pytest.raises(ValueError, match="no index is given; name at least one"):
        SeveralIndexes([])
