"""Batches by hand, and packed against unpacked through real architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.examples.collate import causal_batch, encoder_decoder_batch, num_loss_tokens, with_bidirectional_prefix
from training.examples.making import Example


def example(ids: list[int], mask: list[int], weight: float = 1.0) -> Example:
    return Example(np.array(ids, np.int32), np.array(mask, bool), weight)


def test_labels_are_the_next_tokens_that_have_a_loss() -> None:
    batch = causal_batch([[example([5, 6, 7, 8], [0, 0, 1, 1])], [example([9, 10], [1, 1])]], 0, packed=False)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch["shift_labels"].tolist() == [[-100, 7, 8, -100], [10, -100, -100, -100]]
    assert set(batch) == {"input_ids", "shift_labels", "num_tokens"}
    assert batch["num_tokens"] == 6
    assert int(num_loss_tokens(batch)) == 3


def test_packed_examples_have_no_label_across_their_border_and_count_from_0() -> None:
    row = [example([5, 6, 7], [1, 1, 1]), example([8, 9], [1, 1])]
    batch = causal_batch([row, [example([3], [1])]], 0, packed=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [3, 0, 0, 0, 0]]
    assert batch["shift_labels"].tolist() == [[6, 7, -100, 9, -100], [-100] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]


def test_a_process_without_rows_still_has_a_batch() -> None:
    batch = causal_batch([], 0, packed=True)
    assert batch["input_ids"].shape == (1, 1)
    assert int(num_loss_tokens(batch)) == 0
    assert encoder_decoder_batch([], 0, 0)["shift_labels"].tolist() == [[-100]]


def test_weights_stand_where_their_example_does() -> None:
    batch = causal_batch([[example([5, 6], [1, 1], 2.0), example([7], [1])]], 0, packed=True)
    assert batch["weights"].tolist() == [[2.0, 2.0, 1.0]]


def test_encoder_and_decoder_each_have_their_part() -> None:
    rows = [[example([5, 6, 7, 8], [0, 0, 1, 1])], [example([9, 10, 11], [0, 1, 1])]]
    batch = encoder_decoder_batch(rows, 0, 1)
    assert batch["input_ids"].tolist() == [[5, 6], [9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["decoder_input_ids"].tolist() == [[1, 7], [1, 10]]
    assert batch["shift_labels"].tolist() == [[7, 8], [10, 11]]


def test_a_prefix_sees_itself_whole_and_nothing_later() -> None:
    mask = with_bidirectional_prefix([[example([5, 6, 7, 8], [0, 0, 1, 1])]], 0)["attention_mask"][0, 0]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.fixture(params=["tiny_chat_model", "tiny_base_model"])
def model(request: pytest.FixtureRequest) -> Any:
    from transformers import AutoModelForCausalLM

    folder: Path = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_the_loss_of_packed_examples_is_that_of_each_alone(model: Any) -> None:
    import torch

    from training.objective import language_model_loss

    draw = np.random.default_rng(0)
    examples = [
        Example(draw.integers(3, 250, size).astype(np.int32), draw.random(size) < 0.6) for size in (7, 19, 4, 11, 2)
    ]
    with torch.no_grad():
        alone = sum(float(language_model_loss(model, causal_batch([[each]], 0, packed=False))) for each in examples)
        padded = float(language_model_loss(model, causal_batch([[each] for each in examples], 0, packed=False)))
        packed = float(language_model_loss(model, causal_batch([examples[:3], examples[3:]], 0, packed=True)))
    assert padded == pytest.approx(alone, rel=1e-5)
    assert packed == pytest.approx(alone, rel=1e-5)
