"""Log-probabilities of answers under a model, and under the model that it started from.

B: answers, T: positions, N: positions with a label.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from training.examples.answers import answers_batch
from training.examples.collate import IGNORE, Batch
from training.heads import inner_model
from training.objective import head_only_at

if TYPE_CHECKING:
    import torch

    from training.config.schema import Config
    from training.examples.preparing import Prepared

CHUNK = 512  # labels
_CHANGES_LOGITS: weakref.WeakSet[Any] = weakref.WeakSet()  # models that scale or cap what their last layer gives


def token_log_probs(model: Any, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p of each label (N), its row (N)), in float32; logits are only made where there is a label, and of
    CHUNK labels at a time.

    Where there is none, N is 0 and the gradient zero.
    """
    keep_BT = labels_BT.ne(IGNORE)
    empty = not bool(keep_BT.any())
    if empty:
        keep_BT = keep_BT.clone()
        keep_BT[0, 0] = True
    labels_N = labels_BT[keep_BT].clamp(min=0)
    with head_only_at(model, keep_BT), _log_probs_for_logits(model, labels_N) as made:
        logits_NV = model(input_ids=ids_BT, use_cache=False).logits
    if made is None:
        logp_N = _log_probs(logits_NV, labels_N)
    elif made and made[0] is logits_NV:
        logp_N = made[0][:, 0]
    else:
        _CHANGES_LOGITS.add(inner_model(model))
        return token_log_probs(model, ids_BT, labels_BT)
    rows_N = keep_BT.nonzero()[:, 0]
    return (logp_N[:0], rows_N[:0]) if empty else (logp_N, rows_N)


def _log_probs(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import cross_entropy

    return -cross_entropy(logits_NV.float(), labels_N, reduction="none")


@contextmanager
def _log_probs_for_logits(model: Any, labels_N: torch.Tensor) -> Iterator[list[torch.Tensor] | None]:
    """Let the model's last layer give log-probabilities (N, 1) of the labels in place of logits (N, V), made and, for
    the gradient, made anew a chunk at a time: logits of all labels at once would be the most that a step keeps.

    What it gave is in the list. Models that do something to their logits afterwards do it to these: their `logits` are
    then another tensor, and they are run without, from then on; None says so.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    inner = inner_model(model)
    if inner in _CHANGES_LOGITS or len(labels_N) <= CHUNK or hasattr(model, "_orig_mod"):  # torch.compile: all in one
        yield None
        return
    head = inner.get_output_embeddings()
    to_logits, hooked = head.forward, vars(head).get("forward")  # accelerate's hooks stand there
    made: list[torch.Tensor] = []

    def piece(hidden_CH: torch.Tensor, labels_C: torch.Tensor) -> torch.Tensor:
        return _log_probs(to_logits(hidden_CH), labels_C)

    def to_log_probs(hidden_NH: torch.Tensor) -> torch.Tensor:
        parts = zip(hidden_NH.split(CHUNK), labels_N.split(CHUNK), strict=True)
        made.append(torch.cat([checkpoint(piece, *part, use_reentrant=False) for part in parts])[:, None])
        return made[0]

    head.forward = to_log_probs
    try:
        yield made
    finally:
        del head.forward
        if hooked is not None:
            head.forward = hooked


def summed(values_N: torch.Tensor, rows_N: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Sums (B) over the tokens of each row."""
    return values_N.new_zeros(num_rows).index_add(0, rows_N, values_N)


def answer_log_probs(model: Any, batch: Batch, prefix: str = "") -> torch.Tensor:
    """log p(answer | prompt), (B): the sum over its tokens. `prefix` names other inputs of the batch, as `kl_`."""
    labels_BT = batch[f"{prefix}shift_labels"]
    logp_N, rows_N = token_log_probs(model, batch[f"{prefix}input_ids"], labels_BT)
    return summed(logp_N, rows_N, len(batch["rows"]))


def answer_lengths(batch: Batch) -> torch.Tensor:
    """Tokens of each answer (B), at least 1."""
    lengths: torch.Tensor = batch["shift_labels"].ne(IGNORE).sum(1)[: len(batch["rows"])].clamp(min=1)
    return lengths


def reference_model(config: Config) -> Callable[[Any], AbstractContextManager[Any]]:
    """What gives, for the model in training, the one it started from: itself with the adapter switched off, where that
    was fresh; else a frozen copy, opened anew, which a resumed run needs as well."""
    from training.models import is_adapter, load

    if config.peft.name and not is_adapter(config.model.name):
        return _adapter_off
    copy = load(config).model.eval().requires_grad_(False)

    def frozen(model: Any) -> AbstractContextManager[Any]:
        return nullcontext(copy.to(next(model.parameters()).device))

    return frozen


@contextmanager
def _adapter_off(model: Any) -> Iterator[Any]:
    inner = model
    while hasattr(inner, "module"):  # DistributedDataParallel
        inner = inner.module
    training = inner.training
    inner.eval()
    try:
        with inner.disable_adapter():
            yield inner
    finally:
        inner.train(training)


def precompute(config: Config, data: Prepared, pad_id: int) -> None:
    """Add log p(answer | prompt) under the untrained model to the values of all examples, as their last column; the
    model is not kept. Deterministic: a resumed run does it again."""
    import torch

    from common.devices import choose_device
    from training.models import load

    model = load(config).model.eval()
    if not getattr(model, "is_quantized", False):
        model.to(choose_device(config.model.device))
    size = config.trainer.batch_size
    for store in data.stores:
        found = []
        for start in range(0, len(store), size):
            rows = [store[number] for number in range(start, min(start + size, len(store)))]
            batch = answers_batch(rows, pad_id)
            batch = {key: each.to(model.device) if hasattr(each, "to") else each for key, each in batch.items()}
            with torch.no_grad():
                found.append(answer_log_probs(model, batch).cpu().double().numpy())
        store.values = np.column_stack([store.values, np.concatenate(found)])
