"""Fusion: hand arithmetic, and properties that hold for all scores."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.encoders import HashEncoder
from retrieval.scoring.fusion import (
    METHODS,
    NUM_NEIGHBOURS,
    UNRELATED,
    FusionSettings,
    baseline_of,
    fuse,
    reciprocal_rank_fusion,
    smooth,
)

COSINES = np.array([0.8, 0.2, 0.5], dtype=np.float32)
BM25 = np.array([0.0, 6.0, 3.0], dtype=np.float32)


def _unit(rows: Any) -> NDArray[np.float64]:
    vectors = np.asarray(rows, dtype=float)
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def test_weighted_is_the_sum_of_cosine_and_share_of_the_upper_bound() -> None:
    scores = fuse(COSINES, BM25, 12.0, FusionSettings(weight=0.75))
    assert scores == pytest.approx([0.75 * 0.8, 0.75 * 0.2 + 0.25 * 0.5, 0.75 * 0.5 + 0.25 * 0.25])


def test_a_query_without_a_word_of_the_corpus_is_ranked_by_its_cosines() -> None:
    scores = fuse(COSINES, np.zeros(3), 0.0, FusionSettings(weight=0.5))
    assert scores == pytest.approx([0.4, 0.1, 0.25])


@pytest.mark.parametrize(("method", "expected"), [("dense", COSINES), ("lexical", BM25)])
def test_one_side_alone(method: Any, expected: NDArray[np.float32]) -> None:
    assert fuse(COSINES, BM25, 12.0, FusionSettings(method=method)) == pytest.approx(expected)


def test_reciprocal_rank_fusion_by_hand() -> None:
    # Ranks by cosine 1, 3, 2; by BM25 none, 1, 2, since a passage with BM25 0 was not found by words.
    expected = [1 / 61, 1 / 63 + 1 / 61, 1 / 62 + 1 / 62]
    assert fuse(COSINES, BM25, 12.0, FusionSettings(method="rrf")) == pytest.approx(expected)
    given_ranks = reciprocal_rank_fusion(np.array([1, 3, 2]), np.array([0, 1, 2]))
    assert given_ranks == pytest.approx(expected)
    passed_on = fuse(COSINES, BM25, 12.0, FusionSettings(method="rrf"), np.array([5, 0, 0]), np.array([0, 0, 1]))
    assert passed_on == pytest.approx([1 / 65, 0, 1 / 61])


def test_a_baseline_maps_unrelated_to_0_and_equal_to_1() -> None:
    settings = FusionSettings(weight=1.0, baseline=0.7)
    assert fuse(np.array([0.7, 1.0, 0.85]), np.zeros(3), 1.0, settings) == pytest.approx([0.0, 1.0, 0.5])


def test_smoothing_by_hand() -> None:
    # Cosine of the first two: 0.8, so with similarity 0.6 each counts (0.8 - 0.6) / 0.4 = 0.5 for the other.
    vectors = _unit([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])
    smoothed = smooth(np.array([0.9, 0.6, 0.7]), vectors, FusionSettings(smoothing=1.0, similarity=0.6))
    assert smoothed == pytest.approx([(0.9 + 0.5 * 0.6) / 1.5, (0.6 + 0.5 * 0.9) / 1.5, 0.7])
    doubled = smooth(np.array([0.9, 0.6, 0.7]), vectors, FusionSettings(smoothing=2.0, similarity=0.6))
    assert doubled == pytest.approx([(0.9 + 0.6) / 2, (0.6 + 0.9) / 2, 0.7])


def test_passages_of_one_title_do_not_smooth_each_other() -> None:
    vectors = _unit([[1, 0], [1, 0.1], [1, 0.2]])
    scores = np.array([0.9, 0.6, 0.3])
    assert smooth(scores, vectors, titles=["Zurich", "Zurich", "Zurich"]) == pytest.approx(scores)
    mixed = smooth(scores, vectors, titles=["Zurich", "Zurich", "Kyoto"])
    assert mixed[0] < 0.9
    assert mixed[2] > 0.3
    assert smooth(scores, vectors, titles=["", "", ""]) == pytest.approx(smooth(scores, vectors))


def test_a_neighbour_that_holds_much_less_of_the_query_does_not_count() -> None:
    vectors, scores = _unit([[1, 0], [1, 0]]), np.array([0.9, 0.3])
    settings = FusionSettings(smoothing=1.0)
    assert smooth(scores, vectors, settings, shares=np.array([0.9, 0.75])) == pytest.approx([0.6, 0.6])
    # Only for the one that holds more: the other may well profit from it.
    assert smooth(scores, vectors, settings, shares=np.array([0.9, 0.65])) == pytest.approx([0.9, 0.6])
    assert smooth(scores, vectors, settings, shares=np.array([0.0, 1.0])) == pytest.approx([0.6, 0.3])


def test_only_the_nearest_count_as_neighbours() -> None:
    num = NUM_NEIGHBOURS + 3
    vectors = _unit([[1.0, 0.01 * i] for i in range(num)])
    scores = np.zeros(num)
    scores[-1] = 1.0
    assert smooth(scores, vectors)[0] == 0.0  # the one with the score is not among the nearest of the first
    assert smooth(scores, vectors)[-2] > 0.0


@pytest.mark.parametrize("settings", [FusionSettings(smoothing=0.0), FusionSettings(method="rrf")])
def test_nothing_is_smoothed_unless_asked(settings: FusionSettings) -> None:
    scores = np.array([3.0, 1.0])
    assert smooth(scores, _unit([[1, 0], [1, 0]]), settings).tolist() == [3.0, 1.0]


@given(
    st.integers(0, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-1, 1), min_size=n, max_size=n),
            st.lists(st.tuples(*[st.floats(0.1, 1)] * 3), min_size=n, max_size=n),
        )
    ),
    st.floats(0, 50),
    st.floats(0, 0.99),
)
def test_smoothed_scores_stay_between_the_lowest_and_the_highest(
    drawn: tuple[list[float], list[tuple[float, ...]]], smoothing: float, similarity: float
) -> None:
    scores = np.array(drawn[0])
    vectors = _unit(drawn[1]) if drawn[1] else np.zeros((0, 3))
    before = scores.copy()
    smoothed = smooth(scores, vectors, FusionSettings(smoothing=smoothing, similarity=similarity))
    assert smoothed.shape == scores.shape
    assert (scores == before).all()
    if len(scores):
        assert scores.min() <= smoothed.min()
        assert smoothed.max() <= scores.max()


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=20), st.floats(0, 1))
def test_a_candidate_that_is_better_on_both_sides_is_never_worse(
    pairs: list[tuple[float, float]], weight: float
) -> None:
    dense, lexical = np.array(pairs).T
    for method in METHODS:
        scores = fuse(dense, lexical, 1.0, FusionSettings(method=method, weight=weight))
        for i in range(len(pairs)):
            better = (dense < dense[i]) & (lexical < lexical[i])
            assert (scores[better] <= scores[i] + 1e-12).all()


def test_no_candidates() -> None:
    empty = np.zeros(0)
    for method in METHODS:
        assert fuse(empty, empty, 1.0, FusionSettings(method=method)).shape == (0,)
    assert smooth(empty, np.zeros((0, 4))).shape == (0,)


def test_the_baseline_of_vectors() -> None:
    assert baseline_of(_unit([[1, 0], [0, 1]])) == pytest.approx(0.0)
    assert baseline_of(_unit([[1, 0], [0.6, 0.8]])) == pytest.approx(0.6)
    assert 0 <= baseline_of(HashEncoder().encode(UNRELATED)) < 0.4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "magic"}, "unknown fusion 'magic'; known: weighted, rrf, dense, lexical"),
        ({"weight": 1.5}, "weight is 1.5"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"smoothing": -1.0}, "smoothing is -1.0"),
        ({"similarity": 1.0}, "similarity is 1.0"),
        ({"baseline": 1.0}, "baseline is 1.0"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusionSettings(**values)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) cosines for \(3,\) BM25"):
        fuse(np.zeros(2), np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="1 vectors for 2 scores"):
        smooth(np.zeros(2), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="1 titles and 3 shares for 2 scores"):
        smooth(np.zeros(2), np.zeros((2, 3)), titles=["a"], shares=np.zeros(3))
    with pytest.raises(ValueError, match="at least 2 texts"):
        baseline_of(np.ones((1, 3)))


def test_settings_survive_json() -> None:
    settings = FusionSettings(method="rrf", weight=0.3)
    assert FusionSettings(**json.loads(json.dumps(asdict(settings)))) == settings
