"""The figures, against hand arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moderation.head.calibration import benign_sources, fit_line, joint_thresholds
from moderation.head.data import Row
from moderation.head.metrics import any_score, any_truth, auprc, auroc, ece, evaluate, recall_at_fpr, threshold_at

NAN = float("nan")


def test_areas_by_hand():
    truth, scores = [1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]
    # precision is 1 at the first positive, 2/3 at the second; 3 of the 4 pairs are in the right order
    assert auprc(truth, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert auroc(truth, scores) == pytest.approx(0.75)


def test_unknown_rows_have_no_part():
    assert auroc([1, 0, 1, 0, NAN, 0], [0.9, 0.8, 0.7, 0.1, 0.99, NAN]) == pytest.approx(0.75)


@pytest.mark.parametrize("figure", [auprc, auroc, recall_at_fpr])
@pytest.mark.parametrize("truth", [[], [1, 1], [0, 0], [NAN, 1]])
def test_one_class_gives_no_figure(figure, truth):
    assert figure(truth, [0.5] * len(truth)) is None


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one score for each row"):
        auprc([1, 0], [0.5])


def test_recall_at_a_rate_by_hand():
    # 100 negatives 0.00 ... 0.99: at 1% one may be flagged, so the threshold lies just above 0.98
    negatives = [i / 100 for i in range(100)]
    truth = [0] * 100 + [1] * 4
    assert recall_at_fpr(truth, [*negatives, 0.98, 0.985, 0.99, 0.5], 0.01) == 0.5
    assert recall_at_fpr(truth, [*negatives, 0.98, 0.985, 0.99, 0.5], 0.0) == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.sampled_from([0.0, 0.01, 0.05, 0.5]))
def test_a_threshold_never_lets_more_pass_than_allowed(scores, rate):
    flagged = sum(score >= threshold_at(scores, rate) for score in scores)
    assert flagged <= rate * len(scores) + 1e-6


def test_calibration_error_by_hand():
    # two bins: three rows at 0.1 of which none is positive, one row at 0.9 that is: (3 * 0.1 + 1 * 0.1) / 4
    assert ece([0, 0, 0, 1], [0.1, 0.1, 0.1, 0.9]) == pytest.approx(0.1)
    assert ece([1, 0], [1.0, 0.0]) == 0
    assert ece([], []) is None


@pytest.mark.parametrize(
    ("labels", "truth"),
    [({"unsafe": 0, "hate": 1}, 0), ({"hate": 0, "sexual": 1}, 1), ({"hate": 0}, 0), ({"unsafe": 1}, 1)],
)
def test_any_label_of_a_row(labels, truth):
    assert any_truth(Row("x", labels)) == truth


def test_any_label_of_scores():
    assert any_score({"hate": 0.9, "unsafe": 0.2}) == 0.2
    assert any_score({"hate": 0.9, "unsafe": None, "sexual": 0.3}) == 0.9
    assert math.isnan(any_score({"hate": None}))


def test_evaluation_by_label_and_group():
    rows = [
        Row("a", {"hate": 1, "unsafe": 1}, source="x"),
        Row("b", {"hate": 0, "unsafe": 0}, source="x"),
        Row("c", {"unsafe": 1}, source="y"),
        Row("d", {"unsafe": 0}, source="y"),
    ]
    scores = [
        {"hate": 0.9, "unsafe": 0.9},
        {"hate": 0.1, "unsafe": 0.1},
        {"hate": 0.5, "unsafe": 0.2},
        {"hate": None, "unsafe": None},
    ]
    result = evaluate(rows, scores, 0.01)
    assert result["labels"]["hate"]["rows"] == 2
    assert result["labels"]["hate"]["auroc"] == 1.0
    assert result["labels"]["any"]["rows"] == 3  # the last one was not judged
    assert result["unjudged"] == 1
    assert set(result["groups"]) == {"x", "y"}
    assert result["groups"]["y"]["auprc"] is None


def test_a_line_is_found_again():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, 20_000)
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))
    slope, offset = fit_line(truth.astype(float), logits, np.ones(20_000))
    assert slope == pytest.approx(0.5, abs=0.03)
    assert offset == pytest.approx(-1, abs=0.06)


def test_one_class_leaves_logits_alone():
    assert fit_line([1, 1], [0.3, 2.0], [1, 1]) == (1.0, 0.0)


def test_a_separable_label_stays_finite():
    slope, offset = fit_line([0, 0, 1, 1], [-5.0, -4.0, 4.0, 5.0], [1, 1, 1, 1])
    assert 0 < slope < 11
    assert math.isfinite(offset)


def test_benign_sources_have_no_harmful_and_no_unknown_row():
    sources = ["good"] * 60 + ["mixed"] * 60 + ["small"] * 10 + ["unknown"] * 60
    truth = np.zeros((190, 1), dtype=np.float32)
    truth[70] = 1
    truth[130:] = NAN
    assert set(benign_sources(sources, truth)) == {"good"}
    assert {name: len(rows) for name, rows in benign_sources(sources[60:], truth[60:]).items()} == {"all sources": 69}


def test_joint_thresholds_hold_the_rate_on_every_source():
    rng = np.random.default_rng(2)
    scores = rng.random((3000, 4))
    scores[2000:] **= 0.5  # a source with higher scores
    benign = {"a": np.arange(2000), "b": np.arange(2000, 3000)}
    thresholds = joint_thresholds(scores, ["p", "q", "r", "s"], benign, 0.01)
    flagged = (scores >= np.array(list(thresholds.values()))).any(1)
    assert flagged[:2000].mean() <= 0.01
    # and no lower than needed: independent labels share the 1% of the harder source
    assert 0.007 <= flagged[2000:].mean() <= 0.01


def test_thresholds_need_harmless_texts():
    with pytest.raises(ValueError, match="harmless texts"):
        joint_thresholds(np.zeros((3, 1)), ["p"], {}, 0.01)
