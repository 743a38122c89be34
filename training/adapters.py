"""Adapters (PEFT): LoRA with its own keys, any other method of the library by name."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config.schema import ModelConfig, PeftConfig


def add_adapter(model: Any, settings: PeftConfig, of: ModelConfig, classifies: bool = False, seed: int = 0) -> Any:
    """`model` with a fresh adapter, the only part that is trained, besides the head of one that `classifies`.

    LoRA's first weights follow from `seed` and a layer's name: the same however the model is cut into stages.

    Raises ValueError for a method or an option that PEFT does not have, and for layers that the model lacks.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    if of.quantize.value != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    wanted = adapter_config(settings, bool(model.config.is_encoder_decoder), classifies)
    with warnings.catch_warnings():
        # PEFT asks the model by a name that transformers is about to drop.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapter = get_peft_model(model, wanted)
    if getattr(wanted, "init_lora_weights", None) in (True, "gaussian"):
        _draw_by_name(adapter, wanted.init_lora_weights, seed)
    if not trainable_share(adapter)[0]:
        raise ValueError(f"peft={settings.name} leaves nothing to train; see peft.targets={settings.targets}")
    return adapter


def _draw_by_name(adapter: Any, how: bool | str, seed: int) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        for name, module in adapter.named_modules():
            if hasattr(module, "reset_lora_parameters"):
                torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little"))
                module.reset_lora_parameters("default", how)


def open_adapter(model: Any, folder: Path) -> Any:
    """`model` with the adapter saved in `folder`, to be trained further."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def adapter_config(settings: PeftConfig, encoder_decoder: bool, classifies: bool = False) -> Any:
    """PEFT's configuration for `settings`; options that are not valid for its method are refused by name."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, TaskType

    kinds = {kind.value.lower(): kind for kind in PeftType}
    name = str(settings.name).lower()
    if name not in kinds or kinds[name] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        near = difflib.get_close_matches(name, kinds, n=1)
        meant = f"; did you mean {near[0]}?" if near else ";"
        raise ValueError(f"unknown adapter method '{settings.name}'{meant} PEFT has: {', '.join(sorted(kinds))}")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kinds[name]]
    known = {each.name for each in dataclasses.fields(config)}
    task = TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM
    ours: dict[str, Any] = {"task_type": TaskType.SEQ_CLS if classifies else task}
    if name == "lora":
        ours |= {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
        ours |= {"use_dora": settings.dora}
    if "target_modules" in known and (name == "lora" or settings.targets != "all-linear"):
        ours["target_modules"] = settings.targets
    if unknown := sorted(set(settings.options) - known):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"peft.options: {config.__name__} has no '{unknown[0]}'{meant}")
    return config(**ours | settings.options)


def trainable_share(model: Any) -> tuple[int, int]:
    """(parameters that are trained, all parameters)."""
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
