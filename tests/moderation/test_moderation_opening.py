"""A head by its directory: opened by name, alone and in a composite; and passages screened by it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moderation.classifiers import KeywordClassifier, open_classifier
from moderation.head.model import Head, load_head
from moderation.moderator import PolicyModerator, open_moderator
from moderation.screener import PassageScreener, open_screener

LABELS = ("prompt_injection", "violence", "sexual")
BIASES = np.array([-1.0, 2.0, 0.0], dtype=np.float32)  # before the sigmoid; `violence` also sees the vector


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A head of two dimensions: violence = sigmoid(2 + gelu(4 x)), x the vector's first number; the rest constant."""
    weights = {
        "keys": np.array([0], dtype=np.uint32),
        "bag": np.zeros((1, 1), dtype=np.int8),
        "bag_scale": np.zeros(1, dtype=np.float32),
        "lexical": np.zeros((1, 3), dtype=np.int8),
        "lexical_scale": np.zeros(3, dtype=np.float32),
        "w1": np.array([[1, 0, 0]], dtype=np.float16),
        "b1": np.zeros(1, dtype=np.float32),
        "w2": np.array([[0], [1], [0]], dtype=np.float32),
        "b2": BIASES,
        "slope": np.ones(3, dtype=np.float32),
        "offset": np.zeros(3, dtype=np.float32),
    }
    thresholds = {"prompt_injection": 0.25, "violence": 0.95}
    Head(LABELS, LABELS[:2], "minilm", 2, weights, thresholds).save(tmp_path / "head", "A card.")
    return tmp_path / "head"


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# gelu(4) is 4 and gelu(-4) is 0, to three places
VECTORS = np.array([[1, 0], [-1, 0]], dtype=np.float32)


def test_a_head_is_opened_by_its_directory_and_reads_vectors(folder):
    classifier = open_classifier(str(folder))
    first, second = classifier.from_vectors(["a", "b"], VECTORS)
    assert first == pytest.approx({"prompt_injection": sigmoid(-1), "violence": sigmoid(6), "sexual": None}, abs=1e-3)
    assert second["violence"] == pytest.approx(sigmoid(2), abs=1e-3)


def test_its_thresholds_are_the_policys_auto(folder):
    moderator = open_moderator(str(folder))
    assert moderator.encoder == "minilm"
    first, second = moderator.check(["a", "b"], "input", VECTORS)
    assert (first.labels, second.labels) == (("violence", "prompt_injection"), ("prompt_injection",))
    assert [v.action for v in moderator.check(["a", "b"], "document", VECTORS)] == ["warn", "warn"]


def test_a_head_in_a_composite(folder):
    moderator = PolicyModerator(open_classifier(f"average:{folder},{folder}"))
    (verdict,) = moderator.check(["a"], vectors=VECTORS[:1])
    assert verdict.scores["violence"] == pytest.approx(sigmoid(6), abs=1e-3)
    assert moderator.thresholds == pytest.approx({"prompt_injection": 0.25, "violence": 0.95})


def test_a_head_that_was_changed_is_refused(folder):
    weights = folder / "head.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="changed since it was written"):
        open_classifier(str(folder))


# Screening passages


def test_passages_are_screened_by_their_vectors(folder):
    screener = open_screener(str(folder))
    assert (screener.name, screener.encoder) == (str(folder), "minilm")
    scores = screener.screen(["a", " ", "b"], np.zeros((3, 2), dtype=np.float32), "minilm")
    assert (scores.dtype, scores.shape) == (np.float32, (3,))
    assert scores[[0, 2]] == pytest.approx(sigmoid(-1), abs=1e-6)
    assert np.isnan(scores[1])  # a blank passage cannot be judged
    assert screener.screen([], np.zeros((0, 2), dtype=np.float32), "minilm").shape == (0,)


def test_vectors_of_another_encoder_are_not_used():
    class Reading(KeywordClassifier):
        encoder = "mine"

        def from_vectors(self, texts, vectors):
            return [{"prompt_injection": float(row[0])} for row in vectors]

    screener = PassageScreener("x", Reading({"prompt_injection": ["ignore"]}), "f")
    vectors = np.full((2, 1), 0.25, dtype=np.float32)
    assert screener.screen(["ignore it", "b"], vectors, "mine").tolist() == [0.25, 0.25]
    assert screener.screen(["ignore it", "b"], vectors, "other").tolist() == [1.0, 0.0]


def test_the_fingerprint_changes_with_the_weights(folder):
    before = open_screener(str(folder)).fingerprint
    assert open_screener(str(folder)).fingerprint == before
    head = load_head(folder)
    replace(head, weights={**head.weights, "b2": BIASES + 1}).save(folder, "A card.")
    assert open_screener(str(folder)).fingerprint != before


def test_a_classifier_that_does_not_know_injection_cannot_screen():
    with pytest.raises(ValueError, match="'x' cannot screen documents: it has no prompt_injection among hate"):
        PassageScreener("x", KeywordClassifier({"hate": ["a"]}), "f")


def test_a_screener_that_loses_a_passage_is_an_error():
    class Short(KeywordClassifier):
        def scores(self, texts):
            return super().scores(texts)[1:]

    screener = PassageScreener("x", Short({"prompt_injection": ["ignore"]}), "f")
    with pytest.raises(ValueError, match="classifier 'x' gave 1 results for 2 texts"):
        screener.screen(["a", "b"], np.zeros((2, 1), dtype=np.float32), "other")
