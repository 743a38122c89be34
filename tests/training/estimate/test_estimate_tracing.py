"""What micro-batches need: against models that really run, and the tensors that autograd really saves."""

from __future__ import annotations

import dataclasses
import json

import pytest

from training.adapters import add_adapter
from training.config.schema import ModelConfig, PeftConfig
from training.estimate.memory import LIBRARIES, of_process
from training.estimate.meter import Meter
from training.estimate.orders import BACKWARD, FORWARD, Action
from training.estimate.parameters import sizes
from training.estimate.tracing import Work, config_of, needs

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 300,
    "tie_word_embeddings": False,
}
NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "tie_word_embeddings": False,
}
TIED = {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 2, "vocab_size": 4000}
ROWS, TOKENS, LAYERS = 3, 64, 6
LORA = json.dumps({"name": "lora", "r": 4})


def work(config, **more):
    return Work(json.dumps(config), ROWS, TOKENS, ROWS * TOKENS, **more)


def real_model(config, **more):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(json.dumps(config)), attn_implementation="sdpa")
    if more.get("checkpointing"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if more.get("peft"):
        model = add_adapter(model, PeftConfig("lora", r=4), ModelConfig())
    return model.train()


@pytest.mark.parametrize("config", [LLAMA, NEOX])
def test_what_is_kept_is_what_autograd_saves(config):
    import torch

    model, saved = real_model(config), {}
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros(ROWS, TOKENS, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(ids, use_cache=False)
    kept = needs(work(config, last=False), LAYERS).kept
    assert kept == pytest.approx(sum(size for size, _ in saved.values()), rel=0.02)


@pytest.mark.parametrize(
    ("config", "more"),
    [(LLAMA, {}), (NEOX, {}), (TIED, {}), (LLAMA, {"checkpointing": True}), (TIED, {"peft": LORA})],
    ids=["llama", "gpt_neox", "tied", "checkpointing", "lora"],
)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_real_run_peaks_where_it_was_said(config, more, micro_batches):
    import torch

    from training.objective import language_model_loss

    model = real_model(config, **more)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.int64)
    meter = Meter()
    for each in model.parameters():
        meter.add(each)
    with meter.watching():
        for _ in range(2):
            for _ in range(micro_batches):
                language_model_loss(model, {"input_ids": ids, "shift_labels": ids}).backward()
            optimizer.step()
            optimizer.zero_grad()
    asked = work(config, **more)
    order = [Action(0, kind, number) for number in range(micro_batches) for kind in (FORWARD, BACKWARD)]
    size = sizes(asked.config, asked.peft).whole
    memory = of_process({0: size}, {0: needs(asked, LAYERS)}, order, asked, "adamw_torch", "cpu")
    assert memory.peak - LIBRARIES["cpu"] == pytest.approx(meter.peak, rel=0.02)


def test_layers_add_up():
    # Seven layers, traced as such through another door: a stage of them is what two and three foretell.
    from training.estimate.tracing import _traced

    for more in ({}, {"checkpointing": True}, {"first": False}, {"splits_backward": True, "first": False}):
        asked = work(LLAMA, **more)
        traced, foretold = _traced(asked, 7), needs(asked, 7)
        assert foretold.kept == pytest.approx(traced.kept)
        assert foretold.between == pytest.approx(traced.between)
        assert max(foretold.later) == pytest.approx(max(traced.later))
        assert max(foretold.first) == pytest.approx(max(traced.first), rel=0.01)


def test_what_takes_less():
    def kept(**more):
        return needs(work(LLAMA, **more), LAYERS).kept

    assert kept(checkpointing=True) < kept() / 3
    assert kept(precision="bfloat16") < kept()
    assert kept(attention="eager") > kept()
    assert kept(packed=True) > kept()  # a mask of tokens by tokens
    few = dataclasses.replace(work(LLAMA), loss_tokens=1)
    assert max(needs(few, LAYERS).first) < max(needs(work(LLAMA), LAYERS).first)
    assert max(needs(work(LLAMA, scores=True), LAYERS).first) < max(needs(work(LLAMA), LAYERS).first)
