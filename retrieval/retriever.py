"""Search over an index: words and vectors together, neighbours, follow-up questions, and how far to trust it all."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.confidence.abstention import Judge
from retrieval.encoders import cached, open_encoder
from retrieval.index.encoder import check_encoder
from retrieval.index.manifest import Manifest
from retrieval.index.segment import Segment
from retrieval.index.store import Place, Store
from retrieval.passages import folded
from retrieval.scoring.lexical import WeightedQuery, parse_query
from retrieval.search.expansion import joined, neighbourhood
from retrieval.search.filters import Filter
from retrieval.search.followups import mixed_vectors
from retrieval.search.ranking import Candidates, Ranker
from retrieval.search.reranking import Reranker, open_reranker
from retrieval.types import Encoder, Hit

NUM_CANDIDATES = 100  # from each side
NUM_RERANKED = 30  # different texts, more where more are asked for
NOT_AMONG = "not among"  # begins the reason why a near miss was cut


@dataclass(frozen=True)
class Opened:
    """A store with the structures for searching it."""

    store: Store
    ranker: Ranker
    judge: Judge

    @classmethod
    def of(cls, store: Store) -> Opened:
        """Everything that a search in `store` needs, or in what a writer has put in its place meanwhile."""
        while True:
            try:
                ranker = Ranker(store)
                return cls(store, ranker, Judge(store, ranker))
            except (OSError, ValueError):
                if not store.is_stale:
                    raise
                store = Store(store.index)


@dataclass(frozen=True)
class Picked:
    """A candidate that a search returns: its number among the candidates, and the places that are shown for it."""

    number: int
    place: Place
    ids: range


class Retriever:
    """A `types.Searcher` over an index on disk. It notices when the index changes, and reads it again."""

    def __init__(
        self,
        store: Store,
        encoder: Encoder,
        where: Filter | None = None,
        reach: int = 0,
        reranker: Reranker | None = None,
    ) -> None:
        """`where`: the documents to look at. `reach`: so many neighbours are shown with a passage, on either side, as
        far as they are about the same. `reranker` orders the best hits anew. Raises ValueError for a reach below 0, and
        for another encoder than the index was built with."""
        _check_reach(reach)
        self._opened = Opened.of(store)
        check_encoder(encoder, self._opened.store.manifest, store.index)
        self._encoder = cached(encoder)
        self._where, self._reach, self._reranker = where or Filter(), reach, reranker
        self._hidden: frozenset[str] = frozenset()

    @classmethod
    def open(
        cls,
        path: str | Path,
        encoder: Encoder | None = None,
        device: str | None = None,
        where: Filter | None = None,
        reach: int = 0,
        rerank: str | Reranker | None = None,
    ) -> Retriever:
        """Open the index at `path` with `encoder`, by default the one that its manifest names, on `device`. `rerank`: a
        reranker, or what `open_reranker` takes.

        Raises ValueError, with the remedy, for an index that is missing or damaged, for an encoder that cannot be
        loaded, and for one that is not the encoder the index was built with.
        """
        _check_reach(reach)  # before anything slow
        store = Store(path)
        built_with = store.manifest.encoder
        if encoder is None:
            try:
                encoder = open_encoder(built_with.name, device)
            except ValueError as error:
                raise ValueError(f"index '{path}' was built with encoder '{built_with.name}': {error}") from error
        check_encoder(encoder, store.manifest, Path(path))
        reranker = open_reranker(rerank, device) if isinstance(rerank, str) else rerank
        return cls(store, encoder, where, reach, reranker)

    def __str__(self) -> str:
        held = self._opened.store.manifest
        return f"{held.num_documents} documents ({held.num_passages} passages)"

    @property
    def floor(self) -> float:
        """See `types.Searcher`; found when the index was built."""
        return self.manifest.floor

    @property
    def encoder(self) -> Encoder:
        """What encodes the queries; it remembers the last of them."""
        return self._encoder

    @property
    def reranker(self) -> Reranker | None:
        """What orders the best hits anew."""
        return self._reranker

    @property
    def manifest(self) -> Manifest:
        """What the index holds and how it was made."""
        return self.current().store.manifest

    def current(self) -> Opened:
        """The index as it is now: what was deleted since the last search is gone."""
        opened = self._opened
        if opened.store.is_stale:
            opened = Opened.of(Store(opened.store.index))
            check_encoder(self._encoder, opened.store.manifest, opened.store.index)
            self._opened = opened
        return opened

    def limited(self, where: Filter) -> Retriever:
        """This retriever, over the documents that meet these conditions too. It shares everything else."""
        self.current()  # what has changed is read once, not by each copy
        narrower = copy.copy(self)
        narrower._where = Filter((*self._where.conditions, *where.conditions))
        return narrower

    def without(self, hidden: Collection[str]) -> Retriever:
        """This retriever, as if the index did not hold the passages with these ids: they are not found, and do not
        count for the confidence either. It shares everything else."""
        fewer = copy.copy(self)
        fewer._hidden = self._hidden.union(hidden)
        return fewer

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        """See `types.Searcher`. Passages of the same text, whatever their titles, count once. A blank query finds
        nothing.

        Raises ValueError for k < 1 and for a number of contexts that is not the number of queries.
        """
        if isinstance(queries, str):
            raise ValueError("queries must be a list of texts, not one text")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if contexts is not None and len(contexts) != len(queries):
            raise ValueError(f"there are {len(contexts)} contexts for {len(queries)} queries")
        asked = [i for i, query in enumerate(queries) if query.strip()]
        results: list[list[Hit]] = [[] for _ in queries]
        if asked:
            texts = [queries[i] for i in asked]
            said = [contexts[i] if contexts else "" for i in asked]
            for i, hits in zip(asked, self._search(texts, said, k), strict=True):
                results[i] = hits
        return results

    def _search(self, queries: Sequence[str], contexts: Sequence[str], k: int) -> list[list[Hit]]:
        """The hits of queries none of which is blank."""
        while True:
            opened = self.current()
            try:
                vectors = self.query_vectors(queries, contexts)
                words = self.words(opened, queries, contexts)
                found = self.candidates(opened, vectors, words, k)
                return [self._hits(opened, *each, k) for each in zip(found, queries, vectors, words, strict=True)]
            except OSError:  # The first search opens files, which a writer may have swept by then.
                if not opened.store.is_stale:
                    raise

    def query_vectors(self, queries: Sequence[str], contexts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) unit vectors, see `mixed_vectors`."""
        return mixed_vectors(self._encoder, queries, contexts)

    def words(self, opened: Opened, queries: Sequence[str], contexts: Sequence[str]) -> list[WeightedQuery]:
        """For each query its words, and with less weight those of its context."""
        settings = opened.store.manifest.settings.lexical
        return [parse_query(query, context, settings) for query, context in zip(queries, contexts, strict=True)]

    def candidates(
        self,
        opened: Opened,
        vectors: NDArray[np.float32],
        words: Sequence[WeightedQuery],
        k: int,
    ) -> list[Candidates]:
        """Candidates for each query, enough of them for `k` hits where there are as many."""
        enough = self._num_texts(k)
        num = max(NUM_CANDIDATES, 2 * enough)
        found = self._rank(opened, vectors, words, num)
        for i, candidates in enumerate(found):
            wanted = num
            while len(candidates) >= wanted and len(self._distinct(opened, candidates, enough)) < enough:
                wanted *= 4
                candidates = self._rank(opened, vectors[i : i + 1], [words[i]], wanted)[0]
            found[i] = candidates
        return found

    def _rank(
        self, opened: Opened, vectors: NDArray[np.float32], words: Sequence[WeightedQuery], num: int
    ) -> list[Candidates]:
        """For each query the best `num` of either side, and perhaps more, none of them hidden."""
        found = opened.ranker.rank(vectors, words, num + len(self._hidden), self._where)
        return [self._shown(opened, candidates) for candidates in found] if self._hidden else found

    def _hidden_near(self, segment: Segment, i: int) -> set[int]:
        """Those that would be shown with passage `i`, were they not hidden."""
        near = range(max(i - self._reach, 0), min(i + self._reach + 1, len(segment))) if self._hidden else ()
        return {j for j in near if segment.passage(j).id in self._hidden}

    def _shown(self, opened: Opened, candidates: Candidates) -> Candidates:
        places = zip(candidates.segments.tolist(), candidates.ids.tolist(), strict=True)
        hidden = [opened.store.passage(place).id in self._hidden for place in places]
        return candidates.without(np.array(hidden, dtype=bool))

    def pick(
        self,
        opened: Opened,
        candidates: Candidates,
        vector: NDArray[np.float32],
        k: int,
        order: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Picked | str]]:
        """(number of a candidate, what becomes of it), best first: picked, or the reason why it was not."""
        texts: dict[str, int] = {}
        shown: dict[Place, int] = {}
        num_picked = 0
        for number in order if order is not None else range(len(candidates)):
            place = (int(candidates.segments[number]), int(candidates.ids[number]))
            segment = opened.store.segments[place[0]]
            text = folded(segment.own_text(place[1]))
            if place in shown:
                yield number, f"shown with {shown[place]}, its neighbour"
            elif text in texts:
                yield number, f"the same text as {texts[text]}"
            elif num_picked == k:
                yield number, f"{NOT_AMONG} the best {k}"
            else:
                num_picked += 1
                texts[text] = num_picked
                taken = {i for number_, i in shown if number_ == place[0]} | self._hidden_near(segment, place[1])
                ids = neighbourhood(segment, place[1], vector, self._reach, taken)
                shown.update(((place[0], i), num_picked) for i in ids)
                yield number, Picked(number, place, ids)

    def _hits(
        self,
        opened: Opened,
        candidates: Candidates,
        query: str,
        vector: NDArray[np.float32],
        words: WeightedQuery,
        k: int,
    ) -> list[Hit]:
        order, scores = self._order(opened, candidates, query, k)
        confidence = self.confidence(opened, candidates, words)
        settings = opened.store.manifest.settings.split
        overlapping = settings.stride < settings.window
        outcomes = self.pick(opened, candidates, vector, k, order)
        picked = islice((outcome for _, outcome in outcomes if isinstance(outcome, Picked)), k)
        return [
            Hit(joined(opened.store.segments[each.place[0]], each.ids, overlapping), scores[each.number], confidence)
            for each in picked
        ]

    def confidence(self, opened: Opened, candidates: Candidates, words: WeightedQuery) -> float:
        """See `Hit`: from the calibration of the index, or, where it has none, the best cosine."""
        if not len(candidates):
            return 0.0
        calibration = opened.store.manifest.calibration
        if calibration is None:
            return float(candidates.dense.max())
        return calibration.confidence(opened.judge.features(candidates, words))

    def _order(
        self, opened: Opened, candidates: Candidates, query: str, k: int
    ) -> tuple[Sequence[int], Mapping[int, float]]:
        """Numbers of candidates in the order in which they are picked, and the score of each."""
        if self._reranker is None:
            return range(len(candidates)), dict(enumerate(candidates.scores.tolist()))
        numbers = self._distinct(opened, candidates, self._num_texts(k))
        texts = [opened.store.segments[int(candidates.segments[i])].text(int(candidates.ids[i])) for i in numbers]
        scores = dict(zip(numbers, self._reranker.score(query, texts).tolist(), strict=True))
        return sorted(scores, key=lambda number: -scores[number]), scores

    def _num_texts(self, k: int) -> int:
        """How many different texts make `k` hits, even if each is shown with all its neighbours."""
        num = k * (1 + 2 * self._reach)
        return num if self._reranker is None else max(num, NUM_RERANKED)

    def _distinct(self, opened: Opened, candidates: Candidates, num: int) -> list[int]:
        """The numbers of the best `num` candidates; of those with the same text the first alone counts."""
        numbers: dict[str, int] = {}
        places = zip(candidates.segments.tolist(), candidates.ids.tolist(), strict=True)
        for number, (segment, i) in enumerate(places):
            numbers.setdefault(folded(opened.store.segments[segment].own_text(i)), number)
            if len(numbers) == num:
                break
        return list(numbers.values())


def _check_reach(reach: int) -> None:
    if reach < 0:
        raise ValueError(f"expand is {reach}; the number of neighbours must be at least 0")
