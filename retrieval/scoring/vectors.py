"""Search among the unit vectors of an index: exact where they are few, else compressed with exact scores at the end.

A segment keeps its vectors as they are in vectors.f32, and above 16,384 passages also a Faiss index of compressed ones
(`ann.py`). A search takes the passages that score best compressed, several times as many as are asked for and of all
segments together, and computes their exact scores from vectors.f32, which is memory-mapped. All scores are cosines,
higher is better. `tools/bench/search_structures.py` measures time and recall.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.scoring.ann import build_ann, choose_factory, open_ann
from retrieval.scoring.found import Found, best, merge, per_segment, visible

__all__ = ["Dense", "DenseSegment", "VectorFile", "build_ann", "choose_factory"]

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]

# How many compressed candidates of all segments get exact scores: among a million perturbed vectors in 8 segments,
# 12 for each hit held .994 of the best 100 (and all of the best 10), and 700 in all .998 of the best 10.
REFINE, MIN_CANDIDATES = 12, 700
# Each segment is first asked for so many times its share of them. The fewer the quicker; one whose candidates all turn
# out to be among the best is asked again.
_SHARES = 2
_FEW = 4096  # passages that a filter leaves: scoring each exactly is quicker than finding them among the others
_BLOCK = 16_384  # vectors copied at a time
_QUERIES = 32  # searched at a time


class VectorFile:
    """float32 little-endian rows of `dim` values, memory-mapped: `matrix` is (n, dim)."""

    def __init__(self, path: Path, dim: int) -> None:
        """Raises OSError for a file that cannot be opened, ValueError for one that does not hold whole rows."""
        size = path.stat().st_size
        if size % (4 * dim):
            raise ValueError(f"{path.name} has {size} bytes, which is no multiple of the {4 * dim} of a vector")
        data: Any = b""
        if size:
            with open(path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.matrix: NDArray[np.float32] = np.frombuffer(data, dtype="<f4").reshape(-1, dim)

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """(n, dim) copies of the vectors of `ids`."""
        return np.take(self.matrix, ids, axis=0)

    def cosines(self, query: NDArray[np.float32], ids: NDArray[Any] | None = None) -> Scores:
        """(n,) exact scores of the vectors of `ids`, by default of all; -1 for a vector that holds what is no number.

        Equal vectors get equal scores, wherever they stand, which a matrix product does not promise.
        """
        scores: Scores = np.empty(len(self) if ids is None else len(ids), dtype=np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            if ids is None:
                np.vecdot(self.matrix, query, out=scores)
            else:
                for start in range(0, len(ids), _BLOCK):
                    block = slice(start, start + _BLOCK)
                    np.vecdot(self.rows(ids[block]), query, out=scores[block])
        np.nan_to_num(scores, copy=False, nan=-1.0, posinf=-1.0, neginf=-1.0)
        return scores


class DenseSegment:
    """The vectors of one segment, opened by memory map; the compressed ones are read with the first search."""

    def __init__(self, vectors: Path, ann: Path | None, dim: int, factory: str = "Flat") -> None:
        """`ann`: the file that `build_ann` wrote for `factory`, None where it wrote none. Both must have been verified.
        Raises OSError or ValueError as `VectorFile` does."""
        self.vectors = VectorFile(vectors, dim)
        self.factory = factory if ann else "Flat"
        self._dim = dim
        self._path = ann
        self._index: Any = None
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return len(self.vectors)

    def is_exact(self, mask: Mask | None) -> bool:
        """Whether `exact` is the way to search here, and not `compressed`."""
        return self._path is None or (mask is not None and self.num_visible(mask) <= _FEW)

    def num_visible(self, mask: Mask | None) -> int:
        """How many passages `mask` lets through."""
        return len(self) if mask is None else int(np.count_nonzero(mask))

    def exact(self, query: NDArray[np.float32], k: int, mask: Mask | None) -> tuple[Ids, Scores]:
        """The best k of all that `mask` lets through, by rising id, with their scores."""
        ids = np.arange(len(self)) if mask is None else np.flatnonzero(mask)
        scores = self.vectors.cosines(query, None if len(ids) == len(self) else ids)
        chosen = np.sort(best(scores, k))
        return ids[chosen], scores[chosen]

    def compressed(
        self, queries: NDArray[np.float32], k: int, num: int, mask: Mask | None
    ) -> list[tuple[Ids, Scores] | None]:
        """For each of (q, dim) queries the best `num` ids with compressed scores, or somewhat fewer where an inverted
        file ends before; None where it would be fewer than k, or where a mask makes this slow."""
        num = min(num, self.num_visible(mask))
        if mask is None:
            scores, ids = self._load().search(queries, num)
            # Faiss fills up with -1 where it finds fewer.
            counts = [num if row[-1] >= 0 else int(np.count_nonzero(row >= 0)) for row in ids]
            return [
                (ids[row, :count], scores[row, :count]) if count >= min(k, num) else None
                for row, count in enumerate(counts)
            ]
        return [self._filtered(queries[row : row + 1], num, mask) for row in range(len(queries))]

    def _filtered(self, query: NDArray[np.float32], num: int, mask: Mask) -> tuple[Ids, Scores] | None:
        """Faiss does not filter compressed codes: ask for more, as long as that is quicker than exact search."""
        fetch = min(len(self), 16 + num * len(self) * 5 // (self.num_visible(mask) * 4))
        while True:
            scores, ids = self._load().search(query, fetch)
            kept = np.flatnonzero((ids[0] >= 0) & mask[ids[0]])[:num]
            if len(kept) == num:
                return ids[0, kept], scores[0, kept]
            fetch *= 4
            if fetch > len(self) // 4:
                return None

    def _load(self) -> Any:
        with self._loading:
            if self._index is None and self._path is not None:
                self._index = open_ann(self._path, len(self), self._dim)
            return self._index


class Dense:
    """Search over several segments."""

    def __init__(self, segments: Sequence[DenseSegment]) -> None:
        self._segments = tuple(segments)
        self._pool: ThreadPoolExecutor | None = None

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: Sequence[NDArray[Any] | None] | None = None,
        deleted: Sequence[NDArray[Any] | None] | None = None,
    ) -> list[Found]:
        """For each of (q, dim) unit vectors the best `k` passages, or all where there are fewer, with exact cosines;
        of equal scores the first passage comes first.

        For each segment `allowed` may give the only passages to look at, as a mask or as ids, and `deleted` the ids of
        those that must not be found. Raises ValueError for k < 1 and for what does not fit the segments.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        num = len(self._segments)
        pairs = zip(per_segment("allowed", allowed, num), per_segment("deleted", deleted, num), strict=True)
        masks = [visible(len(segment), *pair) for segment, pair in zip(self._segments, pairs, strict=True)]
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found: list[Found] = []
        for start in range(0, len(queries), _QUERIES):
            found.extend(self._search(queries[start : start + _QUERIES], k, masks))
        return found

    def score(self, query: NDArray[np.float32], ids: Sequence[NDArray[Any]]) -> list[Scores]:
        """The exact cosines of given passages to a (dim,) query: for each segment ids, in any order, to as many."""
        ids = per_segment("arrays of ids", ids, len(self._segments))
        query = np.ascontiguousarray(query, dtype=np.float32)
        return [
            segment.vectors.cosines(query, np.asarray(each, dtype=np.int64))
            for segment, each in zip(self._segments, ids, strict=True)
        ]

    def _search(self, queries: NDArray[np.float32], k: int, masks: Sequence[Mask | None]) -> list[Found]:
        num = max(REFINE * k, MIN_CANDIDATES)
        inexact = [i for i, segment in enumerate(self._segments) if not segment.is_exact(masks[i])]
        compressed = dict(zip(inexact, self._compressed(inexact, queries, k, num, masks), strict=True))
        results = []
        for row, query in enumerate(queries):
            candidates = {i: part for i, rows in compressed.items() if (part := rows[row]) is not None}
            kept = self._best_candidates(candidates, num)
            if short := [i for i, ids in kept.items() if len(ids) == len(candidates[i][0]) < num]:
                for i in short:
                    part = self._segments[i].compressed(queries[row : row + 1], k, num, masks[i])[0]
                    if part is None:
                        del candidates[i]
                    else:
                        candidates[i] = part
                kept = self._best_candidates(candidates, num)
            parts = [(i, ids, self._segments[i].vectors.cosines(query, ids)) for i, ids in kept.items()]
            exact = [i for i in range(len(self._segments)) if i not in candidates]
            parts += [(i, *self._segments[i].exact(query, k, masks[i])) for i in exact]
            results.append(merge(sorted(parts, key=lambda part: part[0]), k))
        return results

    def _compressed(
        self, inexact: Sequence[int], queries: NDArray[np.float32], k: int, num: int, masks: Sequence[Mask | None]
    ) -> list[list[tuple[Ids, Scores] | None]]:
        """`DenseSegment.compressed` of some segments, for one query side by side: Faiss itself spreads only several."""

        total = sum(self._segments[i].num_visible(masks[i]) for i in inexact)

        def search(i: int) -> list[tuple[Ids, Scores] | None]:
            share = 32 + _SHARES * num * self._segments[i].num_visible(masks[i]) // total
            return self._segments[i].compressed(queries, k, min(num, share), masks[i])

        if len(inexact) > 1 and len(queries) == 1:
            import faiss

            if self._pool is None and (num_threads := faiss.omp_get_max_threads()) > 1:
                self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="dense")
            if self._pool is not None:
                return list(self._pool.map(search, inexact))
        return [search(i) for i in inexact]

    def _best_candidates(self, candidates: dict[int, tuple[Ids, Scores]], num: int) -> dict[int, Ids]:
        """By segment, the ids, rising, of the best `num` compressed scores of each type of index: two types may err to
        different sides."""
        kept: dict[int, Ids] = {}
        for factory in {self._segments[i].factory for i in candidates}:
            alike = sorted(i for i in candidates if self._segments[i].factory == factory)
            found = merge([(i, *candidates[i]) for i in alike], num)
            kept |= {i: np.sort(found.ids[found.segments == i]) for i in alike}
        return kept
