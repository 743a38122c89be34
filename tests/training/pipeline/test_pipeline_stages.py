"""Models cut into stages, all in this process, against the whole model: equal to the bit, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from training.objective import language_model_loss
from training.pipeline.balance import by_count
from training.pipeline.loading import reader
from training.pipeline.stages import build_stage, fill, run_in_turn
from training.pipeline.trial import check_cutting, gradients, small

ENDS = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {
    **ENDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
HEADS_OF_8 = {**GROUPED, "head_dim": 8}
GPT = {**ENDS, "n_embd": 32, "n_layer": 5, "n_head": 4, "n_positions": 64}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 8},
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen3": {**HEADS_OF_8, "tie_word_embeddings": True},
    "smollm3": {**GROUPED, "no_rope_layer_interval": 2},
    "gpt_neox": SMALL,
    "gpt2": {**GPT, **NO_DROPOUT, "scale_attn_by_inverse_layer_idx": True},
    "gpt_neo": {
        **ENDS, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
        "window_size": 4, "max_position_embeddings": 64, "resid_dropout": 0.0, "embed_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "gpt_bigcode": {**GPT, **NO_DROPOUT},
    "gptj": {**GPT, **NO_DROPOUT, "rotary_dim": 4},
    "codegen": {**GPT, **NO_DROPOUT, "rotary_dim": 4},
    "opt": {
        **ENDS, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 5, "num_attention_heads": 4,
        "max_position_embeddings": 64, "word_embed_proj_dim": 16, "dropout": 0.0, "pad_token_id": 0,
    },
    "bloom": {**ENDS, "hidden_size": 32, "n_layer": 5, "n_head": 4, "pad_token_id": 0},
    "gemma": HEADS_OF_8,
    "gemma2": {**HEADS_OF_8, "sliding_window": 4},
    "gemma3_text": {**HEADS_OF_8, "sliding_window": 4, "sliding_window_pattern": 2},
    "granite": {**GROUPED, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "phi": {**SMALL, "resid_pdrop": 0.0},
    "phi3": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, "sliding_window": 4},
    "falcon": {**ENDS, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "alibi": False},
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "qwen3_moe": {**HEADS_OF_8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip


def whole_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
    return model


def cut(config: Any, values: dict[str, Any], num_stages: int) -> list[Any]:
    stages = []
    for layers in by_count(config.num_hidden_layers, num_stages):
        stages.append(build_stage(config, layers, torch.float32))
        fill(stages[-1], lambda name: values[name].clone())
    return stages


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_stages_compute_what_the_whole_model_does(kind):
    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind])
    model = whole_model(config)
    ids_BT, labels_BT = torch.randint(3, 96, (2, 12)), torch.randint(3, 96, (2, 12))
    labels_BT[0, :5] = -100
    logits_BTV = model(ids_BT, use_cache=False).logits
    language_model_loss(model, {"input_ids": ids_BT, "shift_labels": labels_BT}).backward()
    for num_stages in (1, 2, 4):
        stages = cut(config, model.state_dict(), num_stages)
        assert torch.equal(run_in_turn(stages, ids_BT), logits_BTV)
        run_in_turn(stages, ids_BT, shift_labels=labels_BT).backward()
        found = gradients(stages)
        assert found.keys() == {name for name, each in model.named_parameters() if each.grad is not None}
        assert all(torch.equal(found[name], model.get_parameter(name).grad) for name in found)
        if num_stages > 1:
            held = [sum(each.numel() for each in stage.parameters()) for stage in stages]
            extra = model.get_output_embeddings().weight.numel() if stages[0].tied else 0
            assert sum(held) == sum(each.numel() for each in model.parameters()) + extra


def test_packed_rows_and_masks_go_through_all_stages():
    config = AutoConfig.for_model("llama", **GROUPED)
    model = whole_model(config)
    stages = cut(config, model.state_dict(), 3)
    ids_BT = torch.randint(3, 96, (2, 10))
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6]] * 2)
    assert torch.equal(
        run_in_turn(stages, ids_BT, position_ids=position_ids),
        model(ids_BT, position_ids=position_ids, use_cache=False).logits,
    )
    mask = torch.ones(10, 10, dtype=torch.bool).tril()
    mask[:4, :4] = True
    mask = mask.repeat(2, 1, 1, 1)
    assert torch.equal(
        run_in_turn(stages, ids_BT, attention_mask=mask), model(ids_BT, attention_mask=mask, use_cache=False).logits
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gptj", "bloom", "gemma3_text", "granite", "falcon", "phi3"])
def test_a_known_architecture_at_its_full_size_is_tried_small(kind):
    config = AutoConfig.for_model(kind)
    tried = small(config)
    assert tried.num_hidden_layers <= 6
    assert tried.hidden_size == 64
    check_cutting(config)


class DoubledConfig(LlamaConfig):
    model_type = "doubled_llama"


class DoubledModel(LlamaModel):
    """A llama that doubles what comes in, as no one would guess from its parts."""

    config_class = DoubledConfig

    def forward(self, input_ids=None, inputs_embeds=None, **rest):
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=2.0 * x, **rest)


class DoubledForCausalLM(LlamaForCausalLM):
    config_class = DoubledConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = DoubledModel(config)
        self.post_init()


def test_what_no_one_described_is_refused_with_the_number():
    AutoConfig.register("doubled_llama", DoubledConfig, exist_ok=True)
    AutoModelForCausalLM.register(DoubledConfig, DoubledForCausalLM, exist_ok=True)
    with pytest.raises(ValueError, match=r"logits that differ by [\d.e+]+ .* MORE of training/pipeline/anatomy.py"):
        check_cutting(DoubledConfig(**GROUPED))


def test_a_part_whose_place_is_unknown_is_named():
    with pytest.raises(ValueError, match="whether its 'norm_f' belongs before or after"):
        check_cutting(AutoConfig.for_model("mpt"))


def test_trying_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_cutting(AutoConfig.for_model("llama", **GROUPED))
    assert torch.equal(torch.rand(3), expected)


def test_models_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"mamba cannot be cut|mamba is not cut"):
        check_cutting(AutoConfig.for_model("mamba", num_hidden_layers=2))


# From a directory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_a_stage_reads_its_own_tensors_and_no_others(tmp_path, kind, shard):
    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind])
    model = whole_model(config)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    stage = build_stage(config, range(2, 4), torch.float32)
    read, asked = reader(tmp_path, stage), []

    def noted(name: str) -> torch.Tensor:
        asked.append(name)
        return read(name)

    fill(stage, noted)
    assert all(".2." in name or ".3." in name for name in asked)
    for name, parameter in stage.model.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
    assert sorted(asked) == sorted(dict(stage.model.named_parameters()))


@pytest.mark.parametrize("kind", ["gpt_neox", "qwen3_moe", "mixtral", "falcon", "phi", "gemma2"])
def test_what_files_call_otherwise_is_found(tmp_path, kind):
    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind])
    model = whole_model(config)
    model.save_pretrained(tmp_path)
    stages = [build_stage(config, layers, torch.float32) for layers in (range(3), range(3, config.num_hidden_layers))]
    for stage in stages:
        fill(stage, reader(tmp_path, stage))
    ids_BT = torch.randint(3, 96, (1, 7))
    assert torch.equal(run_in_turn(stages, ids_BT), model(ids_BT).logits)


def test_weights_of_a_model_without_its_head_are_found(tmp_path):
    from safetensors.torch import save_file

    config = AutoConfig.for_model("gpt2", **ARCHITECTURES["gpt2"])
    model = whole_model(config)
    save_file(model.transformer.state_dict(), tmp_path / "model.safetensors")  # as GPT-2 is on the hub
    stage = build_stage(config, range(5), torch.float32)
    fill(stage, reader(tmp_path, stage))
    ids_BT = torch.randint(3, 96, (1, 7))
    assert torch.equal(run_in_turn([stage], ids_BT), model(ids_BT).logits)


def test_directories_without_weights_are_refused(tmp_path):
    stage = build_stage(AutoConfig.for_model("llama", **ARCHITECTURES["llama"]), range(1), torch.float32)
    with pytest.raises(ValueError, match=r"no readable model.safetensors"):
        reader(tmp_path, stage)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"no readable model.safetensors"):
        reader(tmp_path, stage)


def test_a_missing_tensor_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    stage = build_stage(AutoConfig.for_model("llama", **ARCHITECTURES["llama"]), range(1), torch.float32)
    with pytest.raises(ValueError, match=r"has no tensor 'lm_head.weight'"):
        reader(tmp_path, stage)("lm_head.weight")


def test_the_real_model(smollm2):
    config = AutoConfig.from_pretrained(smollm2)
    check_cutting(config)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    ids_BT = torch.arange(100, 116)[None]
    expected = model(ids_BT, use_cache=False).logits
    stages = []
    for layers in (range(19), range(19, 30)):
        stages.append(build_stage(config, layers, torch.float32))
        fill(stages[-1], reader(smollm2, stages[-1]))
    with torch.no_grad():
        assert torch.equal(run_in_turn(stages, ids_BT), expected)
