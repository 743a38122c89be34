"""The loss, by hand and against transformers' own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from training.examples.collate import causal_batch
from training.examples.making import Example
from training.objective import language_model_loss, negative_log_likelihood


def test_the_sum_of_negative_log_probabilities_by_hand() -> None:
    # p = [1/4, 3/4]: -ln 1/4 = 1.386294, -ln 3/4 = 0.287682
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert float(negative_log_likelihood(logits, torch.tensor([0, 1]))) == pytest.approx(1.386294 + 0.287682, abs=1e-5)
    weighted = negative_log_likelihood(logits, torch.tensor([0, 1]), torch.tensor([2.0, 0.0]))
    assert float(weighted) == pytest.approx(2 * 1.386294, abs=1e-5)


@pytest.mark.parametrize("name", ["tiny_chat_model", "tiny_base_model"])
def test_loss_and_gradients_are_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForCausalLM

    folder: Path = request.getfixturevalue(name)
    draw = np.random.default_rng(1)
    ids = draw.integers(3, 250, (2, 12)).astype(np.int32)
    mask = draw.random((2, 12)) < 0.5
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    batch = causal_batch([[Example(ids[b], mask[b])] for b in range(2)], 0, packed=False)
    loss = language_model_loss(ours, batch)
    labels = torch.from_numpy(np.where(mask, ids, -100)).long()
    num = int(mask[:, 1:].sum())
    expected = theirs(input_ids=torch.from_numpy(ids).long(), labels=labels).loss * num
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=key)


def test_a_batch_without_labels_has_zero_loss_and_zero_gradients(tiny_chat_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    loss = language_model_loss(model, causal_batch([], 0, packed=False))
    assert loss.item() == 0
    loss.backward()
    assert all(not each.grad.any() for each in model.parameters() if each.grad is not None)
