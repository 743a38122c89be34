"""Classification: losses against torch, metrics against scikit-learn, label order, missing labels, both model kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.methods.classification import Heading, find_headings, judgements, label_metrics, task_losses

HEADINGS = [Heading("tone", ("kind", "rude"), False, 0), Heading("topic", ("art", "law", "war"), True, 2)]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with a vocabulary of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Buy", "now", ",", "cheap", "!"]
    words += ["The", "bridge", "has", "lanes", "."]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("tiny-bert")
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    targets = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.float32)
    known = torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.float32)
    return torch.randn(3, 5), targets, known


def test_losses_are_torchs_and_missing_labels_have_none() -> None:
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    scores, targets, known = batch()
    losses = task_losses(scores, targets, known, HEADINGS)
    assert float(losses[:, 0].sum()) == pytest.approx(
        float(cross_entropy(scores[:2, :2], torch.tensor([0, 1]), reduction="sum")), rel=1e-5
    )
    expected = binary_cross_entropy_with_logits(scores[[0, 2], 2:], targets[[0, 2], 2:]) * 2
    assert float(losses[:, 1].sum()) == pytest.approx(float(expected), rel=1e-5)
    assert losses[2, 0] == losses[1, 1] == 0


def test_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    draw = np.random.default_rng(3)
    scores = torch.from_numpy(draw.normal(size=(60, 5)))
    tone, topics = draw.integers(0, 2, 60), draw.integers(0, 2, (60, 3))
    targets = torch.from_numpy(np.column_stack([np.eye(2)[tone], topics])).float()
    lines = judgements(scores, targets, torch.ones(60, 2), HEADINGS)
    told = label_metrics(HEADINGS, 0.0, [], lines.numpy())
    said = scores[:, :2].argmax(1).numpy()
    assert told["tone_accuracy"] == pytest.approx(accuracy_score(tone, said))
    assert told["tone_f1"] == pytest.approx(f1_score(tone, said, average="macro"))
    assert told["topic_f1"] == pytest.approx(f1_score(topics, (scores[:, 2:] > 0).numpy(), average="macro"))
    assert 0 <= told["topic_ece"] <= 1


def test_labels_are_sorted_whatever_the_order_of_rows(configured: Any, write: Any) -> None:
    rows = [{"text": "a", "labels": {"n": n, "tone": tone}} for n, tone in ((10, "rude"), (9, "kind"), (-1, "rude"))]
    for name, given in (("one.jsonl", rows), ("two.jsonl", rows[::-1])):
        config = configured("r", "method=classification", f"data={write(name, given)}")
        headings = find_headings(config)
        assert [(each.name, each.labels, each.start) for each in headings] == [
            ("n", ("-1", "9", "10"), 0),
            ("tone", ("kind", "rude"), 3),
        ]
    config = configured(
        "r", "method=classification", f"data={write('one.jsonl', rows)}", "method.labels={n: [9,10,-1]}"
    )
    assert find_headings(config)[0].labels == ("9", "10", "-1")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_it_learns_and_moderation_reads_what_is_saved(
    kind: str, run: Any, labelled: Path, tiny_bert: Path, tiny_chat_model: Path, evaluations: Any
) -> None:
    from moderation.classifiers.transformers_classifier import TransformersClassifier

    model = tiny_bert if kind == "bert" else tiny_chat_model
    more = ("trainer.epochs=6", "trainer.lr=3e-3", "data.eval_fraction=0.25")
    directory = run("r", "method=classification", f"data={labelled}", f"model={model}", *more)
    told = evaluations(directory)[-1]
    assert told["eval_accuracy"] == told["eval_f1"] == 1
    settings = json.loads((directory / "config.json").read_text())
    assert settings["id2label"] == {"0": "ham", "1": "spam"}
    classifier = TransformersClassifier(str(directory), device="cpu")
    spam, ham = classifier.scores(["Buy 3 now, cheap!", "The bridge has 4 lanes."])
    assert spam["spam"] is not None
    assert spam["spam"] > 0.5 > (ham["spam"] or 0)


def test_several_tasks_with_labels_missing_and_several_at_once(run: Any, write: Any, evaluations: Any) -> None:
    rows: list[dict[str, Any]] = []
    for n in range(24):
        spam = n % 2 == 1
        text = f"Buy {n} now, cheap!" if spam else f"The bridge has {n} lanes."
        labels: dict[str, Any] = {"spam": int(spam), "topics": ["shop", "loud"] if spam else ["road"]}
        if n % 3 == 0:
            del labels["spam"]
        if n % 3 == 1:
            del labels["topics"]
        rows.append({"text": text, "labels": labels})
    data = write("several.jsonl", rows)
    more = ("trainer.epochs=6", "trainer.lr=3e-3", f"data.eval={data}", "method.coeffs={topics: 2}")
    directory = run("r", "method=classification", f"data={data}", *more)
    told = evaluations(directory)[-1]
    assert told["eval_spam_accuracy"] == told["eval_topics_f1"] == 1
    settings = json.loads((directory / "config.json").read_text())
    assert list(settings["id2label"].values()) == ["spam=0", "spam=1", "topics=loud", "topics=road", "topics=shop"]
    assert settings["problem_type"] == "multi_label_classification"


def test_what_cannot_be_classified(run: Any, write: Any, labelled: Path) -> None:
    one = write("one.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}])
    with pytest.raises(ValueError, match="has the labels x; it takes two"):
        run("r", "method=classification", f"data={one}")
    other = write("other.jsonl", [{"text": "a", "label": "eggs"}])
    with pytest.raises(ValueError, match=r"other.jsonl:1: 'eggs' is no label of 'label'; there are: ham, spam"):
        run("r", "method=classification", f"data={labelled}", f"data.eval={other}")
    with pytest.raises(ValueError, match="no row has a task 'tone'; there are: label"):
        run("r", "method=classification", f"data={labelled}", "method.coeffs={tone: 2}")
    with pytest.raises(ValueError, match="takes 512 tokens at most"):
        run("r", "method=classification", f"data={labelled}", "data.max_length=4096")
