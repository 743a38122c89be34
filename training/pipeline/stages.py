"""A decoder cut into stages of consecutive layers. B: rows, T: positions, H: width of the model, V: vocabulary.

A stage is the whole Hugging Face model without what belongs to other stages. It is built without memory for weights,
cut, and only then filled, so that no process ever holds the whole. Its layers keep their numbers, and its tensors
their names. `anatomy.py` says what in a model stands before its layers and what after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from training.objective import language_model_loss
from training.pipeline.anatomy import Anatomy, anatomy_of


class Stage(nn.Module):
    """Layers `layers` of a model of `num_layers`, with the embedding if they are the first, with the head if the last.

    `tied` are the names of head and embedding where both are one tensor, else None. `model` may be put under an
    adapter; `precision` is what is computed in where that is not the weights' dtype (autocast).
    """

    def __init__(self, model: Any, layers: range, num_layers: int, tied: tuple[str, str] | None) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.is_first, self.is_last = layers.start == 0, layers.stop == num_layers
        self.tied = tied
        self.precision: torch.dtype | None = None

    @property
    def bare(self) -> Any:
        """The model without an adapter around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def end(self) -> nn.Parameter | None:
        """The tensor that is head and embedding at once, where the stage has one of these."""
        if self.tied is None or not (self.is_first or self.is_last):
            return None
        found: nn.Parameter = self.bare.get_parameter(self.tied[1] if self.is_first else self.tied[0])
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states that come in and go out."""
        dtype: torch.dtype = self.bare.dtype
        return dtype

    def forward(self, x: torch.Tensor, **batch: Any) -> torch.Tensor:
        """Token ids (B, T) for the first stage, else hidden states (B, T, H) -> hidden states (B, T, H). Of the last
        stage the summed loss of `shift_labels` (), or without them logits (B, T, V)."""
        inputs = {("input_ids" if self.is_first else "inputs_embeds"): x, **batch}
        with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
            if self.is_last and "shift_labels" in inputs:
                return language_model_loss(self.model, inputs)
            inputs = {key: value for key, value in inputs.items() if key not in ("shift_labels", "weights")}
            if self.is_last:
                logits_BTV: torch.Tensor = self.model(**inputs, use_cache=False).logits
                return logits_BTV
            hidden_BTH: torch.Tensor = self.bare.get_decoder()(**inputs, use_cache=False).last_hidden_state
        return hidden_BTH.to(self.dtype)


def build_stage(config: Any, layers: range, dtype: torch.dtype, attention: str | None = None) -> Stage:
    """A stage of the model that `config` describes, its weights still without values (on `meta`), its constants there.

    `attention` is transformers' attn_implementation, without it the model's usual one. Raises ValueError where the
    parts of the model are not known.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype, attn_implementation=attention)
    anatomy = anatomy_of(model)
    tied = _tied(model, anatomy)
    _cut(model, anatomy, layers, config.num_hidden_layers)
    return Stage(model, layers, config.num_hidden_layers, tied)


def fill(stage: Stage, read: Callable[[str], torch.Tensor]) -> None:
    """Give every weight of the stage the value that `read` has for its name in the whole model, in the stage's dtype.

    Where a tied model has both ends in one stage, they are one tensor again.
    """
    values = {}
    for name in stored_names(stage):
        value = read(global_name(stage, name))
        values[name] = value.to(stage.dtype) if value.is_floating_point() else value
    stage.model.load_state_dict(values, strict=True, assign=True)
    if stage.is_first and stage.is_last:
        tie(stage, stage)
    for module in stage.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # as in training/models.py: the padding token may be the one that ends replies


def stored_names(stage: Stage) -> list[str]:
    """The tensors of the stage that files have."""
    temporary = {name for name, _ in stage.model.named_non_persistent_buffers()}
    buffers = [name for name, _ in stage.model.named_buffers() if name not in temporary]
    return [*dict(stage.model.named_parameters()), *buffers]


def global_name(stage: Stage, name: str) -> str:
    """What a tensor of the stage is called in the whole model: a tied head is the embedding."""
    return stage.tied[1] if stage.tied and name == stage.tied[0] else name


def tie(first: Stage, last: Stage) -> None:
    """Let the head of `last` be the embedding of `first`, where they are one tensor and in one process."""
    if first.tied:
        path, _, attribute = first.tied[0].rpartition(".")
        setattr(last.bare.get_submodule(path), attribute, first.bare.get_parameter(first.tied[1]))


def run_in_turn(stages: Sequence[Stage], ids_BT: torch.Tensor, **batch: Any) -> torch.Tensor:
    """What the last of `stages`, all in this process, makes of token ids: logits, or with `shift_labels` the loss."""
    x = ids_BT
    for stage in stages:
        x = stage(x, **batch)
    return x


class _Nothing(nn.Module):
    """Stands for an embedding of positions, which the first stage has added already."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(())


def _cut(model: Any, anatomy: Anatomy, layers: range, num_layers: int) -> None:
    whole, kept = model.get_submodule(anatomy.layers), nn.ModuleList()
    for number in layers:
        kept.add_module(str(number), whole[number])  # under its number in the whole, and so its name there
    model.set_submodule(anatomy.layers, kept)
    if layers.start > 0:
        for name in (anatomy.embedding, *anatomy.before):
            model.set_submodule(name, nn.Identity())
        for name in anatomy.added:
            model.set_submodule(name, _Nothing())
        for name in anatomy.factors:
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, 1.0)
    if layers.stop < num_layers:
        for name in (anatomy.head, *anatomy.after):
            model.set_submodule(name, nn.Identity())
    # Decoders look up the kind of their first layer at 0, whatever its number is.
    for name, value in per_layer_lists(model.config).items():
        setattr(model.config, name, value[layers.start : layers.stop])


def per_layer_lists(config: Any) -> dict[str, Any]:
    """The settings of `config` that hold one value for each layer."""
    num_layers = config.num_hidden_layers
    return {
        name: value
        for name, value in vars(config).items()
        if "layer" in name and isinstance(value, list | tuple) and len(value) == num_layers
    }


def _tied(model: Any, anatomy: Anatomy) -> tuple[str, str] | None:
    """(name of the head's tensor, name of the embedding's) where they are one."""
    pairs = dict(model.all_tied_weights_keys)
    head, embedding = f"{anatomy.head}.weight", f"{anatomy.embedding}.weight"
    if not pairs:
        return None
    if pairs not in ({head: embedding}, {embedding: head}):
        raise ValueError(f"{type(model).__name__} shares tensors other than head and embedding: {sorted(pairs)}")
    return head, embedding
