"""Calibration: features by hand, the fit against what the data came from, a whole round on the sample articles."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.confidence.questions import is_held_out, make_questions
from retrieval.encoders import HashEncoder
from retrieval.passages import embedding_text, split
from retrieval.scoring.calibration import FEATURES, MIN_QUESTIONS, NUM_NEAREST, Calibration, features, fit
from retrieval.scoring.tokens import Tokenizer
from retrieval.types import Block, Document, Passage

SAMPLE = Path(__file__).parents[3] / "docs" / "sample"


def _rows(cosine: Any, gap: Any, coverage: Any) -> NDArray[np.float64]:
    return np.column_stack(np.broadcast_arrays(cosine, gap, coverage)).astype(float)


def test_features_by_hand() -> None:
    weights = {"tall": 2.0, "tower": 5.0, "xanadu": 3.0}
    found = features([0.2, 0.8, 0.4], weights, {"tower", "tall", "river"})
    assert found == pytest.approx([0.8, 0.8 - 0.3, 7 / 10])


def test_features_look_at_the_ten_best_cosines() -> None:
    cosines = np.linspace(0.9, 0.0, 10)
    expected = 0.9 - cosines[1:].mean()
    assert len(cosines) == NUM_NEAREST
    assert features([*cosines, -0.5, -0.9], {}, ())[1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cosines", "weights", "expected"),
    [([], {"a": 1.0}, [0, 0, 0]), ([0.6], {}, [0.6, 0.6, 0]), ([-0.2], {"a": 1.0}, [-0.2, 0, 0])],
)
def test_features_where_little_was_found(
    cosines: list[float], weights: dict[str, float], expected: list[float]
) -> None:
    assert features(cosines, weights, {"b"}) == pytest.approx(expected)


def test_the_fit_finds_what_the_data_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.uniform(0, 1, (40_000, 3))
    chance = 1 / (1 + np.exp(-(drawn @ [6.0, 3.0, 2.0] - 5.5)))
    answerable = rng.random(len(drawn)) < chance
    found = fit(drawn[answerable], drawn[~answerable])
    assert found.coefficients == pytest.approx((6.0, 3.0, 2.0), abs=0.25)
    # The model takes both kinds as equally frequent.
    share = math.log(answerable.sum() / (~answerable).sum())
    assert found.intercept == pytest.approx(-5.5 - share, abs=0.25)


def test_two_clear_cases_and_the_middle_between_them() -> None:
    found = fit(_rows(np.full(50, 0.9), 0.3, 1.0), _rows(np.full(80, 0.1), 0.1, 0.0))
    assert found.confidence([0.5, 0.2, 0.5]) == pytest.approx(0.5)
    assert (found.false_refusal, found.false_answer) == (0.0, 0.0)
    assert found.answers([0.9, 0.3, 1.0])
    assert not found.answers([0.1, 0.1, 0.0])


def test_the_threshold_refuses_the_share_that_was_asked_for() -> None:
    rng = np.random.default_rng(1)
    answerable, unanswerable = rng.normal(0.6, 0.1, (200, 3)), rng.normal(0.4, 0.1, (300, 3))
    for target, refused in ((0.0, 0), (0.05, 10), (0.1, 20)):
        found = fit(answerable, unanswerable, target)
        assert sum(not found.answers(row) for row in answerable) == refused
    strict, lenient = fit(answerable, unanswerable, 0.2), fit(answerable, unanswerable, 0.01)
    assert strict.false_answer < lenient.false_answer
    assert strict.threshold > lenient.threshold


def test_the_rates_are_honest_where_nothing_can_be_told() -> None:
    rng = np.random.default_rng(2)
    rows = rng.uniform(0, 1, (1200, 3))
    found = fit(rows[:600], rows[600:])
    assert found.false_refusal == pytest.approx(0.05, abs=0.03)
    assert found.false_answer == pytest.approx(0.95, abs=0.03)


def test_a_feature_never_counts_against_an_answer() -> None:
    rng = np.random.default_rng(3)
    backwards = fit(
        _rows(rng.normal(0.7, 0.1, 100), rng.normal(0.1, 0.05, 100), 0.5),
        _rows(rng.normal(0.4, 0.1, 100), rng.normal(0.5, 0.05, 100), 0.5),
    )
    assert backwards.coefficients[0] > 0
    assert backwards.coefficients[1:] == (0.0, 0.0)


@given(
    st.integers(0, 2**32),
    st.tuples(*[st.floats(-1, 1)] * 3),
    st.tuples(*[st.floats(0, 1)] * 3),
)
def test_more_of_a_feature_never_lowers_the_confidence(
    seed: int, row: tuple[float, ...], more: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(seed)
    found = fit(rng.normal(0.5, 0.2, (30, 3)), rng.normal(0.45, 0.2, (30, 3)))
    assert 0 <= found.confidence(row) <= found.confidence(np.add(row, more)) <= 1


def test_a_calibration_survives_json() -> None:
    rng = np.random.default_rng(4)
    found = fit(rng.normal(0.6, 0.1, (40, 3)), rng.normal(0.4, 0.1, (50, 3)))
    again = Calibration.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert "40 questions with an answer" in str(found)
    assert "50 without one" in str(found)


def test_a_damaged_calibration_is_refused() -> None:
    good = fit(np.full((20, 3), 0.9), np.full((20, 3), 0.1)).to_dict()
    bad: list[dict[str, Any]] = [
        {},
        {**good, "extra": 1},
        {**good, "threshold": "high"},
        {**good, "threshold": None},
        {**good, "threshold": math.nan},
        {**good, "coefficients": [1.0]},
        {**good, "coefficients": 3},
        {**good, "num_answerable": math.inf},
    ]
    for values in bad:
        with pytest.raises(ValueError, match=r"calibration .*fit it again"):
            Calibration.from_dict(values)


def test_what_cannot_be_fitted() -> None:
    enough, few = np.zeros((MIN_QUESTIONS, 3)), np.zeros((MIN_QUESTIONS - 1, 3))
    for answerable, unanswerable in ((enough, few), (few, enough), (np.zeros((0, 3)), enough)):
        with pytest.raises(ValueError, match="at least 20 with and without an answer"):
            fit(answerable, unanswerable)
    with pytest.raises(ValueError, match=r"features of shape \(20, 2\)"):
        fit(enough, np.zeros((20, 2)))
    with pytest.raises(ValueError, match="must be finite"):
        fit(enough, np.full((20, 3), np.nan))
    with pytest.raises(ValueError, match=r"target_false_refusal is 0\.9"):
        fit(enough, enough, 0.9)


def test_features_that_never_differ_give_an_even_chance() -> None:
    found = fit(np.full((30, 3), 0.5), np.full((30, 3), 0.5))
    assert found.coefficients == (0.0,) * len(FEATURES)
    assert found.confidence([0.5, 0.5, 0.5]) == pytest.approx(0.5)


def test_a_whole_round_tells_what_is_there_from_what_is_not() -> None:
    """Made questions, the hash encoder, no BM25: the words that a passage shares with its question must show."""
    passages = _sample_passages()
    encoder, tokenizer = HashEncoder(1024), Tokenizer()
    vectors = encoder.encode([embedding_text(passage) for passage in passages])
    terms = [set(tokenizer.tokens(embedding_text(passage))) for passage in passages]
    questions = make_questions(passages, 120, seed=5)
    present, absent = [], []
    for question, asked in zip(questions, encoder.encode([question.text for question in questions]), strict=True):
        cosines, alike = vectors @ asked, vectors @ vectors[question.passage]
        weights = dict.fromkeys(tokenizer.tokens(question.words), 1.0)
        present.append(features(cosines, weights, terms[int(cosines.argmax())]))
        held_out = [is_held_out(question, passage.text, float(alike[i])) for i, passage in enumerate(passages)]
        assert held_out[question.passage]
        cosines = np.where(held_out, -1.0, cosines)
        absent.append(features(cosines, weights, terms[int(cosines.argmax())]))
    found = fit(present, absent)
    assert found.false_refusal < 0.12
    assert found.false_answer < 0.5


def _sample_passages() -> list[Passage]:
    """The markdown articles of docs/sample, cut by blank lines."""
    passages: list[Passage] = []
    for path in sorted(SAMPLE.rglob("*.md")):
        paragraphs = [
            part.replace("\n", " ") for part in path.read_text(encoding="utf-8").split("\n\n") if part[0] != "#"
        ]
        blocks = tuple(Block(text, i, i) for i, text in enumerate(paragraphs, start=1))
        passages.extend(split(Document(path.name, blocks, path.stem.replace("-", " "), str(path))))
    return passages
