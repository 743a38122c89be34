"""What in a decoder stands before its layers, and what after: all that cutting it into stages needs to know.

Most models are found out: one list of layers, an embedding before them, a norm and a head after them. What else they
have needs a line in `MORE`. `trial.py` tries a cut model against the whole before anything is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
# Architecture -> parts of its decoder: `before` the layers (they map what comes in), `added` to what comes in, a
# `factors` that it is multiplied by, `after` the layers besides the norm.
MORE: dict[str, dict[str, tuple[str, ...]]] = {
    "bloom": {"before": ("word_embeddings_layernorm",)},
    "gpt2": {"added": ("wpe",)},
    "gpt_bigcode": {"added": ("wpe",)},
    "gpt_neo": {"added": ("wpe",)},
    "granite": {"factors": ("embedding_multiplier",)},
    "opt": {"before": ("project_in",), "added": ("embed_positions",), "after": ("project_out",)},
}


@dataclass(frozen=True)
class Anatomy:
    """Names within the whole model."""

    layers: str
    embedding: str
    head: str
    before: tuple[str, ...]
    added: tuple[str, ...]
    factors: tuple[str, ...]
    after: tuple[str, ...]


def anatomy_of(model: Any) -> Anatomy:
    """The parts of a causal language model. Raises ValueError for a part whose place is not known."""
    from torch import nn

    decoder = model.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    prefix = names[id(decoder)]
    children = {name: child for name, child in decoder.named_children() if child is not None}
    lists = [name for name, child in children.items() if isinstance(child, nn.ModuleList)]
    kind = model.config.model_type
    if len(lists) != 1 or len(children[lists[0]]) != model.config.num_hidden_layers:
        raise ValueError(f"a model of type {kind} cannot be cut into stages: it has no single list of layers")
    more = MORE.get(kind, {})
    found = {
        "before": [*more.get("before", ()), *(n for n, c in children.items() if isinstance(c, nn.Dropout))],
        "added": list(more.get("added", ())),
        "after": [*more.get("after", ()), *(name for name in NORMS if name in children)],
    }
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    known = {lists[0], *(name for each in found.values() for name in each)}
    for name, child in children.items():
        if child is not embedding and name not in known and next(child.parameters(), None) is not None:
            raise ValueError(
                f"a model of type {kind} cannot be cut into stages: it is not known whether its '{name}' belongs "
                "before or after the layers; say so in MORE of training/pipeline/anatomy.py"
            )
    placed = {key: tuple(f"{prefix}.{name}" for name in each if name in children) for key, each in found.items()}
    return Anatomy(
        layers=f"{prefix}.{lists[0]}",
        embedding=names[id(embedding)],
        head=names[id(head)],
        factors=tuple(f"{prefix}.{name}" for name in more.get("factors", ())),
        **placed,
    )
