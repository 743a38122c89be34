"""BM25 over the segments of an index, with one statistic for all of them.

A passage d scores  sum over the query's terms t of  weight(t) * idf(t) * tf / (tf + k1 * (1 - b + b * |d| / avgdl)),
idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)): BM25 as Lucene computes it (Kamphuis et al., ECIR 2020,
https://cs.uwaterloo.ca/~jimmylin/publications/Kamphuis_etal_ECIR2020_preprint.pdf). N, df and avgdl are those of all
segments together, so that how passages are spread over segments changes no score. Deleted passages still count in
them until their segment is rewritten.

The search is exact. It takes the terms from the rarest to the commonest, and once those left together could not lift
a new passage among the best k, it only completes the scores of passages already seen (MaxScore: Turtle and Flood,
Information Processing & Management 31(6), 1995).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.scoring.found import Found, best, merge, per_segment, visible
from retrieval.scoring.postings import LexicalSegment, PostingsWriter
from retrieval.scoring.tokens import Tokenizer

__all__ = ["Lexical", "LexicalSegment", "LexicalSettings", "LexicalWriter", "WeightedQuery", "parse_query"]

WeightedQuery = Mapping[str, float]  # terms (see `tokens.py`) with their weights, all above 0

QUERY_WEIGHT, CONTEXT_WEIGHT = 0.6, 0.4
MAX_QUERY_TERMS = 256
_SLACK = 1 - 1e-5  # of bounds, for the rounding of float32 sums
_FEW = 64  # one in so many passages: below that, scoring each of them is cheaper than going through all postings


@dataclass(frozen=True)
class LexicalSettings:
    """How words count. The defaults were best over seven collections with passages of mixed lengths.

    k1: how soon repeating a word stops counting, from 0. b: how much long passages are held back, 0 to 1. language:
    of the stemmer and the stop words, 'none' for neither; see `tokens.Tokenizer`."""

    k1: float = 0.9
    b: float = 0.4
    language: str = "english"

    def __post_init__(self) -> None:
        if not self.k1 >= 0:
            raise ValueError(f"k1 is {self.k1}; it must be at least 0, usually 0.5 to 2")
        if not 0 <= self.b <= 1:
            raise ValueError(f"b is {self.b}; it must be from 0 to 1")


class LexicalWriter:
    """The words of one segment on their way to disk; see `postings.PostingsWriter` for its methods and memory.

    Raises ValueError for a language that there is no stemmer for.
    """

    def __init__(self, settings: LexicalSettings) -> None:
        self._postings = PostingsWriter(Tokenizer(settings.language))

    def add(self, texts: Sequence[str]) -> None:
        """Append passages; they get the next numbers, from 0."""
        self._postings.add(texts)

    def write(self, folder: Path) -> list[str]:
        """Write all to `folder`; syncing is the caller's. Returns the names of the files. May be called once."""
        return self._postings.write(folder)


@lru_cache(maxsize=8)
def _tokenizer(language: str) -> Tokenizer:
    return Tokenizer(language)


def parse_query(text: str, context: str = "", settings: LexicalSettings | None = None) -> WeightedQuery:
    """The terms of a query, each with how often it stands there.

    With what the user said before as `context`, a mix of both, 0.6 of the query and 0.4 of the context. Of an overlong
    query the MAX_QUERY_TERMS heaviest terms count, of equals the first.
    """
    tokenizer = _tokenizer((settings or LexicalSettings()).language)
    parts = [(text, QUERY_WEIGHT), (context, CONTEXT_WEIGHT)] if context.strip() else [(text, 1.0)]
    weights: dict[str, float] = {}
    for part, weight in parts:
        for term in tokenizer.tokens(part):
            weights[term] = weights.get(term, 0.0) + weight
    return dict(sorted(weights.items(), key=lambda item: -item[1])[:MAX_QUERY_TERMS])


@dataclass(frozen=True)
class _Term:
    """A term of a query: what it can add to a score at most, and its postings in each segment."""

    name: bytes
    weight: float
    postings: list[slice]


class Lexical:
    """Search over several segments; scores are BM25 (higher is better), 0 for a passage without a word of the query."""

    def __init__(self, segments: Sequence[LexicalSegment], settings: LexicalSettings | None = None) -> None:
        self._segments = tuple(segments)
        self._settings = settings or LexicalSettings()
        self._num_passages = sum(segment.num_passages for segment in segments)
        self._average = sum(segment.total_length for segment in segments) / max(self._num_passages, 1)
        self._norms: list[NDArray[np.float32] | None] = [None] * len(self._segments)

    def search(
        self,
        query: WeightedQuery | str,
        k: int,
        allowed: Sequence[NDArray[Any] | None] | None = None,
        deleted: Sequence[NDArray[Any] | None] | None = None,
    ) -> Found:
        """The best `k` passages that hold a word of the query; of equal scores the first passage comes first.

        For each segment `allowed` may give the only passages to look at, as a mask or as ids, and `deleted` the ids of
        those that must not be found. Raises ValueError for k < 1 and for what does not fit the segments.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        terms = self._look_up(query)
        alloweds = per_segment("allowed", allowed, len(self._segments))
        deleteds = per_segment("deleted", deleted, len(self._segments))
        scores = np.empty(max((segment.num_passages for segment in self._segments), default=0), dtype=np.float32)
        threshold, parts = 0.0, []
        kept = np.zeros(0, dtype=np.float32)
        for number, segment in enumerate(self._segments):
            mask = visible(segment.num_passages, alloweds[number], deleteds[number])
            ids, found = self._search_segment(number, terms, k, threshold, mask, scores[: segment.num_passages])
            if not len(ids):
                continue
            parts.append((number, ids, found))
            kept = np.concatenate([kept, found])
            if len(kept) >= k:
                kept = -np.partition(-kept, k - 1)[:k]
                threshold = float(kept.min())
        return merge(parts, k)

    def score(self, query: WeightedQuery | str, ids: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """The scores of given passages: for each segment ids, in any order, to as many scores."""
        terms = self._look_up(query)
        ids = per_segment("arrays of ids", ids, len(self._segments))
        return [self._score(number, terms, np.asarray(each, dtype=np.uint32)) for number, each in enumerate(ids)]

    def upper_bound(self, query: WeightedQuery | str) -> float:
        """More than any passage can score: the sum of weight * idf over those of the query's terms that occur."""
        return float(sum(term.weight for term in self._look_up(query)))

    def term_weights(self, query: WeightedQuery | str) -> dict[str, float]:
        """weight * idf of each term of the query, also of those that no passage holds, whose df is 0."""
        if isinstance(query, str):
            query = parse_query(query, settings=self._settings)
        known = {term.name: term.weight for term in self._look_up(query)}
        unknown = math.log(1 + (self._num_passages + 0.5) / 0.5)
        return {term: known.get(_name(term), weight * unknown) for term, weight in query.items() if weight > 0}

    def _look_up(self, query: WeightedQuery | str) -> list[_Term]:
        """The terms of the query that occur, the weightiest first."""
        if isinstance(query, str):
            query = parse_query(query, settings=self._settings)
        weighted = [(_name(term), weight) for term, weight in query.items() if weight > 0]
        names = [name for name, _ in weighted]
        columns = [segment.find(names) for segment in self._segments] if names else []
        found = []
        for i, (name, weight) in enumerate(weighted):
            postings = [column[i] for column in columns]
            df = sum(part.stop - part.start for part in postings)
            if df:
                idf = np.log(1 + (self._num_passages - df + 0.5) / (df + 0.5))
                found.append((-float(np.float32(weight * idf)), name, postings))
        return [_Term(name, -weight, postings) for weight, name, postings in sorted(found, key=lambda each: each[:2])]

    def _norm(self, number: int) -> NDArray[np.float32]:
        """k1 * (1 - b + b * length / average) for each passage of a segment; made with its first search."""
        norm = self._norms[number]
        if norm is None:
            k1, b = self._settings.k1, self._settings.b
            norm = k1 * (1 - b + b / max(self._average, 1e-9) * self._segments[number].lengths.astype(np.float32))
            self._norms[number] = norm = norm.astype(np.float32)
        return norm

    def _impacts(self, number: int, term: _Term, where: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """What a term adds to the scores of the passages at `where` in the postings of a segment."""
        segment = self._segments[number]
        tf = segment.counts[where].astype(np.float32)
        lower = self._norm(number)[segment.docs[where]]
        lower += tf
        tf /= lower
        tf *= np.float32(term.weight)
        return tf

    def _score(self, number: int, terms: Sequence[_Term], ids: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The same sums, in the same order, as `_search_segment` makes."""
        scores = np.zeros(len(ids), dtype=np.float32)
        for term in terms:
            rows, where = self._matches(number, term, ids)
            scores[rows] += self._impacts(number, term, where)
        return scores

    def _matches(
        self, number: int, term: _Term, ids: NDArray[np.uint32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of `ids` hold the term, and where their postings stand."""
        part = term.postings[number]
        docs = self._segments[number].docs[part]
        if not len(docs):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        places = docs.searchsorted(ids)
        rows = np.flatnonzero(docs[np.minimum(places, len(docs) - 1)] == ids)
        return rows, places[rows] + part.start

    def _search_segment(
        self,
        number: int,
        terms: Sequence[_Term],
        k: int,
        threshold: float,
        mask: NDArray[np.bool_] | None,
        scores: NDArray[np.float32],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """At most k passages, by rising id, that reach `threshold`, and their scores. `scores` is room to work in."""
        segment = self._segments[number]
        terms = [term for term in terms if term.postings[number].stop > term.postings[number].start]
        rest = np.cumsum([0.0, *(term.weight for term in reversed(terms))])[::-1]  # rest[i]: of terms[i:] together
        if not terms or rest[0] < threshold * _SLACK:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if mask is not None and np.count_nonzero(mask) * _FEW < segment.num_passages:
            few = np.flatnonzero(mask)
            exact = self._score(number, terms, few.astype(np.uint32))
            return _reaching(few, exact, k, threshold)
        scores[:] = 0.0 if mask is None else np.where(mask, np.float32(0), np.float32(-np.inf))
        done, first = 0, threshold == 0
        while done < len(terms) and rest[done] >= threshold * _SLACK:
            docs = segment.docs[terms[done].postings[number]]
            scores[docs] += self._impacts(number, terms[done], terms[done].postings[number])
            done += 1
            if first and done < len(terms) and len(docs) >= k:
                # No segment has set a threshold yet. Scores so far are lower bounds, and so is the k-th best of some.
                partial = scores[docs]
                threshold = max(threshold, float(np.partition(partial, len(partial) - k)[len(partial) - k]))
        least = max(threshold * _SLACK - rest[done], np.finfo(np.float32).tiny)
        candidates = np.flatnonzero(scores >= np.float32(least)).astype(np.uint32)
        for i in range(done, len(terms)):
            candidates = candidates[scores[candidates] >= np.float32(threshold * _SLACK - rest[i])]
            rows, where = self._matches(number, terms[i], candidates)
            scores[candidates[rows]] += self._impacts(number, terms[i], where)
        return _reaching(candidates.astype(np.int64), scores[candidates], k, threshold)


def _name(term: str) -> bytes:
    return term.encode("utf-8", "surrogatepass")


def _reaching(
    ids: NDArray[np.int64], scores: NDArray[np.float32], k: int, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best k of those whose score is above 0 and reaches the threshold, in the order of `ids`."""
    kept = np.flatnonzero((scores > 0) & (scores >= np.float32(threshold)))
    kept = kept[np.sort(best(scores[kept], k))]
    return ids[kept], scores[kept]
