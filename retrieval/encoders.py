"""Sentence encoders by name: texts -> unit vectors.

Importing this is cheap; torch and transformers load when `open_encoder` opens a model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.types import Encoder

# Best hits that score below the floor say nothing. For all-MiniLM-L6-v2 on passages of the default size, 0.40 keeps
# 98.8% of 1,327 Natural Questions that the indexed documents answer, and 44 of 45 such questions on docs/sample. It
# refuses 95% of the Natural Questions asked of docs/sample, which is about other things, all 7 off-topic questions
# written for docs/sample, but only 32% of the Natural Questions whose one answering document was taken out, and none of
# 8 on what docs/sample speaks of but does not say: a cosine tells the topic, not whether the answer is there.
# (0.30: 100%, 45 of 45, 80%, 7, 2%, 0. 0.50: 94%, 41 of 45, 98%, 7, 65%, 2.) Encoders not measured never refuse: 0.
FLOORS = {"minilm": 0.40, "all-minilm-l6-v2": 0.40}


def open_encoder(name: str, device: str | None = None) -> Encoder:
    """The encoder called `name`: 'hash', a prepared model ('minilm'), a model directory or a Hugging Face id.

    `device` is a torch device ('cpu', 'cuda', 'cuda:1'); by default the GPU where there is one. Raises ValueError
    for a model that is missing, that is no sentence encoder, or whose weights are not safetensors.
    """
    if name == HashEncoder.name:
        return HashEncoder()
    from retrieval.torch_encoder import TorchEncoder

    return TorchEncoder(name, device)


def default_floor(name: str) -> float:
    """The measured floor of the encoder called `name`, 0.0 where none was measured."""
    return FLOORS.get(Path(name).name.lower(), 0.0)


class HashEncoder:
    """Hashed word counts: a stand-in for tests and dry runs, which finds texts by the words they share.

    Needs no model, starts at once, and gives the same vectors on every machine.
    """

    name = "hash"

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
