"""The head: features, arithmetic, directory, any text at all."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moderation.head.classifier import HeadClassifier, encodable, shipped
from moderation.head.features import LAST_WINDOWS, MAX_WINDOWS, WINDOW, hashes, normalise, windows
from moderation.head.model import TENSORS, Head, is_head, load_head

DIM, LABELS = 4, ("hate", "sexual", "unsafe")
ANY_TEXT = st.text(st.characters(codec=None, categories=None) | st.sampled_from("\ud800\udfff\x00\u202e\u0300ﬃ😈"))


def crc(gram: str) -> int:
    return zlib.crc32(gram.encode())


def encode(texts):
    """Four numbers that depend on the text's length and nothing else."""
    return np.array([[1.0, 0, 0, 0] if len(text) % 2 else [0, 1.0, 0, 0] for text in texts], dtype=np.float32)


@pytest.fixture
def head() -> Head:
    """One hidden unit that is off; the word "bad" adds 2.54 to the logit of hate; unsafe has -1 from its bias."""
    keys = np.array(sorted({crc("1bad"), crc("1kill")}), dtype=np.uint32)
    lexical = np.zeros((2, 3), dtype=np.int8)
    lexical[keys.tolist().index(crc("1bad")), 0] = 127
    weights = {
        "keys": keys,
        "bag": np.zeros((2, 2), dtype=np.int8),
        "bag_scale": np.ones(2),
        "lexical": lexical,
        "lexical_scale": np.full(3, 0.02),
        "w1": np.zeros((1, DIM + 2)),
        "b1": np.zeros(1),
        "w2": np.zeros((3, 1)),
        "b2": np.array([0, 0, -1.0]),
        "slope": np.array([2.0, 1, 1]),
        "offset": np.array([-1.0, 0, 0]),
    }
    weights = {name: weights[name].astype(kind) for name, (kind, _) in TENSORS.items()}
    return Head(LABELS, ("hate", "unsafe"), "hash", DIM, weights, {"hate": 0.5, "unsafe": 0.7})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Features -------------------------------------------------------------------------------------------------------------


def test_features_of_a_word_by_hand():
    # the word, its pairs with start and end, and the parts of " ab " of 3 and 4 characters
    expected = ["1ab", "2^ ab", "2ab $", "3 ab", "3ab ", "3 ab "]
    assert hashes("AB").tolist() == sorted(map(crc, expected))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ＢＡＤ", "bad"),
        ("b\u200bad", "bad"),
        ("baaaaaad", "baad"),
        ("see https://x.org/y now", "see http://other now"),
        ("@someone hello", "@other hello"),
        ("call 12345", "call 7"),
    ],
)
def test_spellings_that_count_as_one(text, same):
    assert hashes(text).tolist() == hashes(same).tolist()


@given(ANY_TEXT)
def test_any_text_has_features(text):
    found = hashes(text)
    assert (found[1:] > found[:-1]).all()
    assert isinstance(normalise(text), str)


@given(st.integers(0, 3 * WINDOW), st.integers(1, 200))
def test_windows_hold_all_of_a_text_that_is_not_too_long(length, word):
    text = ("x" * word + " ") * (length // (word + 1) + 1)
    pieces = windows(text)
    assert all(len(piece) <= WINDOW for piece in pieces)
    assert "".join(pieces) == text


def test_windows_of_a_long_text_are_its_start_and_its_end():
    text = "".join(f"word{i} " for i in range(200_000))
    pieces = windows(text)
    assert len(pieces) == MAX_WINDOWS
    assert text.startswith("".join(pieces[:-LAST_WINDOWS]))
    assert text.endswith("".join(pieces[-LAST_WINDOWS:]))


def test_a_text_just_within_the_limit_is_read_to_its_end():
    text = "a b " * (WINDOW * MAX_WINDOWS // 4)
    pieces = windows(text)
    assert len(pieces) <= MAX_WINDOWS
    assert text.endswith(pieces[-1])


# Arithmetic -----------------------------------------------------------------------------------------------------------


def test_scores_by_hand(head):
    scores = HeadClassifier(head, encode).scores(["bad", "good", " "])
    share = 127 * 0.02 / math.sqrt(len(hashes("bad")))
    assert scores[0]["hate"] == pytest.approx(sigmoid(2 * share - 1), abs=1e-6)
    assert scores[1]["hate"] == pytest.approx(sigmoid(-1), abs=1e-6)
    assert scores[0]["unsafe"] == pytest.approx(sigmoid(-1), abs=1e-6)
    assert scores[0]["sexual"] is None  # had no rows to learn from
    assert set(scores[2].values()) == {None}


def test_known_vectors_give_the_same_scores_and_need_no_encoder(head):
    head.weights["w1"][0, 0], head.weights["w2"][2, 0] = 1, 1
    texts = ["odd", "even", "a bad one"]

    def fail(texts):
        raise AssertionError("encoded again")

    assert HeadClassifier(head, fail).from_vectors(texts, encode(texts)) == HeadClassifier(head, encode).scores(texts)


def test_the_worst_window_counts(head):
    text = "good day " * 400 + "bad bad"
    score = HeadClassifier(head, encode).scores([text])[0]["hate"]
    ends = [HeadClassifier(head, encode).scores([piece])[0]["hate"] for piece in windows(text)]
    assert score == max(ends) > ends[0]


def test_vectors_of_another_encoder_are_refused(head):
    with pytest.raises(ValueError, match="4 numbers"):
        HeadClassifier(head, encode).from_vectors(["x"], np.zeros((1, 7)))


def test_weights_that_are_no_numbers_are_seen(head):
    head.weights["b2"][0] = math.nan
    assert math.isnan(HeadClassifier(head, encode).scores(["x"])[0]["hate"])


@settings(deadline=None)
@given(st.lists(ANY_TEXT, max_size=5))
def test_every_text_gets_scores(texts):
    classifier = HeadClassifier(load_head(shipped()), lambda texts: np.tile(np.eye(1, 384), (len(texts), 1)))
    scores = classifier.scores(texts)
    assert len(scores) == len(texts)
    for text, score in zip(texts, scores, strict=True):
        assert set(score) == set(classifier.labels)
        assert all(value is None or 0 <= value <= 1 for value in score.values())
        assert text.strip() == "" or score["unsafe"] is not None


def test_a_text_of_a_megabyte_and_an_empty_one(head):
    scores = HeadClassifier(head, encode).scores(["bad " * 250_000, "", "\ud800" * 1000])
    assert scores[0]["hate"] > 0.5
    assert scores[2]["hate"] is not None


def test_lone_surrogates_are_replaced_for_the_encoder():
    assert encodable("a\ud800b") == "a?b"
    assert encodable("ä😈") == "ä😈"


# Directory ------------------------------------------------------------------------------------------------------------


def test_a_saved_head_is_the_same(head, tmp_path):
    head.save(tmp_path / "new", "# card")
    again = load_head(tmp_path / "new")
    assert is_head(tmp_path / "new")
    assert (again.labels, again.judged, again.thresholds) == (head.labels, head.judged, head.thresholds)
    texts = ["bad", "good one"]
    assert HeadClassifier(again, encode).scores(texts) == HeadClassifier(head, encode).scores(texts)


def damage(folder: Path, **changes: object) -> None:
    settings_ = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps({**settings_, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "train the head again"),
        ({"labels": None}, "not a moderation head"),
        ({"labels": ["hate", "hate", "x"]}, "do not agree"),
        ({"thresholds": {"other": 0.5}}, "do not agree"),
        ({"labels": ["hate", "unsafe"]}, r"'lexical'.* not \(2, 2\)"),
        ({"encoder": {"name": "hash", "dim": 9}}, "'w1'"),
        ({"weights_sha256": "0"}, "sum differs"),
    ],
)
def test_a_damaged_directory_is_refused(head, tmp_path, changes, message):
    head.save(tmp_path, "")
    damage(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_head(tmp_path)


def test_a_missing_directory_is_refused(tmp_path):
    assert not is_head(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        HeadClassifier.open(tmp_path)


def test_cut_off_weights_are_refused(head, tmp_path):
    head.save(tmp_path, "")
    path = tmp_path / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="sum differs"):
        load_head(tmp_path)


def test_the_shipped_head_is_small_and_whole():
    folder = shipped()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000
    head = load_head(folder)
    assert set(head.thresholds) == set(head.judged)
    assert {"unsafe", "prompt_injection", "hate", "sexual"} <= set(head.judged)
    assert head.about["recipe"]["encoder"] == head.encoder == "minilm"
    assert set(head.blocks) <= set(head.about["measured"]["passes"])
