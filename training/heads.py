"""Scores of whole sequences from transformers' models for sequence classification.

B: sequences, T: positions, H: features, L: labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from training.examples.collate import IGNORE, Batch

if TYPE_CHECKING:
    import torch

    from training.examples.making import Example


def attention_mask(examples: Sequence[Example], ids_BT: torch.Tensor) -> torch.Tensor:
    """1 where a position of `ids_BT` is of an example, 0 where it fills up; a batch of none attends to its filling."""
    import torch

    lengths_B = torch.tensor([len(each.ids) for each in examples] or [1])
    mask_BT: torch.Tensor = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
    return mask_BT


def inner_model(model: Any) -> Any:
    """The model of transformers within DDP and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_pooling(model: Any, pooling: str, with_language: bool) -> None:
    """ValueError where this architecture cannot be pooled so, or has no language head to train beside."""
    inner = inner_model(model)
    if (pooling != "eos" or with_language) and not hasattr(inner, "score"):
        raise ValueError(
            f"method.pooling={pooling} and method.lm_coeff are for decoders; {type(inner).__name__} pools in its own "
            "way: leave method.pooling=eos and method.lm_coeff=0"
        )


def attach_language_head(model: Any, source: str) -> None:
    """Give `model`, where its input and output embeddings are not one, the output layer of the language model at
    `source`, under the name that it has there, so that it is saved with the rest and found again.

    `config.output_layer` says its name. Under an adapter it is not trained.
    """
    from transformers import AutoModelForCausalLM

    from training.models import quiet_about_head

    inner = inner_model(model)
    if inner.config.tie_word_embeddings:
        return
    dtype = inner.get_input_embeddings().weight.dtype
    with quiet_about_head():
        language: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
    output = language.get_output_embeddings()
    name = next(name for name, module in language.named_modules() if module is output)
    if inner is not model:
        output.requires_grad_(False)
    setattr(inner, name, output.to(inner.device))
    inner.config.output_layer = name


def sequence_scores(model: Any, batch: Batch, pooling: str = "eos") -> tuple[torch.Tensor, torch.Tensor | None]:
    """(scores (B, L), the summed negative log-likelihood of `shift_labels`, where the batch has them).

    Pooling happens before the head, by a hook: the model is called as anyone would call it.
    """
    from training.objective import negative_log_likelihood

    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    inner = inner_model(model)
    seen: list[torch.Tensor] = []

    def pool(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_BTH = args[0][:, -ids_BT.shape[1] :]  # virtual tokens of a prompt adapter stand before
        seen.append(hidden_BTH)
        return (pooled(hidden_BTH, mask_BT, pooling)[:, None].expand(args[0].shape), *args[1:])

    hooks = [inner.score.register_forward_pre_hook(pool)] if hasattr(inner, "score") else []
    more = {} if not hooks else {"use_cache": False}
    try:
        scores_BL = model(input_ids=ids_BT, attention_mask=mask_BT, **more).logits
    finally:
        for hook in hooks:
            hook.remove()
    labels_BT = batch.get("shift_labels")
    if labels_BT is None:
        return scores_BL, None
    keep_BT = labels_BT.ne(IGNORE)
    output = getattr(inner.config, "output_layer", None)
    head = inner.get_submodule(output) if output else None
    hidden_NH = seen[-1][keep_BT]
    logits_NV = head(hidden_NH) if head is not None else hidden_NH @ inner.get_input_embeddings().weight.T
    return scores_BL, negative_log_likelihood(logits_NV, labels_BT[keep_BT])


def pooled(hidden_BTH: torch.Tensor, mask_BT: torch.Tensor, pooling: str) -> torch.Tensor:
    """(B, H): the state of the last position of each sequence (`eos`), of the one before (`last`), the largest value of
    each feature (`max`), or the mean (`average`); of what `mask_BT` holds alone."""
    import torch

    mask_BT1 = mask_BT[:, :, None].bool()
    if pooling == "max":
        return hidden_BTH.masked_fill(~mask_BT1, -torch.inf).amax(1)
    if pooling == "average":
        return (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
    place_B = (mask_BT.sum(1) - (1 if pooling == "eos" else 2)).clamp(min=0)
    return hidden_BTH[torch.arange(len(hidden_BTH), device=hidden_BTH.device), place_B]
