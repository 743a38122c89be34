"""Vectors that were made before, by the text they were made of: what need not be encoded again."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.index.manifest import SegmentInfo
from retrieval.index.segment import VECTORS, Segment, salvage
from retrieval.types import Encoder


@dataclass(frozen=True)
class Source:
    """Where vectors are: passages `first` to `first + count - 1` of a segment, or, without `info`, whatever a killed
    writer left in `folder`."""

    folder: str
    info: SegmentInfo | None = None
    first: int = 0
    count: int = 0


class VectorPool:
    """Finds the vectors of texts in segments of the same encoder. Memory: 16 bytes a text; vectors stay on disk."""

    def __init__(self, dim: int, sources: Iterable[Source] = ()) -> None:
        """Raises OSError or ValueError for a segment that is not what its info says."""
        # Keyed, so that nobody can write two documents that are taken for each other.
        self._key = secrets.token_bytes(16)
        self._matrices: list[NDArray[np.float32]] = []
        self._chunks: list[tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]] = []
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]] | None = None
        opened: dict[str, Segment] = {}
        for source in sources:
            if source.info is None:
                self._add_leftover(Path(source.folder), dim)
                continue
            if source.folder not in opened:
                opened[source.folder] = Segment(Path(source.folder), source.info, dim)
            self._add_segment(opened[source.folder], range(source.first, source.first + source.count))

    def __len__(self) -> int:
        return sum(len(hashes) for hashes, _, _ in self._chunks)

    def _add_segment(self, segment: Segment, ids: range) -> None:
        numbers = np.arange(ids.start, ids.stop, dtype=np.uint32)
        self._add((segment.text(i) for i in numbers.tolist()), numbers, segment.vectors)

    def _add_leftover(self, folder: Path, dim: int) -> None:
        first = 0
        for texts, rows in salvage(folder, dim):
            if not first:
                whole = np.memmap(folder / VECTORS, dtype=np.uint8, mode="r")  # a kill may have cut a number in two
                matrix = whole[: len(whole) // (4 * dim) * 4 * dim].view("<f4").reshape(-1, dim)
            self._add(texts, np.arange(first, first + len(rows), dtype=np.uint32), matrix)
            first += len(rows)

    def encode(self, texts: Sequence[str], encoder: Encoder) -> NDArray[np.float32]:
        """(n, dim) unit vectors of `texts`: those at hand, the others from the encoder."""
        vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
        missing = np.ones(len(texts), dtype=bool)
        if self._chunks:
            hashes, numbers, rows = self._lookup()
            wanted = np.fromiter((self._hash(text) for text in texts), dtype=np.uint64, count=len(texts))
            places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
            missing = hashes[places] != wanted
            for i in np.flatnonzero(~missing).tolist():
                vectors[i] = self._matrices[numbers[places[i]]][rows[places[i]]]
        if missing.any():
            vectors[missing] = encoder.encode([texts[i] for i in np.flatnonzero(missing).tolist()])
        return vectors

    def _add(self, texts: Iterable[str], rows: NDArray[np.uint32], matrix: NDArray[np.float32]) -> None:
        if not self._matrices or self._matrices[-1] is not matrix:
            self._matrices.append(matrix)
        hashes = np.fromiter((self._hash(text) for text in texts), dtype=np.uint64, count=len(rows))
        self._chunks.append((hashes, np.full(len(rows), len(self._matrices) - 1, dtype=np.uint32), rows))
        self._sorted = None

    def _lookup(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
        if self._sorted is None:
            hashes, numbers, rows = (np.concatenate(parts) for parts in zip(*self._chunks, strict=True))
            order = np.argsort(hashes, kind="stable")
            self._sorted = hashes[order], numbers[order], rows[order]
        return self._sorted

    def _hash(self, text: str) -> int:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little")
