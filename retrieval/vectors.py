"""Unit vectors in a Faiss index: built in memory from batches, searched by inner product, which is the cosine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class VectorWriter:
    """Collects vectors for the Faiss index that `factory` describes (https://github.com/facebookresearch/faiss/wiki).

    Raises ValueError for a factory that Faiss does not know or that would have to be trained first.
    """

    def __init__(self, dim: int, factory: str) -> None:
        import faiss  # on use: importing this file must stay cheap

        try:
            self._index: Any = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError:
            raise ValueError(f"Faiss knows no index '{factory}'; try Flat, SQfp16 or HNSW32") from None
        if not self._index.is_trained:
            raise ValueError(f"the Faiss index '{factory}' needs training; try Flat, SQfp16 or HNSW32")

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append (n, dim) vectors; they get the next n ids, from 0."""
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def write(self, path: Path) -> None:
        """Write the index file; syncing it is the caller's. Raises OSError where that fails."""
        import faiss

        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise OSError(str(error)) from error


class Vectors:
    """An index file opened for search. Verify the file first: Faiss trusts what it reads, and can crash on it."""

    def __init__(self, path: Path) -> None:
        import faiss

        self._index: Any = faiss.read_index(str(path))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
        """For each of the (n, dim) queries up to `k` pairs (id, cosine), best first."""
        scores, ids = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(self)))
        return [
            # Faiss fills up with id -1 where an approximate index finds fewer than k.
            [(int(i), float(score)) for i, score in zip(row_ids, row_scores, strict=True) if i >= 0]
            for row_ids, row_scores in zip(ids, scores, strict=True)
        ]
