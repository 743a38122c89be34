"""Packing is refused where examples would see each other: the loss itself is the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.examples.collate import causal_batch
from training.examples.making import Example
from training.isolation import check_isolation
from training.objective import language_model_loss


def tiny(name: str) -> Any:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64}
    llama = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = {
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **sizes)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(num_key_value_heads=1, **llama, **sizes)),
        "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(num_key_value_heads=1, head_dim=16, **llama, **sizes)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=32, n_layer=2, n_head=2, **sizes)),
        "opt": lambda: hf.OPTForCausalLM(
            hf.OPTConfig(ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, **llama, **sizes)
        ),
    }[name]()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.mark.parametrize(
    ("name", "isolated"), [("gpt2", True), ("qwen2", True), ("gemma2", True), ("bloom", False), ("opt", False)]
)
def test_the_check_says_what_the_loss_says(name: str, isolated: bool) -> None:
    import torch

    model = tiny(name)
    draw = np.random.default_rng(0)
    examples = [Example(draw.integers(3, 60, size).astype(np.int32), np.ones(size, bool)) for size in (7, 12, 5)]
    with torch.no_grad():
        alone = sum(float(language_model_loss(model, causal_batch([[each]], 0, packed=False))) for each in examples)
        packed = float(language_model_loss(model, causal_batch([examples], 0, packed=True)))
    assert (abs(packed - alone) < 1e-4 * alone) == isolated
    if isolated:
        check_isolation(model)
    else:
        with pytest.raises(ValueError, match=r"see each other .* set data.packing=false"):
            check_isolation(model)


def test_encoder_decoders_are_not_packed() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8)
    with pytest.raises(ValueError, match="has an encoder too"):
        check_isolation(T5ForConditionalGeneration(config))
