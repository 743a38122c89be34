"""Answers that a server writes: a run with one learns what a run without learns, and what the server must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_fake import BASE, FakeVllm, serving

# An adapter that moves far in a few steps, so that one of an earlier round would be noticed.
ADAPTED = ("peft=lora", "trainer.lr=0.02", "method.max_kl=null", "trainer.max_steps=6", "method.temperature=0.9")
METHODS = {
    "ppo": ("data.eval_fraction=0.25",),
    "grpo": ("method.prompts=2", "method.samples=4", "method.loss=answers"),
    "rejection": ("method.prompts=8", "method.samples=2"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_a_server_learns_what_one_without_learns(
    method: str, rounds: Any, weights: Any, tiny_chat_model: Path
) -> None:
    alone = rounds("alone", method, *ADAPTED, *METHODS[method])
    with serving(FakeVllm(tiny_chat_model)) as fake:
        served = rounds("served", method, *ADAPTED, *METHODS[method], f"method.server={fake.url}/v1")
    first, second = weights(alone), weights(served)
    assert first.keys() == second.keys()
    assert any(float(value.abs().max()) > 0 for key, value in first.items() if "lora_B" in key), "something was learned"
    for key, value in first.items():
        assert float((value - second[key]).abs().max()) < 1e-4, key
    assert len(fake.loaded) == len(set(fake.loaded)) >= 2, "each round has an adapter of its own"
    assert list(fake.adapters) == [fake.loaded[-1]] == [each.name for each in (served / "served").iterdir()]
    assert all(each["model"] != BASE for each in fake.asked), "the first adapter changes nothing, but is one"
    settings = {"temperature": 0.9, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert all(settings.items() <= each.items() for each in fake.asked)


def test_a_server_with_another_model_is_noticed(rounds: Any, tiny_chat_model: Path) -> None:
    fake = FakeVllm(tiny_chat_model)
    with torch.no_grad():
        for parameter in fake.base.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    with (
        serving(fake),
        pytest.raises(ValueError, match=r"differs from the model in training by .* serve the same"),
    ):
        rounds("other", "ppo", *ADAPTED, f"method.server={fake.url}")


def test_a_server_that_tells_no_ids_is_none(rounds: Any, tiny_chat_model: Path) -> None:
    with (
        serving(FakeVllm(tiny_chat_model, tells_ids=False)) as fake,
        pytest.raises(ValueError, match=r"without token_ids and logprobs; it must be vLLM 0\.10\.2 or later"),
    ):
        rounds("old", "ppo", *ADAPTED, f"method.server={fake.url}")


def test_a_server_that_takes_no_adapter_says_why(rounds: Any, tiny_chat_model: Path) -> None:
    class Refusing(FakeVllm):
        def answer(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
            if path == "/v1/load_lora_adapter":
                return 400, {"object": "error", "message": "LoRA rank 16 is greater than max_lora_rank 8."}
            return super().answer(path, body)

    with serving(Refusing(tiny_chat_model)) as fake, pytest.raises(ValueError, match="400: LoRA rank 16 is greater"):
        rounds("refused", "ppo", *ADAPTED, f"method.server={fake.url}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("peft=null",), "method.server needs peft=lora"),
        (("peft=ia3",), "method.server needs peft=lora"),
        (("method.top_k=5",), "does not go with method.top_k"),
        (("method.top_p=0.9",), "does not go with method.top_k and method.top_p"),
        (("method.server=localhost:8000",), "'localhost:8000' is no address of a vLLM server"),
    ],
)
def test_what_a_server_cannot_do_is_refused(overrides: tuple[str, ...], message: str, rounds: Any) -> None:
    with pytest.raises(ValueError, match=message):
        rounds("r", "ppo", "peft=lora", "method.server=http://127.0.0.1:9", *overrides)
