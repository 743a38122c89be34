"""Sizes and operations: against models that are really built, PEFT, and the run's own count of operations."""

from __future__ import annotations

import json

import pytest

from common.models import HUB_MODELS
from training.adapters import add_adapter, trainable_share
from training.config.schema import ModelConfig, PeftConfig
from training.estimate.known import known_config
from training.estimate.parameters import sizes
from training.estimate.tracing import config_of
from training.tracking.throughput import model_flops

LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 90}
NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 120,
}
CONFIGS = [
    {**LLAMA, "tie_word_embeddings": False},
    {**LLAMA, "tie_word_embeddings": True},
    GPT2,
    {**NEOX, "tie_word_embeddings": False},
]


def build(config):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config_of(json.dumps(config)))


@pytest.mark.parametrize(
    ("config", "adapter"),
    [*((each, None) for each in CONFIGS), *((each, "lora") for each in CONFIGS if each is not GPT2)],
)
def test_as_large_as_the_model_that_is_built(config, adapter):
    model = build(config)
    peft = None
    if adapter:
        model, peft = add_adapter(model, PeftConfig(adapter, r=4), ModelConfig()), json.dumps({"name": adapter, "r": 4})
    found = sizes(json.dumps(config), peft)
    trained, parameters = trainable_share(model)
    assert (found.whole.trained, found.whole.parameters) == (trained, parameters)


@pytest.mark.parametrize("config", CONFIGS)
def test_stages_make_the_whole(config):
    found = sizes(json.dumps(config))
    num = len(found.layers)
    first, last = found.of(range(2)), found.of(range(2, num))
    twice = found.head.parameters if found.tied else 0  # both ends of a tied model have the tensor
    assert first.parameters + last.parameters - twice == found.whole.parameters
    assert first.operations + last.operations == found.whole.operations


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1], CONFIGS[3]])
def test_operations_are_those_that_a_run_counts(config):
    # One counts matrices, the other all that is no look-up: they differ by the norms and biases.
    counted = model_flops(build(config))
    found = sizes(json.dumps(config))
    tokens, row = 640, 64
    assert counted is not None
    ours = found.operations(range(len(found.layers)), tokens, row)
    assert ours == pytest.approx(counted.total(tokens, tokens * row), rel=0.03)


@pytest.mark.parametrize(
    "name",
    ["gpt-neox-20b", "redpajama-incite-3b", "llama-2-7b-32k", "llama-3.2-1b", "qwen3-8b", "smollm3-3b", "smollm2-360m"],
)
def test_known_models_have_the_size_they_are_known_for(name):
    config = known_config(name)
    assert config is not None
    assert f"{sizes(config).whole.parameters / 1e9:.1f}B" == HUB_MODELS[name].num_params


def test_every_model_that_can_be_prepared_is_known():
    for name, model in HUB_MODELS.items():
        assert known_config(name) is not None, name
        assert known_config(name) == known_config(model.repo)
    assert known_config("qwen3-99b") is None
