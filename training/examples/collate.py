"""Rows -> the tensors of a batch. B: rows, T: positions, S: positions of an encoder's input.

`labels_BT[b, t]` is the token that follows position t, or IGNORE where that has no loss: already shifted, so that no
label crosses from one packed example into the next. Rows are padded at their end. A causal model needs no mask for
that: what comes later is never seen. Packed examples are kept apart by `position_ids` alone: transformers isolates runs
that count from 0, where no mask is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from training.examples.making import Example

if TYPE_CHECKING:
    import torch

IGNORE = -100
Batch = dict[str, Any]
Row = list[Example]


def causal_batch(rows: Sequence[Row], pad_id: int, packed: bool) -> Batch:
    """`input_ids`, `shift_labels` and, with `packed`, `position_ids`, all (B, T); `weights` (B, T) where some differ
    from 1; `num_tokens`, a number, without padding.

    No rows make one of a single position without a loss: a process that has none must still take part.
    """
    import torch

    width = max((sum(len(each.ids) for each in row) for row in rows), default=1)
    shape = (max(len(rows), 1), width)
    ids_BT = np.full(shape, pad_id, np.int64)
    labels_BT = np.full(shape, IGNORE, np.int64)
    positions_BT = np.zeros(shape, np.int64)
    weights_BT = np.ones(shape, np.float32)
    for b, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.ids)
            ids_BT[b, start:end] = example.ids
            labels_BT[b, start : end - 1] = np.where(example.mask[1:], example.ids[1:], IGNORE)
            positions_BT[b, start:end] = np.arange(end - start)
            weights_BT[b, start:end] = example.weight
            start = end
        positions_BT[b, start:] = np.arange(width - start)
    batch: Batch = {"input_ids": torch.from_numpy(ids_BT), "shift_labels": torch.from_numpy(labels_BT)}
    batch["num_tokens"] = sum(len(example.ids) for row in rows for example in row)
    if packed:
        batch["position_ids"] = torch.from_numpy(positions_BT)
    if (weights_BT != 1).any():
        batch["weights"] = torch.from_numpy(weights_BT)
    return batch


def encoder_decoder_batch(rows: Sequence[Row], pad_id: int, start_id: int) -> Batch:
    """`input_ids` and `attention_mask` (B, S) of the encoder; `decoder_input_ids` and `shift_labels` (B, T): what is
    true in an example's mask. The decoder begins with `start_id`."""
    import torch

    examples = [example for row in rows for example in row]
    sources = [example.ids[~example.mask] for example in examples] or [np.array([pad_id], np.int32)]
    targets = [example.ids[example.mask] for example in examples]
    labels = _padded(targets or [np.array([IGNORE])], IGNORE)
    shifted = np.full_like(labels, pad_id)
    shifted[:, 0] = start_id
    shifted[:, 1:] = np.where(labels[:, :-1] == IGNORE, pad_id, labels[:, :-1])
    attended = _padded([np.ones(len(source), np.int64) for source in sources], 0)
    batch: Batch = {
        "input_ids": torch.from_numpy(_padded(sources, pad_id)),
        "attention_mask": torch.from_numpy(attended),
        "decoder_input_ids": torch.from_numpy(shifted),
        "shift_labels": torch.from_numpy(labels),
        "num_tokens": sum(len(example.ids) for example in examples),
    }
    if any(example.weight != 1 for example in examples):
        weights = np.array([example.weight for example in examples], np.float32)
        batch["weights"] = torch.from_numpy(np.broadcast_to(weights[:, None], labels.shape).copy())
    return batch


def with_bidirectional_prefix(rows: Sequence[Row], pad_id: int) -> Batch:
    """A causal batch whose prefixes (what comes before the first token with a loss) see themselves whole: with a mask
    (B, 1, T, T), true where a position may look."""
    import torch

    batch = causal_batch(rows, pad_id, packed=False)
    num_rows, width = batch["input_ids"].shape
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(num_rows, 1, 1, 1)
    for b, row in enumerate(rows):
        prefix = int(np.argmax(row[0].mask))
        mask[b, 0, :prefix, :prefix] = True
    batch["attention_mask"] = mask
    return batch


Collate = Callable[[Sequence[Row]], Batch]


def num_loss_tokens(batch: Batch) -> torch.Tensor:
    """How many positions of a batch have a loss."""
    count: torch.Tensor = batch["shift_labels"].ne(IGNORE).sum()
    return count


def _padded(rows: Sequence[Any], value: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    width = max(len(row) for row in rows)
    filled = np.full((len(rows), width), value, np.int64)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return filled
