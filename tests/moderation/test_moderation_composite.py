"""Several classifiers as one, and the pieces of long texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moderation.classifiers import CompositeClassifier, KeywordClassifier
from moderation.classifiers.windows import pieces, worst
from moderation.moderator import PolicyModerator
from moderation.policy import Policy

CLOSED = Policy(fail="closed")


class Fixed:
    """Gives every text the same scores; `thresholds` where it recommends any."""

    def __init__(self, scores, thresholds=None):
        self._scores = scores
        self.labels = tuple(scores)
        if thresholds is not None:
            self.thresholds = thresholds

    def scores(self, texts):
        return [dict(self._scores) for _ in texts]


class Reading(Fixed):
    """One that can use vectors: its score for `vector` is the first number of the text's."""

    encoder = "some"

    def from_vectors(self, texts, vectors):
        return [{"vector": float(row[0])} for row in vectors]


def test_the_strictest_takes_the_highest_and_the_average_the_mean_of_those_that_know():
    members = [
        Fixed({"hate": 0.2, "sexual": None, "violence": 0.6}),
        Fixed({"hate": 0.6, "sexual": None, "illicit": 0.1}),
        Fixed({"hate": 0.1, "illicit": None}),
    ]
    strictest, average = CompositeClassifier("strictest", members), CompositeClassifier("average", members)
    assert strictest.labels == average.labels == ("hate", "sexual", "violence", "illicit")
    assert strictest.scores(["a", "b"]) == [{"hate": 0.6, "sexual": None, "violence": 0.6, "illicit": 0.1}] * 2
    (mean,) = average.scores(["a"])
    assert mean == pytest.approx({"hate": 0.3, "sexual": None, "violence": 0.6, "illicit": 0.1})
    assert strictest.scores([]) == []


def test_the_strictest_of_safe_is_the_lowest():
    members = [Fixed({"safe": 0.9, "toxic": 0.1}), Fixed({"safe": 0.2, "toxic": 0.8})]
    assert CompositeClassifier("strictest", members).scores(["a"]) == [{"safe": 0.2, "toxic": 0.8}]
    assert CompositeClassifier("average", members).scores(["a"])[0] == pytest.approx({"safe": 0.55, "toxic": 0.45})


@pytest.mark.parametrize("joining", ["strictest", "average"])
@pytest.mark.parametrize("order", [1, -1])
def test_nan_of_one_is_nan_of_all(joining, order):
    members = [Fixed({"hate": 0.2}), Fixed({"hate": math.nan}), Fixed({"hate": 0.9})][::order]
    composite = CompositeClassifier(joining, members)
    assert math.isnan(composite.scores(["a"])[0]["hate"])
    assert PolicyModerator(composite, CLOSED).check(["a"])[0].action == "block"


def test_thresholds_are_joined_as_scores_are():
    members = [
        Fixed({"hate": 0.0, "sexual": 0.0, "violence": 0.0}, {"hate": 0.3, "sexual": 0.9}),
        Fixed({"hate": 0.0, "sexual": 0.0, "illicit": 0.0}, {"hate": 0.7}),
        Fixed({"illicit": 0.0}),
    ]
    assert CompositeClassifier("strictest", members).thresholds == {"hate": 0.3, "sexual": 0.5}
    assert CompositeClassifier("average", members).thresholds == pytest.approx({"hate": 0.5, "sexual": 0.7})


def test_vectors_reach_those_that_can_use_them():
    plain, reading = Fixed({"hate": 0.2}), Reading({"vector": 0.0})
    composite = CompositeClassifier("strictest", [plain, reading])
    vectors = np.array([[0.25, 0.0], [0.75, 0.0]], dtype=np.float32)
    wanted = [{"hate": 0.2, "vector": 0.25}, {"hate": 0.2, "vector": 0.75}]
    assert composite.from_vectors(["a", "b"], vectors) == wanted
    assert composite.scores(["a", "b"]) == [{"hate": 0.2, "vector": 0.0}] * 2
    moderator = PolicyModerator(composite)
    assert [verdict.scores for verdict in moderator.check(["a", "b"], vectors=vectors)] == wanted
    assert moderator.encoder == "some"
    assert PolicyModerator(CompositeClassifier("average", [plain, plain])).encoder is None


def test_vectors_of_one_encoder_do_not_reach_what_reads_another():
    one, other = Reading({"vector": 0.0}), Reading({"vector": 0.5})
    other.encoder = "other"
    moderator = PolicyModerator(CompositeClassifier("strictest", [one, other]))
    assert moderator.encoder is None
    vectors = np.ones((1, 2), dtype=np.float32)
    assert moderator.check(["a"], vectors=vectors)[0].scores == {"vector": 0.5}


def test_one_that_fails_is_not_left_out():
    class Short(Fixed):
        def scores(self, texts):
            return super().scores(texts)[1:]

    class Undeclared(Fixed):
        labels = ()

        def __init__(self, scores):
            self._scores = scores

    for broken, message in (
        (Short({"hate": 0.1}), "Short gave 1 results for 2 texts"),
        (Undeclared({"hate": 0.1}), "Undeclared gave labels that it does not declare"),
    ):
        composite = CompositeClassifier("average", [KeywordClassifier({"hate": ["x"]}), broken])
        with pytest.raises(ValueError, match=message):
            composite.scores(["a", "b"])
        assert {v.action for v in PolicyModerator(composite, CLOSED).check(["a", "b"])} == {"block"}


def test_a_composite_needs_two_and_a_known_way():
    with pytest.raises(ValueError, match="'average' joins two classifiers or more, not 1"):
        CompositeClassifier("average", [Fixed({})])
    with pytest.raises(ValueError, match="unknown way to join classifiers 'mean'; choose one of: strictest, average"):
        CompositeClassifier("mean", [Fixed({}), Fixed({})])


# Pieces


@given(st.text(max_size=400), st.integers(25, 60), st.integers(0, 12))
def test_pieces_fit_cover_the_text_and_overlap(text, longest, overlap):
    parts = pieces(text, lambda part: len(part) <= longest, overlap)
    assert all(len(part) <= longest for part in parts)
    place = 0
    for part in parts:  # each begins within what came before it, and ends further on
        start = text.find(part, max(0, place - len(part)))
        assert 0 <= start <= place
        place = max(place, start + len(part))
    assert place == len(text)


@given(st.integers(0, 380))
def test_a_phrase_within_the_overlap_stands_whole_in_a_piece(place):
    text = "-" * place + "forbidden" + "-" * (391 - place)
    assert any("forbidden" in part for part in pieces(text, lambda part: len(part) <= 100, 20))


def test_a_text_that_never_fits_is_an_error():
    with pytest.raises(ValueError, match="still too long for the classifier"):
        pieces("x" * 1000, lambda _: False, 10)


def test_the_worst_of_the_pieces():
    assert worst(
        [{"a": 0.1, "b": None, "c": None}, {"a": 0.4, "b": 0.2, "c": None}, {"a": 0.2, "b": None, "c": None}]
    ) == {
        "a": 0.4,
        "b": 0.2,
        "c": None,
    }
    for scores in ([math.nan, 0.9], [0.9, math.nan], [None, math.nan, 0.1]):
        assert math.isnan(worst([{"a": score} for score in scores])["a"])
