"""How large the parts of a model are: counted on the model itself, built without memory for weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from training.estimate.tracing import adapt, config_of, is_quantised


@dataclass(frozen=True)
class Size:
    """Numbers of parameters: all, those that are `trained`, those that model.quantize would pack (`packable`), the
    `largest` single tensor; and operations a token, forward and backward, without attention."""

    parameters: int = 0
    trained: int = 0
    packable: int = 0
    largest: int = 0
    operations: float = 0.0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.parameters + other.parameters,
            self.trained + other.trained,
            self.packable + other.packable,
            max(self.largest, other.largest),
            self.operations + other.operations,
        )


@dataclass(frozen=True)
class Sizes:
    """Of each layer; of what stands `before` the layers and `after` them. `tied`: head and embedding are one, and count
    as `before`. `pair_operations`: operations for a token and a position it attends to, in one layer: 12 H Q (heads by
    their dimensions; Chowdhery et al. 2022, appendix B)."""

    layers: tuple[Size, ...]
    before: Size
    after: Size
    head: Size
    tied: bool
    pair_operations: float

    @property
    def whole(self) -> Size:
        """The whole model."""
        return self.of(range(len(self.layers)))

    def of(self, layers: range) -> Size:
        """A stage of these layers, with the ends that belong to it."""
        size = sum((self.layers[number] for number in layers), Size())
        if layers.start == 0:
            size += self.before
        if layers.stop == len(self.layers):
            size += self.after
            shared = self.tied and layers.start == 0
            size += Size(operations=self.head.operations) if shared else self.head
        return size

    def operations(self, layers: range, tokens: int, row: int) -> float:
        """Floating-point operations of `tokens` in rows of `row`, forward and backward."""
        return self.of(layers).operations * tokens + self.pair_operations * len(layers) * tokens * row


@cache
def sizes(config: str, peft: str | None = None) -> Sizes:
    """Of the model that `config` (JSON) describes, under the adapter `peft` (JSON of PeftConfig) if there is one.

    Raises ValueError for models whose layers are not found (see training/pipeline/anatomy.py).
    """
    import torch

    from training.pipeline.anatomy import anatomy_of
    from training.pipeline.stages import build_stage

    settings = config_of(config)
    num_layers = settings.num_hidden_layers
    stage = build_stage(settings, range(num_layers), torch.float32)
    anatomy = anatomy_of(stage.bare)
    adapt(stage, peft)
    bare = stage.bare
    layers, head = bare.get_submodule(anatomy.layers), bare.get_output_embeddings()
    counted = tuple(_count(stage, layer) for layer in layers)
    after = sum((_count(stage, bare.get_submodule(name)) for name in anatomy.after), Size())
    end = _count(stage, head)
    parts = (*layers, head, *(bare.get_submodule(name) for name in anatomy.after))
    inside = {id(each) for part in parts for each in part.parameters()}
    before = Size()
    for each in bare.parameters():
        # The embedding counts here, also where it is the head's tensor.
        if id(each) not in inside or (stage.tied and each is bare.get_input_embeddings().weight):
            before += Size(each.numel(), each.numel() if each.requires_grad else 0, 0, each.numel())
    heads = settings.num_attention_heads
    head_size = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    return Sizes(counted, before, after, end, stage.tied is not None, 12 * heads * head_size)


def _count(stage: Any, module: Any) -> Size:
    """A part of the model. A parameter that is trained takes 6 operations a token (2 forward, 2 for the gradient of
    its input, 2 for its own), a frozen one 4."""
    size = Size()
    for name, inner in module.named_modules():
        for each in inner.parameters(recurse=False):
            count = each.numel()
            operations = (6 if each.requires_grad else 4) * count if each.ndim > 1 else 0
            packed = count if is_quantised(stage, inner) and "lora_" not in name else 0
            size += Size(count, count if each.requires_grad else 0, packed, count, operations)
    return size
