"""Rows as arrays: sentence vectors, hashed features, truths; and which of the features are worth keeping."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.files import atomic_write
from moderation.head.classifier import Encode, encodable
from moderation.head.data import Row, label_names, matrix
from moderation.head.features import WINDOW, hashes
from moderation.head.model import Array

LEAST_ROWS = 4  # a feature of fewer rows is not kept
BATCH = 256
PROBE = "What does this encoder make of a text?"


@dataclass(frozen=True)
class Corpus:
    """N rows; vectors (N, D) their sentence vectors; text i has features `grams[starts[i]:starts[i + 1]]`; truth (N, L)
    is 1, 0 or NaN where unknown."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    vectors: Array
    grams: NDArray[np.uint32]
    starts: NDArray[np.int64]
    truth: NDArray[np.float32]
    sources: NDArray[np.str_]

    def select(self, chosen: NDArray[np.int64]) -> Corpus:
        """The rows with these numbers."""
        parts = [self.grams[self.starts[i] : self.starts[i + 1]] for i in chosen]
        return Corpus(
            tuple(self.rows[i] for i in chosen),
            self.labels,
            self.vectors[chosen],
            np.concatenate(parts) if parts else self.grams[:0],
            _starts([len(part) for part in parts]),
            self.truth[chosen],
            self.sources[chosen],
        )

    def grams_of(self) -> list[NDArray[np.uint32]]:
        """The features of each text."""
        return np.split(self.grams, self.starts[1:-1])

    @property
    def texts(self) -> list[str]:
        """What is read of each text: its first window."""
        return [row.text[:WINDOW] for row in self.rows]


def make_corpus(rows: Sequence[Row], encode: Encode, progress: Callable[[str], None], cache: Path | None) -> Corpus:
    """The rows' first windows as arrays. Where `cache` is a folder, sentence vectors are kept there for the next time.

    ValueError for no rows.
    """
    if not rows:
        raise ValueError("no rows to learn from")
    texts = [encodable(row.text[:WINDOW]) for row in rows]
    labels = label_names(rows)
    grams = [hashes(text) for text in texts]
    return Corpus(
        tuple(rows),
        labels,
        _vectors(texts, encode, progress, cache),
        np.concatenate(grams),
        _starts([len(gram) for gram in grams]),
        np.array(matrix(rows, labels), dtype=np.float32).reshape(len(rows), len(labels)),
        np.array([row.source for row in rows]),
    )


def _starts(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _vectors(texts: list[str], encode: Encode, progress: Callable[[str], None], cache: Path | None) -> Array:
    # A probe's vector names the file: another encoder, or another precision of it, gives another.
    name = hashlib.sha256(np.ascontiguousarray(encode([PROBE])).tobytes()).hexdigest()[:32]
    kept = cache / f"{name}.npz" if cache else None
    sums = [hashlib.sha256(text.encode("utf-8")).hexdigest()[:24] for text in texts]
    known: dict[str, Array] = {}
    if kept and kept.is_file():
        with np.load(kept, allow_pickle=False) as stored:
            known = dict(zip(stored["sums"].tolist(), stored["vectors"], strict=True))
    missing = {digest: text for digest, text in zip(sums, texts, strict=True) if digest not in known}
    order = sorted(missing, key=lambda digest: len(missing[digest]))  # texts of one length together: little padding
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        vectors = np.asarray(encode([missing[digest] for digest in chosen]), dtype=np.float32)
        known.update(zip(chosen, vectors, strict=True))
        if start // BATCH % 20 == 19:
            progress(f"{start + BATCH} of {len(order)} texts encoded")
    if kept and missing:
        with atomic_write(kept, "wb") as file:
            np.savez(file, sums=np.array(list(known)), vectors=np.stack(list(known.values())))
    return np.stack([known[digest] for digest in sums])


def row_weights(sources: Sequence[str], extra: Mapping[str, float]) -> NDArray[np.float64]:
    """A weight for each row: a source of n rows weighs as the root of n in all, times its `extra`; their mean is 1."""
    names, which, counts = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    each = np.array([extra.get(str(name), 1.0) for name in names]) / np.sqrt(counts)
    weights: NDArray[np.float64] = each[which]
    weights /= weights.mean()
    return weights


def choose_keys(corpus: Corpus, weights_N: NDArray[np.float64], size: int) -> NDArray[np.uint32]:
    """(at most size,) sorted features that tell some label's rows apart from the others best.

    The measure is the difference of the feature's weighted shares among the label's 1 and 0 rows, by its standard
    error; a feature counts by its best label.
    """
    owner = np.repeat(np.arange(len(corpus.rows)), np.diff(corpus.starts))
    keys, which, counts = np.unique(corpus.grams, return_inverse=True, return_counts=True)
    best = np.zeros(len(keys))
    for truth_N in corpus.truth.T:
        ones, zeros = weights_N * (truth_N == 1), weights_N * (truth_N == 0)
        if not (ones.any() and zeros.any()):
            continue
        in_ones = np.bincount(which, ones[owner], len(keys))
        in_zeros = np.bincount(which, zeros[owner], len(keys))
        share = (in_ones + in_zeros) / (ones.sum() + zeros.sum())
        error = np.sqrt(share * (1 / ones.sum() + 1 / zeros.sum()) + 1e-12)
        best = np.maximum(best, np.abs(in_ones / ones.sum() - in_zeros / zeros.sum()) / error)
    best[counts < LEAST_ROWS] = 0
    chosen = np.argsort(-best, kind="stable")[:size]
    return np.sort(keys[chosen[best[chosen] > 0]])


def part_of(row: Row, salt: str, parts: int) -> int:
    """A number below `parts` that depends on the text alone: equal texts never stand in two parts."""
    return zlib.crc32(f"{salt}\0{row.text}".encode("utf-8", "surrogatepass")) % parts
