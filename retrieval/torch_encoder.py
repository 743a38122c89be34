"""Sentence encoders on torch: a Hugging Face or sentence-transformers model without importing sentence_transformers.

Reads the layout that sentence-transformers saves (https://sbert.net): modules.json with Transformer, Pooling and
perhaps Normalize; without it, the model is taken as a plain Hugging Face model and its tokens are averaged.
Only safetensors weights are loaded, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from common.files import expand, read_json, sha256_of
from common.models import loading_errors, resolve_model

# Tokens in a batch, padding included. On 2 CPU cores batches of like length of this size were 1.25 times as fast as
# batches of 32 texts, for passages of much the same length. 1,024 and 4,096 did as well; on cores shared with other
# work, 1,024 took twice the CPU time, the threads waiting for each other. A GPU wants more at a time.
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 32768

_FALLBACK_MAX_LENGTH = 512
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class _Recipe:
    """How a model directory wants its texts treated."""

    subfolder: str = ""  # where config, weights and tokenizer are
    pooling: str = "mean"
    max_length: int | None = None  # tokens; None: what tokenizer and model allow
    lower_case: bool = False


class TorchEncoder:
    """See `open_encoder`. `dim`, `name` and `fingerprint` as in `Encoder`; `max_length` in tokens, the rest is cut."""

    def __init__(self, name: str, device: str | None = None) -> None:
        self._device = _device(device)
        folder = Path(resolve_model(name))
        # A relative path would name another model, or none, from another working directory.
        self.name = str(folder.resolve()) if folder == expand(name) else name
        with loading_errors(name), _quiet_loading():
            self._recipe = _recipe(folder)
            source = folder / self._recipe.subfolder
            weights = _weights(source)
            self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self._model, loading = AutoModel.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
            _check(self._model.config, loading["missing_keys"])
            self._model.eval().to(self._device)
        self.dim = int(self._model.config.hidden_size)
        self.max_length = self._find_max_length()
        self.fingerprint = _fingerprint(weights, self._recipe, self.max_length)
        self._one_at_a_time = threading.Lock()  # a tokenizer fails when two threads set its truncation at once

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32 unit rows in the order of `texts`; the same whatever else is in `texts`, up to rounding."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        with self._one_at_a_time, torch.inference_mode():
            features = self._tokenize(texts)
            for batch in _batches([len(feature["input_ids"]) for feature in features], self._batch_tokens()):
                vectors[batch] = self._encode_batch([features[i] for i in batch])
        return vectors

    def _tokenize(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """For each text its token ids and what else the model takes, cut to `max_length`, never empty."""
        if not texts:
            return []
        # Stripping (and lower-casing where asked) is what sentence-transformers does.
        clean = [text.strip().lower() if self._recipe.lower_case else text.strip() for text in texts]
        columns = self._tokenizer(clean, truncation=True, max_length=self.max_length, return_attention_mask=True)
        rows = [{key: column[i] for key, column in columns.items()} for i in range(len(clean))]
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
        hidden_BTD = self._model(**inputs).last_hidden_state
        if self._recipe.pooling == "cls":
            pooled_BD = hidden_BTD[:, 0]
        else:
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
            pooled_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(pooled_BD, dim=-1).float().cpu().numpy()
        return vectors

    def _padding(self, key: str) -> int:
        return (self._tokenizer.pad_token_id or 0) if key == "input_ids" else 0

    def _batch_tokens(self) -> int:
        return BATCH_TOKENS_CPU if self._device.type == "cpu" else BATCH_TOKENS_GPU

    def _find_max_length(self) -> int:
        """The recipe's limit, the tokenizer's and the model's: the lowest that is known."""
        positions = getattr(self._model.config, "max_position_embeddings", None)
        limits = [self._recipe.max_length, self._tokenizer.model_max_length, positions]
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


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # names a device that this machine lacks as an error now, not later
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{name}' cannot be used ({str(error).splitlines()[0]}); try: cpu") from None
    return device


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


def _recipe(folder: Path) -> _Recipe:
    """Read modules.json and what it names. Raises ValueError for anything that is not followed here."""
    if not (folder / "modules.json").is_file():
        return _Recipe()
    try:
        listed = read_json(folder / "modules.json")
        modules = {module["type"].rpartition(".")[2]: str(module["path"]) for module in listed}
    except (AttributeError, KeyError, TypeError):
        raise ValueError("its modules.json is not a list of modules, each with type and path") from None
    if unknown := [kind for kind in modules if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ValueError(f"its modules.json asks for '{unknown[0]}'; known: Transformer, Pooling, Normalize")
    if "Transformer" not in modules or "Pooling" not in modules:
        raise ValueError("its modules.json lacks a Transformer or a Pooling module")
    if prompt := _settings(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise ValueError(f"it puts the prompt '{prompt}' before every text, which is not supported")
    transformer = _settings(folder / modules["Transformer"] / "sentence_bert_config.json")
    return _Recipe(
        subfolder=modules["Transformer"],
        pooling=_pooling(_settings(folder / modules["Pooling"] / "config.json")),
        max_length=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case", False)),
    )


def _pooling(settings: dict[str, Any]) -> str:
    """'mean' or 'cls', from today's `pooling_mode` or the `pooling_mode_*` flags of older versions."""
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = [flags.get(key, key) for key, on in settings.items() if key.startswith("pooling_mode_") and on is True]
    mode = settings.get("pooling_mode", "+".join(modes) or "mean")
    if mode not in ("mean", "cls"):
        raise ValueError(f"its pooling is '{mode}'; known: mean, cls")
    return str(mode)


def _weights(folder: Path) -> list[Path]:
    """The safetensors files that hold the model. Raises ValueError where there are none."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(
            f"{missing[0]} is missing; only safetensors weights are loaded, since pickled ones can run code: convert "
            "them with AutoModel.from_pretrained(...).save_pretrained(...)"
        )
    return [folder / name for name in names]


def _check(config: Any, missing: Sequence[str]) -> None:
    """Refuse a model that would load and give meaningless vectors."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"'{config.model_type}' is an encoder-decoder, not a sentence encoder")
    # A pooler is not used here, and many encoders are saved without one.
    if absent := sorted(key for key in missing if "pooler" not in key):
        raise ValueError(f"its weights lack {absent[0]} and {len(absent) - 1} more that {config.model_type} needs")


def _fingerprint(weights: Sequence[Path], recipe: _Recipe, max_length: int) -> str:
    """SHA-256 over all that decides the vectors. Of the weights only samples: opening an index must be fast."""
    folder = weights[0].parent
    digest = hashlib.sha256(repr((sorted(asdict(recipe).items()), max_length)).encode())
    tokenizer = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else _VOCABULARIES
    for name in ("config.json", *tokenizer):
        if (folder / name).is_file():
            digest.update(f"{name} {sha256_of(folder / name)}".encode())
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as opened:
            digest.update(opened.read(64 << 10))
            for i in range(16):
                opened.seek(size * i // 16)
                digest.update(opened.read(4 << 10))
    return digest.hexdigest()


def _settings(file: Path) -> dict[str, Any]:
    """A JSON object; {} where the file is missing."""
    settings = read_json(file) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"its {file.name} is not a JSON object")
    return settings
