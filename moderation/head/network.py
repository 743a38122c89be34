"""The same head as a torch module, to train it; `moderation.head.model` says what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from moderation.head.model import VECTOR_SCALE, Array


@dataclass(frozen=True)
class Known:
    """The known features of many texts: text i has rows `ids[starts[i]:starts[i + 1]]` of the table, each weighing
    `scale[i]`."""

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    scale: NDArray[np.float32]


class Network(nn.Module):
    """dim numbers of the vector, num_known features -> num_labels logits."""

    def __init__(self, dim: int, num_known: int, bag: int, hidden: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(num_known, bag, mode="sum")
        self.lexical = nn.EmbeddingBag(num_known, num_labels, mode="sum")
        self.first, self.second = nn.Linear(dim + bag, hidden), nn.Linear(hidden, num_labels)
        self.dropout = dropout
        nn.init.normal_(self.bag.weight, std=0.05)
        nn.init.zeros_(self.lexical.weight)

    def forward(
        self, vectors_ND: torch.Tensor, ids: torch.Tensor, starts: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        bag_NB = self.bag(ids, starts, per_sample_weights=scales)
        if self.training:  # noise, and at times one branch alone: neither may lean on the other
            vectors_ND = functional.normalize(vectors_ND + torch.randn_like(vectors_ND) * 0.015, dim=1)
            draw = torch.rand(len(vectors_ND), 1)
            vectors_ND, bag_NB = vectors_ND * (draw > 0.1), bag_NB * (draw < 0.9)
        inputs = torch.cat([vectors_ND * VECTOR_SCALE, bag_NB], 1)
        hidden = functional.dropout(
            functional.gelu(self.first(inputs), approximate="tanh"), self.dropout, self.training
        )
        logits: torch.Tensor = self.second(hidden) + self.lexical(ids, starts, per_sample_weights=scales)
        return logits


@dataclass(frozen=True)
class Fit:
    """Settings of `fit`; `forget` is the share of known features that a text loses in a step."""

    seed: int = 1
    bag: int = 12
    hidden: int = 96
    epochs: int = 14
    batch: int = 256
    learning_rate: float = 2e-3
    decay: float = 0.02
    dropout: float = 0.3
    forget: float = 0.2
    smoothing: float = 0.02


def fit(
    settings: Fit,
    vectors_ND: Array,
    known: Known,
    num_known: int,
    truth_NL: Array,
    weights_N: Array,
    progress: Callable[[str], None],
) -> dict[str, Array]:
    """Train on rows drawn by their weight; unknown labels (NaN) have no part in the loss.

    Returns float32 weights by the names of model.TENSORS, scales and calibration left out. The same inputs give the
    same weights on the same machine: it computes in one thread, whatever torch is set to.
    """
    draw = np.random.default_rng(settings.seed)
    chance = weights_N / weights_N.sum()
    steps = max(1, settings.epochs * len(vectors_ND) // settings.batch)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(settings.seed)
        network = Network(
            vectors_ND.shape[1], num_known, settings.bag, settings.hidden, truth_NL.shape[1], settings.dropout
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=steps + 1, pct_start=0.1
        )
        network.train()
        for step in range(steps):
            chosen = draw.choice(len(vectors_ND), settings.batch, p=chance)
            loss = _loss(network, settings, vectors_ND[chosen], _take(known, chosen), truth_NL[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % max(1, steps // 10) == 0:
                progress(f"step {step + 1} of {steps}, loss {loss.item():.4f}")
    names = {"bag": "bag.weight", "lexical": "lexical.weight", "w1": "first.weight", "b1": "first.bias"}
    names |= {"w2": "second.weight", "b2": "second.bias"}
    state = network.state_dict()
    return {name: state[theirs].numpy().copy() for name, theirs in names.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in several threads differ in their last bits, and small steps gain nothing from them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _loss(
    network: Network, settings: Fit, vectors: Array, features: tuple[Array, Array, Array], truth_NL: Array
) -> torch.Tensor:
    ids, starts, scales = map(torch.from_numpy, features)
    scales = scales * (torch.rand_like(scales) > settings.forget) / (1 - settings.forget)
    logits = network(torch.from_numpy(vectors), ids, starts, scales)
    target = torch.from_numpy(truth_NL)
    is_known = ~target.isnan()
    soft = target.nan_to_num() * (1 - 2 * settings.smoothing) + settings.smoothing
    each = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    return (each * is_known).sum(1).mean()


def _take(known: Known, chosen: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """The features of some texts, in the form of EmbeddingBag: ids, where each text starts, a weight for each id."""
    counts = known.starts[chosen + 1] - known.starts[chosen]
    ids = np.concatenate([known.ids[known.starts[i] : known.starts[i + 1]] for i in chosen])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    return ids, starts, np.repeat(known.scale[chosen], counts)
