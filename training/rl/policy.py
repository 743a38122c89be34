"""The policy's numbers for tokens that were sampled: log-probabilities, entropies, values.

The policy is softmax(logits / temperature), over those tokens that could be sampled then: with top-k or top-p the sets
are remembered and hold for the old policy, the new one and the reference alike (as in DeepSeek-V3.2, section 3.1), so
that ratios begin at 1 and all three are distributions over the same tokens.

N: tokens of all answers of a batch, in the order of its rows; V: vocabulary; H: features.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from training.checkpoints import TRAINING
from training.examples.collate import IGNORE, Batch
from training.heads import inner_model
from training.objective import head_only_at

if TYPE_CHECKING:
    import torch

INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")
VALUE = "value"  # the value head's file in a checkpoint's folder for training
HEAD = "value_head"


class TokenNumbers(NamedTuple):
    """Of each sampled token (N), float32. Values are those before the token is chosen, zeros without a value head."""

    logp: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor


def token_numbers(model: Any, batch: Batch, temperature: float) -> TokenNumbers:
    """One forward pass; logits are made for sampled tokens alone."""
    keep_BT = batch["shift_labels"].ne(IGNORE)
    inner = inner_model(model)
    value_head = getattr(inner, HEAD, None)
    seen: list[torch.Tensor] = []
    with head_only_at(model, keep_BT):
        # After that hook: it sees the states of the kept positions alone.
        handle = inner.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            logits_NV = model(**{key: batch[key] for key in INPUTS if key in batch}, use_cache=False).logits
        finally:
            handle.remove()
    logp_N, entropy_N = chosen_numbers(
        logits_NV, batch["shift_labels"][keep_BT], temperature, batch.get("kept_rows"), batch.get("kept_ids")
    )
    values_N = logp_N.new_zeros(len(logp_N)) if value_head is None else value_head(seen[-1].float())[:, 0].float()
    return TokenNumbers(logp_N, entropy_N, values_N)


def chosen_numbers(
    logits_NV: torch.Tensor,
    ids_N: torch.Tensor,
    temperature: float,
    kept_rows: torch.Tensor | None = None,
    kept_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability of each id (N), entropy in nats (N)). `kept_rows` and `kept_ids`: the tokens that could be
    chosen, as pairs of a row and an id; without them all."""
    import torch

    logits_NV = logits_NV.float() / temperature
    finite_NV = logits_NV
    if kept_rows is not None and kept_ids is not None:
        kept_NV = torch.zeros_like(logits_NV, dtype=torch.bool)
        kept_NV[kept_rows, kept_ids] = True
        logits_NV, finite_NV = logits_NV.masked_fill(~kept_NV, -torch.inf), logits_NV.masked_fill(~kept_NV, 0)
    total_N = logits_NV.logsumexp(1)
    logp_N = logits_NV.gather(1, ids_N[:, None])[:, 0] - total_N
    entropy_N = total_N - (logits_NV.softmax(1) * finite_NV).sum(1)
    return logp_N, entropy_N


def attach_value_head(model: Any, checkpoint: Path | None) -> None:
    """Give the policy a value for each of its states: a linear layer on what its last layer sees, zero at first, so
    that advantages are at first the returns. It is trained with the policy, and kept beside the model, not in it."""
    import torch

    from training.state_files import load_tree

    inner = inner_model(model)
    output = inner.get_output_embeddings()
    head = torch.nn.Linear(output.weight.shape[1], 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    if checkpoint is not None:
        head.load_state_dict(load_tree(checkpoint / TRAINING, VALUE))
    setattr(inner, HEAD, head.to(output.weight.device))
    inner._keys_to_ignore_on_save = [*(inner._keys_to_ignore_on_save or []), f"{HEAD}.weight", f"{HEAD}.bias"]


def save_value_head(model: Any, folder: Path) -> None:
    """Write the value head, where there is one, into a checkpoint's folder."""
    from training.state_files import save_tree

    if (head := getattr(inner_model(model), HEAD, None)) is not None:
        save_tree(folder / TRAINING, VALUE, dict(head.state_dict()))


def without_dropout(model: Any) -> None:
    """Switch dropout off: with it the policy would be another at each look, and ratios would not begin at 1."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):  # as attention_dropout, which has no module of its own
                setattr(module, name, 0.0)


def kept_pairs(kept: list[list[np.ndarray[Any, np.dtype[np.int32]]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept tokens of each token of each answer as (rows, ids): rows are counted over all tokens of the batch."""
    import torch

    sets = [each for answer in kept for each in answer]
    rows = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
    ids = np.concatenate(sets) if sets else np.zeros(0, np.int32)
    return torch.from_numpy(rows), torch.from_numpy(ids.astype(np.int64))
