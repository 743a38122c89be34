"""What is sampled follows the distribution that is trained, and depends on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TopKLogitsWarper, TopPLogitsWarper

from training.rl.policy import chosen_numbers, kept_pairs
from training.rl.sampling import Sampling, chosen_tokens, kept_tokens, sample

PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64], [1, 70, 71]]
SEEDS = [(7, 0, number) for number in range(4)]


@pytest.fixture
def model(tiny_chat_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_chat_model)


def test_tokens_are_chosen_as_often_as_they_are_likely() -> None:
    logits = torch.log(torch.tensor([0.1, 0.0, 0.6, 0.3]))
    num = 10_000
    uniforms = (torch.arange(num) + 0.5) / num
    chosen = chosen_tokens(logits.expand(num, 4), None, uniforms)
    assert (chosen.bincount(minlength=4) / num).tolist() == pytest.approx([0.1, 0, 0.6, 0.3], abs=1e-3)
    without_third = torch.tensor([[True, True, False, True]]).expand(num, 4)
    chosen = chosen_tokens(logits.expand(num, 4), without_third, uniforms)
    assert (chosen.bincount(minlength=4) / num).tolist() == pytest.approx([0.25, 0, 0, 0.75], abs=1e-3)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (20, 0.8), (99, 0.01)])
def test_kept_tokens_are_those_of_transformers(top_k: int, top_p: float) -> None:
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(3))
    expected = logits
    if top_k:
        expected = TopKLogitsWarper(min(top_k, 50))(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert kept_tokens(logits, top_k, top_p).equal(expected.isfinite())


def test_an_answer_depends_on_its_seed_alone_not_on_its_batch(model: Any) -> None:
    sampling = Sampling(12, frozenset({2}), 0, temperature=0.8)
    together = sample(model, PROMPTS, SEEDS, sampling)
    alone = [sample(model, [prompt], [seed], sampling)[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    backwards = sample(model, PROMPTS[::-1], SEEDS[::-1], sampling)[::-1]
    assert [each.ids for each in together] == [each.ids for each in alone] == [each.ids for each in backwards]
    others = sample(model, PROMPTS, [(7, 1, number) for number in range(4)], sampling)
    assert [each.ids for each in together] != [each.ids for each in others]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT, of transformers
@pytest.mark.parametrize("adapted", [False, True])
def test_the_models_own_generation_settings_change_nothing(model: Any, adapted: bool) -> None:
    from peft import LoraConfig, get_peft_model

    sampling = Sampling(12, frozenset({2}), 0)
    if adapted:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    plain = sample(model, PROMPTS, SEEDS, sampling)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 12
    model.train()
    assert sample(model, PROMPTS, SEEDS, sampling) == plain
    assert model.generation_config.repetition_penalty == 5.0
    assert model.training


def test_an_answer_ends_with_its_first_end(model: Any) -> None:
    long = sample(model, PROMPTS, SEEDS, Sampling(12, frozenset({2}), 0))
    end = long[0].ids[3]
    cut = sample(model, PROMPTS, SEEDS, Sampling(12, frozenset({2, end}), 0))
    place = long[0].ids.index(end)
    assert cut[0].ids == long[0].ids[: place + 1]
    assert cut[0].ended
    assert not any(end in each.ids[:-1] for each in cut)


def test_sampling_is_from_the_distribution_that_is_trained(model: Any) -> None:
    """The frequencies of first tokens are the probabilities that a plain forward pass gives them."""
    sampling = Sampling(1, frozenset({2}), 0, temperature=0.7, top_k=6)
    num = 400
    found = sample(model, [PROMPTS[0]] * num, [(7, 0, number) for number in range(num)], sampling)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[:, -1]
    rows, ids = kept_pairs([found[0].kept])  # type: ignore[list-item]  # there is one
    assert sorted(ids.tolist()) == sorted(logits[0].topk(6).indices.tolist())
    counts = np.bincount([each.ids[0] for each in found], minlength=logits.shape[1])
    for id_ in ids.tolist():
        p = chosen_numbers(logits, torch.tensor([id_]), 0.7, rows, ids)[0].exp().item()
        assert counts[id_] / num == pytest.approx(p, abs=4 * (p * (1 - p) / num) ** 0.5)
    assert counts.sum() == counts[ids.numpy()].sum()
