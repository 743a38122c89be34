"""Log-probabilities a chunk at a time: those of the whole logits, with their gradients, whatever a model does to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from training.log_probs import CHUNK, summed, token_log_probs

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
B, T = 4, 256


def made(kind: str) -> Any:
    """Models whose logits are used as they are, capped, and scaled."""
    import transformers

    torch.manual_seed(0)
    more = {"num_key_value_heads": 2}
    if kind == "gemma2":
        more |= {"head_dim": 8, "final_logit_softcapping": 5.0}
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, **more)).train()
    if kind == "granite":
        more |= {"logits_scaling": 4.0}
        return transformers.GraniteForCausalLM(transformers.GraniteConfig(**SIZES, **more)).train()
    tied = {"tie_word_embeddings": kind == "tied"}
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **more, **tied)).train()
    if kind != "lora":
        return model
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and labels for the second half of each row and all of the last."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 300, (B, T), generator=generator)
    labels = torch.randint(0, 300, (B, T), generator=generator)
    labels[:-1, : T // 2] = -100
    return ids, labels


def expected(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """From the logits of all positions."""
    logits = model(input_ids=ids, use_cache=False).logits
    found = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return found[labels != -100]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", ["llama", "tied", "gemma2", "granite", "lora"])
def test_values_and_gradients_are_those_of_the_whole_logits(kind: str) -> None:
    model, (ids, labels) = made(kind), batch()
    whole = copy.deepcopy(model)
    weights = torch.linspace(-1, 2, int((labels != -100).sum()))
    assert len(weights) > CHUNK
    for _ in range(2):  # a model that changes its logits is known the second time
        model.zero_grad()
        found, rows = token_log_probs(model, ids, labels)
        (found * weights).sum().backward()
    values = expected(whole, ids, labels)
    (values * weights).sum().backward()
    torch.testing.assert_close(found, values, atol=1e-5, rtol=1e-5)
    assert rows.tolist() == (labels != -100).nonzero()[:, 0].tolist()
    for (name, mine), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_without_gradients_and_afterwards_the_model_is_as_it_was() -> None:
    model, (ids, labels) = made("llama"), batch()
    before = model(input_ids=ids).logits
    with torch.no_grad():
        found, rows = token_log_probs(model, ids, labels)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected(model, ids, labels), atol=1e-5, rtol=1e-5)
    assert "forward" not in vars(model.lm_head)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert summed(found, rows, B).tolist() == pytest.approx([float(found[rows == row].sum()) for row in range(B)])


def test_an_error_on_the_way_leaves_the_model_as_it_was() -> None:
    model, (ids, labels) = made("llama"), batch()
    with pytest.raises(IndexError):
        token_log_probs(model, ids + 1000, labels)
    assert "forward" not in vars(model.lm_head)


def test_logits_of_all_labels_are_never_there_at_once() -> None:
    """Of any tensor that is made, forward or backward, none has a row of the vocabulary for each label."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for each in found if isinstance(found, tuple | list) else (found,):
                if isinstance(each, torch.Tensor) and each.shape[-1:] == (300,):
                    largest = max(largest, each.numel() // 300)
            return found

    model, (ids, labels) = made("llama"), batch()
    with Watch():
        token_log_probs(model, ids, labels)[0].sum().backward()
    assert 0 < largest <= CHUNK


def test_no_label_at_all_is_nothing_with_a_gradient_of_zero() -> None:
    model, (ids, labels) = made("llama"), batch()
    found, rows = token_log_probs(model, ids, torch.full_like(labels, -100))
    assert (found.shape, rows.shape) == ((0,), (0,))
    found.sum().backward()
    assert all(float(each.grad.abs().max()) == 0 for each in model.parameters() if each.grad is not None)
