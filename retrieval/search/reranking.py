"""Cross-encoders: query and passage read together, which ranks better than vectors do, and costs far more time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BATCH_PAIRS = 16


class Reranker(Protocol):
    """Scores passages for a query."""

    @property
    def name(self) -> str:
        """What `open_reranker` was given."""
        ...

    def score(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) scores in [0, 1], higher is better, in the order of `texts`."""
        ...


def open_reranker(name: str, device: str | None = None) -> Reranker:
    """A cross-encoder by directory or Hugging Face id: a sequence classifier with one output (or two, of which the
    second says "relevant"). Raises ValueError for anything else, for weights that are not safetensors, and for a device
    that this machine lacks."""
    return CrossEncoder(name, device)


class CrossEncoder:
    """See `open_reranker`."""

    def __init__(self, name: str, device: str | None = None) -> None:
        from common.devices import choose_device
        from common.models import loading_errors, resolve_model

        self.name = name
        folder = resolve_model(name)  # before torch, which takes seconds to load

        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._device = choose_device(device)
        with loading_errors(name):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self._model, loading = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
            if loading["missing_keys"] or self._model.config.num_labels > 2:
                raise ValueError("it is no cross-encoder: that is a classifier of text pairs with one or two outputs")
            if self._tokenizer.pad_token is None:
                raise ValueError("its tokenizer has no padding token, so that pairs of different length fit no batch")
        self._model.eval().to(self._device)
        positions = getattr(self._model.config, "max_position_embeddings", None) or 512
        self._max_length = int(min(self._tokenizer.model_max_length, positions, 512))
        self._one_at_a_time = threading.Lock()  # a tokenizer fails when two threads set its truncation at once

    def score(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Reranker`. Of a pair that is too long the longer of the two is cut, as a rule the passage."""
        import torch

        from retrieval.encoding.sentence_model import clean

        query, *texts = clean([query, *texts], lower_case=False)
        scores = np.zeros(len(texts), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        with self._one_at_a_time, torch.inference_mode():
            for start in range(0, len(order), BATCH_PAIRS):
                batch = order[start : start + BATCH_PAIRS]
                inputs = self._tokenizer(
                    [query] * len(batch),
                    [texts[i] for i in batch],
                    truncation="longest_first",
                    max_length=self._max_length,
                    padding=True,
                    return_tensors="pt",
                ).to(self._device)
                logits_BC = self._model(**inputs).logits
                relevant_B = logits_BC.sigmoid()[:, 0] if logits_BC.shape[1] == 1 else logits_BC.softmax(-1)[:, 1]
                scores[batch] = relevant_B.cpu().numpy()
        return scores
