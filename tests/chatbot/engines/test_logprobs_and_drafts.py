"""Log-probabilities are those of the model's own logits; a draft model changes no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Generation

CPU = LoadOptions(device="cpu")
ASKED = Conversation().add("system", "Be brief.").add("user", "Hello, who are you?")
PLAIN = "The bridge was opened"


@pytest.fixture(scope="module")
def tiny(tiny_chat_model: Path) -> Any:
    return open_engine("transformers", str(tiny_chat_model), CPU)


def said(model: Any, generation: Generation, asked: Conversation = ASKED) -> str:
    return "".join(delta.text for delta in model.stream(asked, generation))


# Log-probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [{}, {"sample": True, "temperature": 0.3, "top_k": 5, "seed": 3}, {"repetition_penalty": 1.5}], ids=str
)
def test_logprobs_are_those_of_the_raw_logits(how: dict[str, Any], tiny: Any) -> None:
    import torch

    deltas = list(tiny.complete(PLAIN, Generation(max_tokens=20, logprobs=3, **how)))
    told = [each for delta in deltas for each in delta.logprobs]
    prompt: list[int] = tiny.renderer.plain_ids(PLAIN)
    assert len(told) == deltas[-1].usage.completion_tokens - (deltas[-1].finish_reason == "stop"), "no end token"
    ids = list(prompt)
    for each in told:
        with torch.inference_mode():
            logprobs_V = tiny.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        best = logprobs_V.topk(3)
        assert [value for _, value in each.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [text for text, _ in each.top] == [tiny.tokenizer.decode([id_]) for id_ in best.indices.tolist()]
        # which id it was: the one of that text whose log-probability was told
        ids.append(min(range(len(logprobs_V)), key=lambda id_: abs(float(logprobs_V[id_]) - each.logprob)))
        assert tiny.tokenizer.decode([ids[-1]]) == each.token
    assert tiny.tokenizer.decode(ids[len(prompt) :]) == "".join(delta.text for delta in deltas)


def test_no_logprobs_unless_asked_and_none_beside_the_token_for_zero(tiny: Any) -> None:
    assert not any(delta.logprobs for delta in tiny.stream(ASKED, Generation(max_tokens=5)))
    told = [each for delta in tiny.stream(ASKED, Generation(max_tokens=5, logprobs=0)) for each in delta.logprobs]
    assert [each.top for each in told] == [()] * 5
    assert all(each.logprob < 0 for each in told)


@given(st.integers(0, 60), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_with_a_stop_string_the_tokens_told_of_are_those_of_the_text(tiny: Any, start: int, length: int) -> None:
    whole = said(tiny, Generation(max_tokens=40))
    stop = whole[start : start + length]
    if not stop:
        return
    deltas = list(tiny.stream(ASKED, Generation(max_tokens=40, stop=(stop,), logprobs=0)))
    text = "".join(delta.text for delta in deltas)
    tokens = [each.token for delta in deltas for each in delta.logprobs]
    shown = 0
    for delta in deltas:
        shown += len(delta.text)
        assert len("".join(each.token for each in delta.logprobs)) <= shown
    everything = [each.token for d in tiny.stream(ASKED, Generation(max_tokens=40, logprobs=0)) for each in d.logprobs]
    assert tokens == everything[: len(tokens)]
    assert text == whole.partition(stop)[0]


# Assisted decoding --------------------------------------------------------------------------------------------------


def save_draft(folder: Path, of: Path, seed: int) -> Path:
    """A smaller random model with the tokenizer of another."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(of)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), **sizes, num_attention_heads=2, max_position_embeddings=512)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("perfect", [True, False], ids=["itself", "random"])
def test_a_draft_model_changes_no_token(perfect: bool, tiny: Any, tiny_chat_model: Path, tmp_path: Path) -> None:
    draft = tiny_chat_model if perfect else save_draft(tmp_path / "draft", tiny_chat_model, 1)
    model: Any = open_engine("transformers", str(tiny_chat_model), LoadOptions(device="cpu", draft_model=str(draft)))
    passes: list[int] = []
    forward = model._scheduler._runner.forward

    def counted(work: Any) -> Any:
        passes.append(len(work))
        return forward(work)

    model._scheduler._runner.forward = counted
    for how in ({}, {"repetition_penalty": 1.2}, {"logprobs": 2}, {"sample": True, "seed": 1}):
        for asked in (ASKED, ASKED.add("assistant", "I am.").add("user", "And now?"), ASKED):
            generation = Generation(max_tokens=50, **how)
            del passes[:]
            ours, theirs = list(model.stream(asked, generation)), list(tiny.stream(asked, generation))
            assert "".join(d.text for d in ours) == "".join(d.text for d in theirs)
            assert ours[-1].usage.completion_tokens == theirs[-1].usage.completion_tokens
            assert ours[-1].finish_reason == theirs[-1].finish_reason
            ours_told, told = ([each for d in deltas for each in d.logprobs] for deltas in (ours, theirs))
            assert [each.token for each in ours_told] == [each.token for each in told]
            if perfect and not how:
                assert len(passes) < 50 / 2, "most proposals were right"


def test_a_draft_model_steps_back_when_several_ask(tiny: Any, tiny_chat_model: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    options = LoadOptions(device="cpu", draft_model=str(tiny_chat_model))
    model: Any = open_engine("transformers", str(tiny_chat_model), options)
    asked = [Conversation().add("user", f"Question {n}") for n in range(4)]
    generation = Generation(max_tokens=40)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: said(model, generation, each), asked))
    assert answers == [said(tiny, generation, each) for each in asked]


def test_a_draft_model_with_another_vocabulary_is_refused(tiny_chat_model: Path, smollm2: Path) -> None:
    options = LoadOptions(device="cpu", draft_model=str(smollm2))
    with pytest.raises(ValueError, match="has another vocabulary than"):
        open_engine("transformers", str(tiny_chat_model), options)
