"""Candidates from both sides, words and vectors, each with its exact score on both, fused into one ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.index.segment import ANN, VECTORS, Segment
from retrieval.index.store import Store
from retrieval.scoring.found import Found
from retrieval.scoring.fusion import NUM_SMOOTHED, FusionSettings, fuse, shares_of, smooth
from retrieval.scoring.lexical import Lexical, LexicalSegment, WeightedQuery
from retrieval.scoring.vectors import Dense, DenseSegment
from retrieval.search.filters import Filter


@dataclass(frozen=True)
class Candidates:
    """What was found for one query, best first; all arrays have n entries.

    segments, ids: places in the store. dense: cosines. lexical: BM25. scores: fused, higher is better. dense_ranks,
    lexical_ranks: the place, from 1, in the list of each side, 0 where that list ended before. upper_bound: the most
    BM25 that any passage could have.
    """

    segments: NDArray[np.int64]
    ids: NDArray[np.int64]
    dense: NDArray[np.float32]
    lexical: NDArray[np.float32]
    scores: NDArray[np.float32]
    dense_ranks: NDArray[np.int64]
    lexical_ranks: NDArray[np.int64]
    upper_bound: float

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, rows: NDArray[np.bool_]) -> Candidates:
        """The others, in the same order."""
        kept = {field.name: getattr(self, field.name)[~rows] for field in fields(self) if field.name != "upper_bound"}
        return replace(self, **kept)


class Ranker:
    """Search over the segments of a store."""

    def __init__(self, store: Store) -> None:
        dim = store.manifest.encoder.dim
        settings = store.manifest.settings
        self._store = store
        self._fusion = settings.fusion
        self.lexical = Lexical([LexicalSegment(segment.folder) for segment in store.segments], settings.lexical)
        self.dense = Dense(
            [
                DenseSegment(
                    segment.folder / VECTORS,
                    segment.folder / ANN if ANN in segment.info.files else None,
                    dim,
                    segment.info.factory,
                )
                for segment in store.segments
            ]
        )
        self._deleted = [segment.deleted for segment in store.segments]
        self._masks: dict[Filter, list[NDArray[np.bool_] | None]] = {}

    def rank(
        self,
        vectors: NDArray[np.float32],
        queries: Sequence[WeightedQuery],
        num: int,
        where: Filter,
        fusion: FusionSettings | None = None,
    ) -> list[Candidates]:
        """For each query, (q, dim) vectors and their words, candidates from the best `num` of either side."""
        allowed = self._allowed(where)
        near = self.dense.search(vectors, num, allowed, self._deleted)
        worded = [self.lexical.search(query, num, allowed, self._deleted) for query in queries]
        return [
            self._fuse(vector, query, nearest, matching, fusion or self._fusion)
            for vector, query, nearest, matching in zip(vectors, queries, near, worded, strict=True)
        ]

    def _fuse(
        self, vector: NDArray[np.float32], query: WeightedQuery, near: Found, worded: Found, fusion: FusionSettings
    ) -> Candidates:
        """Each candidate gets its exact score on the side that did not find it."""
        keys = np.concatenate([_key(near), _key(worded)])
        places = np.unique(keys)
        segments, ids = places >> 32, places & 0xFFFFFFFF
        by_segment = [np.flatnonzero(segments == number) for number in range(len(self._store.segments))]
        wanted = [ids[rows] for rows in by_segment]
        dense = np.empty(len(places), dtype=np.float32)
        lexical = np.empty(len(places), dtype=np.float32)
        exact = zip(self.dense.score(vector, wanted), self.lexical.score(query, wanted), strict=True)
        for rows, (cosines, words) in zip(by_segment, exact, strict=True):
            dense[rows], lexical[rows] = cosines, words
        upper_bound = self.lexical.upper_bound(query)
        ranks = [_ranks(found, places) for found in (near, worded)]
        scores = fuse(dense, lexical, upper_bound, fusion, *ranks)
        shares = shares_of(lexical, upper_bound)
        order = np.argsort(-scores, kind="stable")
        order[:NUM_SMOOTHED] = self._smoothed(order[:NUM_SMOOTHED], segments, ids, scores, shares, fusion)
        return Candidates(
            segments[order],
            ids[order],
            dense[order],
            lexical[order],
            scores[order].astype(np.float32),
            ranks[0][order],
            ranks[1][order],
            upper_bound,
        )

    def _smoothed(
        self,
        best: NDArray[np.int64],
        segments: NDArray[np.int64],
        ids: NDArray[np.int64],
        scores: NDArray[np.float64],
        shares: NDArray[np.float32],
        fusion: FusionSettings,
    ) -> NDArray[np.int64]:
        """The rows `best` in their order after smoothing, which changes their `scores` in place."""
        if not len(best) or fusion.method != "weighted" or not fusion.smoothing:
            return best
        passages = [
            (self._store.segments[segment], i)
            for segment, i in zip(segments[best].tolist(), ids[best].tolist(), strict=True)
        ]
        vectors = np.stack([segment.vectors[i] for segment, i in passages])
        subjects = [segment.subject(i) for segment, i in passages]
        scores[best] = smooth(scores[best], vectors, fusion, subjects, shares[best])
        return best[np.argsort(-scores[best], kind="stable")]

    def _allowed(self, where: Filter) -> list[NDArray[np.bool_] | None] | None:
        """For each segment the mask of what passes the filter; None where all does."""
        if not where:
            return None
        if where not in self._masks:
            self._masks[where] = [_mask(segment, where) for segment in self._store.segments]
        return self._masks[where]


def _mask(segment: Segment, where: Filter) -> NDArray[np.bool_]:
    mask = np.zeros(len(segment), dtype=bool)
    for document in segment.documents():
        own = {"source": document.source, "title": document.title, "id": document.id}
        if where.passes({**document.meta, **own}):
            mask[document.first : document.first + document.count] = True
    return mask


def _key(found: Found) -> NDArray[np.int64]:
    """Segment and id as one number, that sorts as they do."""
    return (found.segments << 32) | found.ids


def _ranks(found: Found, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each place its rank in `found`, from 1; 0 where it is not there."""
    ranks = np.zeros(len(places), dtype=np.int64)
    ranks[np.searchsorted(places, _key(found))] = np.arange(1, len(found.ids) + 1)
    return ranks
