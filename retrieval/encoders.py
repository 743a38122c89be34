"""Sentence encoders by name: texts -> unit vectors.

Importing this is cheap; torch, transformers and ONNX Runtime load when `open_encoder` opens a model that needs them.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from common.devices import choose_device
from common.files import expand
from retrieval.types import Encoder

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
CACHED_TEXTS = 1024
DEFAULT_ENCODER = "minilm"

# Best hits that score below the floor say nothing. For all-MiniLM-L6-v2 on passages of the default size, 0.40 keeps
# 98.8% of 1,327 Natural Questions that the indexed documents answer, and 44 of 45 such questions on docs/sample. It
# refuses 95% of the Natural Questions asked of docs/sample, which is about other things, all 7 off-topic questions
# written for docs/sample, but only 32% of the Natural Questions whose one answering document was taken out, and none of
# 8 on what docs/sample speaks of but does not say: a cosine tells the topic, not whether the answer is there.
# (0.30: 100%, 45 of 45, 80%, 7, 2%, 0. 0.50: 94%, 41 of 45, 98%, 7, 65%, 2.) Encoders not measured never refuse: 0.
FLOORS = {"minilm": 0.40, "all-minilm-l6-v2": 0.40}


def open_encoder(name: str, device: str | None = None, precision: Precision = "auto") -> Encoder:
    """The encoder called `name`: 'hash', a prepared model ('minilm'), a model directory or a Hugging Face id.

    precision: 'float32' runs on torch, on `device` ('cpu', 'cuda', 'cuda:1'; by default the GPU where there is one).
    'int8' runs what tools/export_onnx.py made of the model, always on the CPU. 'auto' is int8 where the device is the
    CPU and an int8 version proved good enough, else float32. `name` may end in ':float32' or ':int8', which says the
    same (unless a directory is really called so); the encoder's own name does, so that it names this encoder alone.

    Raises ValueError for a model that is missing, that is no sentence encoder, or whose weights are not safetensors;
    for 'int8' where there is no int8 version that proved good enough; for two precisions that contradict.
    """
    base, precision = _named_precision(name, precision)
    if base == HashEncoder.name:
        return HashEncoder()
    if device not in (None, "cpu"):  # without torch, which takes seconds to load
        choose_device(device)
    if precision == "int8":
        return _open_int8(base)
    if precision == "auto" and (encoder := _open_proven(base, device)):
        return encoder
    from retrieval.encoding.torch_encoder import TorchEncoder

    return TorchEncoder(base, device)


def as_encoder(encoder: str | Encoder | None, default: str, device: str | None = None) -> Encoder:
    """An encoder as it is, or the one of a name, by default of the name `default`; raises as `open_encoder` does."""
    return open_encoder(encoder or default, device) if encoder is None or isinstance(encoder, str) else encoder


def default_floor(name: str) -> float:
    """The measured floor of the encoder called `name`, in whatever precision; 0.0 where none was measured."""
    return FLOORS.get(Path(_named_precision(name, "auto")[0]).name.lower(), 0.0)


def cached(encoder: Encoder, size: int = CACHED_TEXTS) -> Encoder:
    """`encoder` with the vectors of the last `size` texts remembered: for queries, which people repeat.

    Raises ValueError for a size below 1.
    """
    return encoder if isinstance(encoder, _CachedEncoder) else _CachedEncoder(encoder, size)


def _named_precision(name: str, precision: Precision) -> tuple[str, Precision]:
    """`name` without the precision at its end, and the one that it or `precision` asks for."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is '{precision}'; it must be one of {', '.join(PRECISIONS)}")
    base, _, last = name.rpartition(":")
    if not base or last not in ("float32", "int8") or expand(name).is_dir():
        return name, precision
    if precision not in ("auto", last):
        raise ValueError(f"encoder '{name}' is not {precision}; leave out one of the two precisions")
    return base, "int8" if last == "int8" else "float32"


def _open_int8(name: str) -> Encoder:
    from retrieval.encoding.onnx_encoder import OnnxEncoder

    return OnnxEncoder.open(name)


def _open_proven(name: str, device: str | None) -> Encoder | None:
    """The int8 encoder where 'auto' means it, else None."""
    from retrieval.encoding.onnx_encoder import OnnxEncoder, proven

    if not proven(name):
        return None
    if device != "cpu" and choose_device(device).type != "cpu":
        return None
    try:
        return OnnxEncoder.open(name)
    except ValueError as error:
        logger.warning("%s; using float32, which is slower", error)
        return None


class _CachedEncoder:
    """See `cached`. Safe to call from several threads; two that ask for the same new text may both encode it."""

    def __init__(self, encoder: Encoder, size: int) -> None:
        if size < 1:
            raise ValueError(f"the cache is of {size} texts; it must hold at least 1")
        self._encoder, self._size = encoder, size
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()  # the text used last comes last
        self._lock = threading.Lock()
        self.dim, self.name, self.fingerprint = encoder.dim, encoder.name, encoder.fingerprint
        self.max_length, self.count_tokens = encoder.max_length, encoder.count_tokens

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Encoder`; the rows are the caller's own."""
        with self._lock:
            known = {text: self._vectors[text] for text in texts if text in self._vectors}
            for text in known:
                self._vectors.move_to_end(text)
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            encoded = dict(zip(new, self._encoder.encode(new), strict=True))
            known |= encoded
            with self._lock:
                # Copies: a row alone would keep the whole array that it is of.
                self._vectors.update({text: encoded[text].copy() for text in new[-self._size :]})
                while len(self._vectors) > self._size:
                    self._vectors.popitem(last=False)
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            vectors[i] = known[text]
        return vectors


class HashEncoder:
    """Hashed word counts: a stand-in for tests and dry runs, which finds texts by the words they share.

    Needs no model, starts at once, and gives the same vectors on every machine.
    """

    name = "hash"
    max_length = 1 << 30  # words; it reads all of a text

    def __init__(self, dim: int = 256) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}; it must be at least 1")
        self.dim = dim

    @property
    def fingerprint(self) -> str:
        """The algorithm and its one setting."""
        return f"hash-v1-{self.dim}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, unit rows; a text without a word gets the first axis."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                vector[int.from_bytes(digest, "big") % self.dim] += 1
            if not vector.any():
                vector[0] = 1
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """For each text its words."""
        return [len(re.findall(r"\w+", text)) for text in texts]
