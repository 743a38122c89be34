"""Sentence encoders on torch: a Hugging Face or sentence-transformers model without importing sentence_transformers.

Only safetensors weights are loaded, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from common.devices import choose_device
from common.models import loading_errors, resolve_model
from retrieval.encoding.sentence_model import clean, fingerprint_of, read_recipe, stable_name, weight_files

# Tokens in a batch, padding included. On 2 CPU cores batches of like length of this size were 1.25 times as fast as
# batches of 32 texts, for passages of much the same length. 1,024 and 4,096 did as well; on cores shared with other
# work, 1,024 took twice the CPU time, the threads waiting for each other. A GPU wants more at a time.
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 32768

_FALLBACK_MAX_LENGTH = 512


class TorchEncoder:
    """See `open_encoder`. `dim`, `fingerprint`, `max_length` as in `Encoder`; `name` ends in ':float32', so that it
    names this encoder also where an int8 one is exported later. `recipe`, `tokenizer`, `model`: what was loaded."""

    def __init__(self, name: str, device: str | None = None) -> None:
        self._device = choose_device(device)
        folder = Path(resolve_model(name))
        self.name = f"{stable_name(name, folder)}:float32"
        with loading_errors(name), _quiet_loading():
            self.recipe = read_recipe(folder)
            source = folder / self.recipe.subfolder
            self.weights = weight_files(source)
            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self.model, loading = AutoModel.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
            _check(self.model.config, loading["missing_keys"])
            self.model.eval().to(self._device)
        self.dim = int(self.model.config.hidden_size)
        self.max_length = self._find_max_length()
        self.fingerprint = fingerprint_of(self.weights, self.recipe, self.max_length)
        self._one_at_a_time = threading.Lock()  # a tokenizer fails when two threads set its truncation at once

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32 unit rows in the order of `texts`; the same whatever else is in `texts`, up to rounding."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        with self._one_at_a_time, torch.inference_mode():
            features = self.tokenize(texts)
            for batch in _batches([len(feature["input_ids"]) for feature in features], self._batch_tokens()):
                vectors[batch] = self._encode_batch([features[i] for i in batch])
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See `Encoder`."""
        if not texts:
            return []
        cleaned = clean(texts, self.recipe.lower_case)
        with self._one_at_a_time:
            columns = self.tokenizer(cleaned, add_special_tokens=False, truncation=False, verbose=False)
        return [len(ids) for ids in columns["input_ids"]]

    def tokenize(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """For each text its token ids and what else the model takes, cut to `max_length`, never empty."""
        if not texts:
            return []
        cleaned = clean(texts, self.recipe.lower_case)
        columns = self.tokenizer(cleaned, truncation=True, max_length=self.max_length, return_attention_mask=True)
        rows = [{key: column[i] for key, column in columns.items()} for i in range(len(cleaned))]
        nothing = {key: [1 if key == "attention_mask" else self._padding(key)] for key in columns}
        return [row if row["input_ids"] else nothing for row in rows]

    def _encode_batch(self, features: list[dict[str, list[int]]]) -> NDArray[np.float32]:
        length = max(len(feature["input_ids"]) for feature in features)
        inputs = {
            key: torch.tensor(
                [feature[key] + [self._padding(key)] * (length - len(feature[key])) for feature in features],
                device=self._device,
            )
            for key in features[0]
        }
        hidden_BTD = self.model(**inputs).last_hidden_state
        if self.recipe.pooling == "cls":
            pooled_BD = hidden_BTD[:, 0]
        else:
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
            pooled_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled_BD, dim=-1).float().cpu().numpy()
        return vectors

    def _padding(self, key: str) -> int:
        return (self.tokenizer.pad_token_id or 0) if key == "input_ids" else 0

    def _batch_tokens(self) -> int:
        return BATCH_TOKENS_CPU if self._device.type == "cpu" else BATCH_TOKENS_GPU

    def _find_max_length(self) -> int:
        """The recipe's limit, the tokenizer's and the model's: the lowest that is known."""
        limits = [self.recipe.max_length, self.tokenizer.model_max_length]
        limits.append(getattr(self.model.config, "max_position_embeddings", None))
        # RoBERTa and its kin count positions from the padding index up: 514 rows serve 512 tokens.
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Embedding) and "position" in name and module.padding_idx is not None:
                limits.append(module.num_embeddings - module.padding_idx - 1)
        # A tokenizer without a limit says 1e30.
        known = [int(limit) for limit in limits if limit and 0 < limit < 1_000_000]
        return min(known, default=_FALLBACK_MAX_LENGTH)


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, of at most `max_tokens` tokens padded (one text at least)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bar of transformers' own: a sentence encoder loads in a second, and output may be piped."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _check(config: Any, missing: Sequence[str]) -> None:
    """Refuse a model that would load and give meaningless vectors."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"'{config.model_type}' is an encoder-decoder, not a sentence encoder")
    # A pooler is not used here, and many encoders are saved without one.
    if absent := sorted(key for key in missing if "pooler" not in key):
        raise ValueError(f"its weights lack {absent[0]} and {len(absent) - 1} more that {config.model_type} needs")
