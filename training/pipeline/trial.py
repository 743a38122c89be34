"""A small model of the same architecture, whole and cut, with random weights: both must compute the same.

How an architecture treats what stands before and after its layers is written down nowhere that a program could read.
So it is tried, in a second or two, before anything large is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch

from training.objective import language_model_loss
from training.pipeline.stages import Stage, build_stage, fill, global_name, per_layer_lists, run_in_turn

WIDTH, HEADS, TOKENS, ROWS = 64, 4, 16, 2


def check_cutting(config: Any) -> None:
    """Raise ValueError where two stages of a small model like `config` differ from the whole in logits or gradients,
    by however little, or where that cannot be tried."""
    kind = config.model_type
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            logits, gradients = _differences(small(config))
        except (RuntimeError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
            reason = f"a small model like it cannot be tried ({type(error).__name__}: {str(error).splitlines()[0]})"
            raise ValueError(f"a model of type {kind} is not cut into stages: {reason}") from error
    if logits or gradients:
        raise ValueError(
            f"a model of type {kind} cannot be cut into stages: those of a small one give logits that differ by "
            f"{logits:.2g} from the whole model's, and gradients by {gradients:.2g}; what it does before or after its "
            "layers is missing in MORE of training/pipeline/anatomy.py"
        )


def small(config: Any) -> Any:
    """`config` with few, narrow layers, its kinds of layers and all else as they are."""
    own = deepcopy(config)
    num_layers = min(config.num_hidden_layers, 6)
    wide, many = config.hidden_size, config.num_attention_heads
    few = getattr(config, "num_key_value_heads", None)
    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 4 * TOKENS,
        "sliding_window": TOKENS // 2,
        "intermediate_size": 2 * WIDTH,
        "ffn_dim": 2 * WIDTH,
        "ffn_hidden_size": 2 * WIDTH,
        "moe_intermediate_size": WIDTH,
        "head_dim": WIDTH // HEADS,
        "rotary_dim": WIDTH // HEADS // 2,
        "num_key_value_heads": HEADS if few == many else 1 if few == 1 else 2,
        "num_kv_heads": HEADS if getattr(config, "num_kv_heads", None) == many else 2,
        "word_embed_proj_dim": WIDTH if getattr(config, "word_embed_proj_dim", None) == wide else WIDTH // 2,
        "num_hidden_layers": num_layers,
    }
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(own, name, None if getattr(config, name, None) is None else 0)
    for name, value in per_layer_lists(config).items():
        setattr(own, name, value[:num_layers])
    for name in vars(config):
        if "dropout" in name or "pdrop" in name or name == "layerdrop":
            setattr(own, name, 0.0)
    for name, size in sizes.items():
        computed = isinstance(getattr(type(config), name, None), property)
        if getattr(config, name, None) is not None and not computed:
            setattr(own, name, size)
    for value in _rope(own):
        for name in ("short_factor", "long_factor"):
            if name in value:
                value[name] = value[name][: WIDTH // HEADS // 2]
    return own


def _rope(config: Any) -> list[dict[str, Any]]:
    """The settings of rotary embeddings: one set, or one for each kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    return [settings, *(each for each in settings.values() if isinstance(each, dict))]


def _differences(config: Any) -> tuple[float, float]:
    """The largest differences of logits and of gradients, both absolute."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    for module in whole.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    values = whole.state_dict()
    num_layers = config.num_hidden_layers
    middle = max(num_layers // 2, 1)
    cuts = [range(middle), range(middle, num_layers)] if num_layers > 1 else [range(1)]
    stages = [build_stage(config, layers, torch.float32) for layers in cuts]
    for stage in stages:
        fill(stage, lambda name: values[name].clone())
    ids_BT = torch.randint(0, 128, (ROWS, TOKENS))
    labels_BT = torch.randint(0, 128, (ROWS, TOKENS))
    with torch.no_grad():
        logits = (whole(ids_BT, use_cache=False).logits - run_in_turn(stages, ids_BT)).abs().max().item()
    language_model_loss(whole, {"input_ids": ids_BT, "shift_labels": labels_BT}).backward()
    run_in_turn(stages, ids_BT, shift_labels=labels_BT).backward()
    found = gradients(stages)
    expected = {name: each.grad for name, each in whole.named_parameters() if each.grad is not None}
    if found.keys() != expected.keys():
        return logits, float("inf")
    return logits, max((found[name] - expected[name]).abs().max().item() for name in expected)


def gradients(stages: Sequence[Stage]) -> dict[str, torch.Tensor]:
    """Gradients by global name of stages in one process, a tied tensor's from both ends together."""
    found: dict[str, torch.Tensor] = {}
    for stage in stages:
        for own, parameter in stage.model.named_parameters():
            if parameter.grad is not None:
                name = global_name(stage, own)
                found[name] = found[name] + parameter.grad if name in found else parameter.grad
    return found
