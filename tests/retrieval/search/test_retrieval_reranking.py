"""The cross-encoder against direct calls of the same tiny random models, and what it refuses to load."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.search.reranking import BATCH_PAIRS, open_reranker

WORDS = [*"the bridge tower river was opened built in 1932 how tall is it garden a of".split()]  # noqa: SIM905
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
QUERY = "how tall is the bridge"
TEXTS = [
    "the bridge was built in 1932",
    "a garden",
    "",
    "the tower is it",
    "the river was opened in the garden of the tower, the bridge, the river",
]


def save_tiny_bert(folder: Path, model_class: str, **config: Any) -> Path:
    """A BERT of two layers with random weights and a WordPiece tokenizer of a few words."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.5,
        **config,
    )
    getattr(transformers, model_class)(settings).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    transformers.BertTokenizerFast(vocab=vocabulary, model_max_length=48).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_label(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with one output."""
    return save_tiny_bert(tmp_path_factory.mktemp("one"), "BertForSequenceClassification", num_labels=1)


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with the outputs "irrelevant" and "relevant"."""
    return save_tiny_bert(tmp_path_factory.mktemp("two"), "BertForSequenceClassification", num_labels=2)


def logits(folder: Path, query: str, text: str) -> NDArray[np.float32]:
    """What the model says to one pair, from token ids made by hand: [CLS] query [SEP] text [SEP]."""
    import torch
    from transformers import AutoModelForSequenceClassification

    left, right = (text.replace(",", " [UNK]").split() for text in (query, text))
    tokens = ["[CLS]", *left, "[SEP]", *right, "[SEP]"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([[VOCABULARY.index(token) for token in tokens]]),
            token_type_ids=torch.tensor([[0] * (len(left) + 2) + [1] * (len(right) + 1)]),
        )
    return np.asarray(out.logits[0].numpy(), dtype=np.float32)


def test_one_output_is_scored_by_its_sigmoid(one_label: Path) -> None:
    scores = open_reranker(str(one_label), "cpu").score(QUERY, TEXTS)
    expected = [1 / (1 + np.exp(-logits(one_label, QUERY, text)[0])) for text in TEXTS]
    assert (scores.shape, scores.dtype) == ((len(TEXTS),), np.float32)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.argsort(-scores).tolist() == np.argsort(-np.array(expected)).tolist()
    assert len(set(np.round(scores, 4))) == len(TEXTS)  # so the order above says something


def test_of_two_outputs_the_second_says_relevant(two_labels: Path) -> None:
    scores = open_reranker(str(two_labels), "cpu").score(QUERY, TEXTS)
    pairs = np.exp(np.array([logits(two_labels, QUERY, text) for text in TEXTS], dtype=np.float64))
    np.testing.assert_allclose(scores, pairs[:, 1] / pairs.sum(axis=1), atol=1e-5)


def test_scores_do_not_depend_on_the_company(one_label: Path) -> None:
    reranker = open_reranker(str(one_label), "cpu")
    texts = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 9]) for i in range(2 * BATCH_PAIRS + 3)]
    together = reranker.score(QUERY, texts)
    alone = np.concatenate([reranker.score(QUERY, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert reranker.score(QUERY, []).shape == (0,)


def test_of_a_long_passage_the_end_is_cut(one_label: Path) -> None:
    reranker = open_reranker(str(one_label), "cpu")
    left = 48 - 3 - len(QUERY.split())
    long = ["tower"] * left + ["garden"] * 500
    np.testing.assert_array_equal(
        reranker.score(QUERY, [" ".join(long)]), reranker.score(QUERY, [" ".join(long[:left])])
    )


@pytest.mark.parametrize("text", ["a garden", "the tower " * 300, ""])
def test_a_query_that_is_too_long_is_cut_too(one_label: Path, text: str) -> None:
    scores = open_reranker(str(one_label), "cpu").score("how tall " * 300, [text, text])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert 0 <= scores[0] <= 1


def test_half_a_surrogate_pair_is_a_question_mark(one_label: Path) -> None:
    reranker = open_reranker(str(one_label), "cpu")
    np.testing.assert_allclose(
        reranker.score("bridge \ud800", ["a \udfff"]), reranker.score("bridge ?", ["a ?"]), atol=1e-6
    )


def test_the_order_of_hits_follows_the_scores_of_the_reranker(one_label: Path) -> None:
    reranker = open_reranker(str(one_label), "cpu")
    assert reranker.name == str(one_label)
    shuffled = TEXTS[::-1]
    np.testing.assert_allclose(reranker.score(QUERY, shuffled)[::-1], reranker.score(QUERY, TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("model_class", "config", "reason"),
    [
        ("BertForSequenceClassification", {"num_labels": 3}, "no cross-encoder: .* one or two outputs"),
        ("BertModel", {}, "no cross-encoder"),  # the classifier's weights would be random
        ("BertForMaskedLM", {}, "no cross-encoder"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, model_class: str, config: dict[str, Any], reason: str) -> None:
    folder = save_tiny_bert(tmp_path / "model", model_class, **config)
    with pytest.raises(ValueError, match=rf"cannot load model '.*': .*{reason}") as error:
        open_reranker(str(folder), "cpu")
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = save_tiny_bert(tmp_path / "model", "BertForSequenceClassification", num_labels=1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), unk_token="[UNK]")  # noqa: S106
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="no padding token"):
        open_reranker(str(folder), "cpu")


def _pickled(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _broken(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("damage", [_pickled, _broken, _empty])
def test_weights_that_are_pickled_broken_or_missing_are_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = save_tiny_bert(tmp_path / "model", "BertForSequenceClassification", num_labels=1)
    damage(folder)
    with pytest.raises(ValueError, match=r"cannot load model '.*'") as error:
        open_reranker(str(folder), "cpu")
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_reranker(str(tmp_path / "missing"), "cpu")


def test_a_device_that_is_not_there_is_refused(one_label: Path) -> None:
    with pytest.raises(ValueError, match=r"device 'abacus' cannot be used .*; try: cpu"):
        open_reranker(str(one_label), "abacus")


def test_a_local_model_needs_no_network(one_label: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert open_reranker(str(one_label), "cpu").score(QUERY, ["a garden"]).shape == (1,)
