"""Tiny classifiers made in the test: one with weights set by hand, whose scores are known by a formula.

The hand-made BERT averages its tokens: `bad` adds 1 to one feature of the average, `kill` to another, and every other
token adds nothing. So a label's logit is SLOPE * tanh(share of its word among the window's tokens) - OFFSET.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["good", "day", "fine", "bad", "kill", "nan", "[", "]", "sep"]
WINDOW = 16
SLOPE, OFFSET = 60.0, 3.0
# softmax between two labels; a sigmoid for each; a sigmoid for the only one
LABELS = {"single": ["safe", "toxic"], "multi": ["insult", "threat"], "one": ["toxic"]}


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The directories of the hand-made models, by the keys of LABELS."""
    return {kind: _handmade(tmp_path_factory.mktemp(kind), kind) for kind in LABELS}


@pytest.fixture(scope="session")
def expected() -> Callable[[str, str], dict[str, float]]:
    """(kind, text) -> what the hand-made model of that kind must score, worked out without torch."""

    def score(kind: str, text: str) -> dict[str, float]:
        windows = _windows(text.replace("[SEP]", "[ sep ]").split())
        bad, kill = (max(_probability(word, window) for window in windows) for word in ("bad", "kill"))
        return {
            "single": {"safe": 1 - bad, "toxic": bad},
            "multi": {"insult": bad, "threat": kill},
            "one": {"toxic": bad},
        }[kind]

    return score


@pytest.fixture(scope="session")
def random_model() -> Callable[..., str]:
    """Save a random model of a transformers class with a matching word tokenizer; returns its directory."""

    def save(folder: Path, architecture: str, config_class: str, pad: bool = True, **settings: Any) -> str:
        import torch
        import transformers
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
        sizes = {"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 16, "max_position_embeddings": WINDOW, "pad_token_id": 0 if pad else None}
        config = getattr(transformers, config_class)(**{**sizes, **settings})
        torch.manual_seed(1)
        model = getattr(transformers, architecture)(config)
        for parameter in model.parameters():  # the usual spread of 0.02 would make all scores look the same
            torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(folder)
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        special = {"unk_token": "[UNK]"} | ({"pad_token": "[PAD]"} if pad else {})
        if "Llama" not in architecture:
            words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
            special |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
        return str(folder)

    return save


def _handmade(folder: Path, kind: str) -> str:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    labels = LABELS[kind]
    # A LayerNorm with so large an epsilon only multiplies by a constant, which its weight undoes.
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=WINDOW,
        layer_norm_eps=1e6,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type="multi_label_classification" if kind == "multi" else None,
    )
    model = BertForSequenceClassification(config)
    weights = model.state_dict()
    for name, weight in weights.items():
        weight.fill_(1000.0 if name.endswith("LayerNorm.weight") else 0.0)
    embeddings = weights["bert.embeddings.word_embeddings.weight"]
    for word, feature in (("bad", 0), ("kill", 2)):
        embeddings[len(SPECIAL) + WORDS.index(word), feature : feature + 2] = torch.tensor([1.0, -1.0])
    embeddings[len(SPECIAL) + WORDS.index("nan")] = math.nan
    first = "bert.encoder.layer.0.attention"
    for name in (f"{first}.self.value.weight", f"{first}.output.dense.weight", "bert.pooler.dense.weight"):
        weights[name].copy_(torch.eye(8))
    for label, feature in {"toxic": 0, "insult": 0, "threat": 2}.items():
        if label in labels:
            weights["classifier.weight"][labels.index(label), feature] = SLOPE
            weights["classifier.bias"][labels.index(label)] = -OFFSET
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=WINDOW).save_pretrained(folder)
    return str(folder)


def _windows(tokens: list[str]) -> list[list[str]]:
    """Tokens cut into windows of WINDOW with [CLS] and [SEP], overlapping by a quarter."""
    room, overlap = WINDOW - 2, WINDOW // 4
    windows = [tokens[:room]]
    while (start := len(windows) * (room - overlap)) + overlap < len(tokens):
        windows.append(tokens[start : start + room])
    return [["[CLS]", *window, "[SEP]"] for window in windows]


def _probability(word: str, window: list[str]) -> float:
    return 1 / (1 + math.exp(OFFSET - SLOPE * math.tanh(window.count(word) / len(window))))
