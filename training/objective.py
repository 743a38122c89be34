"""What a method computes of a batch; and the loss of language models, computed only where it is asked for.

N: positions with a loss; V: vocabulary; K: parts of a loss, each a mean over things of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from training.examples.collate import IGNORE, Batch, num_loss_tokens

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Outcome(NamedTuple):
    """`sums` () or (K): summed losses of a batch; `records` (n, c): numbers that metrics are made of, a line for each
    thing that is judged."""

    sums: torch.Tensor
    records: torch.Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """`loss` gives sums, which the trainer divides by `count`, () or (K) of a batch, over the whole step, and adds up:
    so neither accumulation nor the number of processes changes a gradient. `metrics(loss, counts (K), records (n, c))`
    is what an evaluation tells beside its loss."""

    loss: Callable[[Any, Batch], Outcome]
    count: Callable[[Batch], torch.Tensor]
    metrics: Callable[[float, list[float], NDArray[np.float64]], dict[str, float]]


def language_model_objective() -> Objective:
    """The mean over tokens; evaluation tells its exponential, the perplexity, and how many tokens there were."""

    def loss(model: Any, batch: Batch) -> Outcome:
        return Outcome(language_model_loss(model, batch))

    def metrics(loss: float, counts: list[float], _: NDArray[np.float64]) -> dict[str, float]:
        return {"perplexity": math.exp(min(loss, 700.0)), "tokens": counts[0]}

    return Objective(loss, num_loss_tokens, metrics)


def negative_log_likelihood(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, weights_N: torch.Tensor | None = None
) -> torch.Tensor:
    """sum_n w_n * -log softmax(logits_n)[label_n], in float32 (Bengio et al. 2003, eq. 3.1). Lower is better.

    A sum and not a mean: the caller divides by the tokens of the whole step, so that neither accumulation nor the
    number of processes changes the gradient.
    """
    from torch.nn.functional import cross_entropy

    if weights_N is None:
        return cross_entropy(logits_NV.float(), labels_N, reduction="sum")
    return (weights_N * cross_entropy(logits_NV.float(), labels_N, reduction="none")).sum()


def language_model_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The summed negative log-likelihood of a batch (see training/examples/collate.py); 0 where nothing has a loss."""
    inputs = {key: value for key, value in batch.items() if key not in ("shift_labels", "weights")}
    keep_BT = batch["shift_labels"].ne(IGNORE)
    empty = not bool(keep_BT.any())
    if empty:
        keep_BT = keep_BT.clone()
        keep_BT[0, 0] = True  # every process must compute gradients, if only zeros
    weights = batch.get("weights")
    with head_only_at(model, keep_BT):
        logits_NV = model(**inputs, use_cache=False).logits
    if empty:
        nothing: torch.Tensor = logits_NV.float().sum() * 0.0
        return nothing
    labels_N = batch["shift_labels"][keep_BT]
    return negative_log_likelihood(logits_NV, labels_N, None if weights is None else weights[keep_BT])


@contextmanager
def head_only_at(model: Any, keep_BT: torch.Tensor) -> Iterator[None]:
    """Let the model's last layer, from hidden states to logits, see only the positions that are kept.

    That layer is a fifth of a small model's work and most of its memory, and a prompt's logits are never looked at.
    Whatever a model does to its logits afterwards (scaling, soft caps) it does to each position alone.
    """
    inner = model
    while hasattr(inner, "module"):  # DistributedDataParallel
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    shape = keep_BT.shape

    def select(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0]
        if hidden.shape[1] > shape[1]:  # virtual tokens of a prompt adapter stand before
            hidden = hidden[:, -shape[1] :]
        return (hidden[keep_BT], *args[1:])

    handle = inner.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
