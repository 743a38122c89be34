"""An index on a Qdrant server, for corpora that outgrow one machine: uploaded from a local index, searched there.

    python -m retrieval upload --index indexes/docs --qdrant http://host:6333 --collection docs
    python chatbot/bot.py --index qdrant+http://host:6333/docs

The local index stays the one that is built and updated; see `uploading.py`, and `qdrant.py` for what a collection
looks like. Needs `pip install "parley[qdrant]"`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders import cached, open_encoder
from retrieval.index.encoder import check_fingerprint
from retrieval.passages import embedding_text, folded, subject
from retrieval.qdrant.connection import (
    DENSE,
    CollectionInfo,
    both_sides,
    connect,
    idf_of,
    one_line_errors,
    passage_of,
    probe,
    read_info,
    resolve,
)
from retrieval.qdrant.uploading import upload, upload_command
from retrieval.retriever import NUM_CANDIDATES
from retrieval.scoring.calibration import features
from retrieval.scoring.fusion import NUM_SMOOTHED, fuse, shares_of, smooth
from retrieval.scoring.lexical import WeightedQuery, parse_query
from retrieval.scoring.tokens import Tokenizer
from retrieval.search.filters import Filter
from retrieval.search.followups import mixed_vectors
from retrieval.types import Encoder, Hit, Passage

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

__all__ = ["QdrantRetriever", "is_remote", "open_remote", "upload", "upload_command"]

PREFIX = "qdrant+"
_MAX_CACHED_TERMS = 65_536


def is_remote(index: str) -> bool:
    """Whether an `--index` names a collection on a server, as in qdrant+http://host:6333/docs, and not a folder."""
    return index.startswith(PREFIX)


def open_remote(
    index: str, encoder: Encoder | None = None, device: str | None = None, where: Filter | None = None
) -> QdrantRetriever:
    """`QdrantRetriever.open` of qdrant+URL/COLLECTION; raises ValueError for another form."""
    url, _, collection = index.removeprefix(PREFIX).rpartition("/")
    if not is_remote(index) or not url or url.endswith("/") or not collection:
        raise ValueError(f"'{index}' is no remote index; write qdrant+http://HOST:6333/COLLECTION")
    return QdrantRetriever.open(url, unquote(collection), encoder, device, where=where)


@dataclass(frozen=True)
class _Found:
    """The candidates for one query, best first, with the ids of their points; n entries each, as in
    `ranking.Candidates`. term_weights: see `calibration.features`."""

    ids: list[Any]
    passages: list[Passage]
    dense: NDArray[np.float32]
    lexical: NDArray[np.float32]
    scores: NDArray[np.float64]
    upper_bound: float
    term_weights: dict[str, float]

    def __len__(self) -> int:
        return len(self.passages)

    def take(self, order: NDArray[np.int64]) -> _Found:
        """The candidates in another order."""
        ids, passages = ([values[i] for i in order.tolist()] for values in (self.ids, self.passages))
        arrays = {name: getattr(self, name)[order] for name in ("dense", "lexical", "scores")}
        return replace(self, ids=ids, passages=passages, **arrays)


class QdrantRetriever:
    """A `types.Searcher` over a collection that `upload` made. It ranks as the local `Retriever` does; neighbours and
    reranking are left to that one."""

    def __init__(
        self,
        client: QdrantClient,
        url: str,
        collection: str,
        info: CollectionInfo,
        encoder: Encoder,
        where: Filter | None = None,
    ) -> None:
        """See `open`, which checks that these belong together."""
        self._client, self._url, self._collection = client, url, collection
        self._info, self._encoder, self._where = info, cached(encoder), where or Filter()
        self._idf: dict[str, float] = {}  # of terms that were looked up since the last upload
        self._allowed: models.Filter | None = None
        self._is_resolved = not self._where

    @classmethod
    def open(
        cls,
        url: str,
        collection: str,
        encoder: Encoder | None = None,
        device: str | None = None,
        api_key: str | None = None,
        where: Filter | None = None,
    ) -> QdrantRetriever:
        """Open a collection with `encoder`, by default the one that it names, on `device`. `where`: the documents to
        look at. `api_key`: by default $QDRANT_API_KEY.

        Raises ValueError, with the remedy, where the server cannot be reached or refuses, the collection does not
        exist, is not ours or not complete, and for an encoder that is not the one the index was built with.
        """
        client = connect(url, api_key)
        info = _first_info(client, url, collection)
        if encoder is None:
            try:
                encoder = open_encoder(info.encoder.name, device)
            except ValueError as error:
                built = f"collection '{collection}' was built with encoder '{info.encoder.name}'"
                raise ValueError(f"{built}: {error}") from error
        _check_encoder(encoder, info, collection)
        return cls(client, url, collection, info, encoder, where)

    def __str__(self) -> str:
        held = self._info
        return f"{held.num_documents} documents ({held.num_passages} passages) in '{self._collection}' at {self._url}"

    @property
    def floor(self) -> float:
        """See `types.Searcher`; found when the index was built."""
        return self._info.floor

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        """See `types.Searcher`. Passages of the same text count once; a blank query finds nothing.

        Raises ValueError for k < 1, for a number of contexts that is not the number of queries, and, with the remedy,
        where the server does not answer.
        """
        if isinstance(queries, str):
            raise ValueError("queries must be a list of texts, not one text")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if contexts is not None and len(contexts) != len(queries):
            raise ValueError(f"there are {len(contexts)} contexts for {len(queries)} queries")
        results: list[list[Hit]] = [[] for _ in queries]
        asked = [i for i, query in enumerate(queries) if query.strip()]
        if not asked:
            return results
        self._refresh()
        texts, said = [queries[i] for i in asked], [contexts[i] if contexts else "" for i in asked]
        vectors = mixed_vectors(self._encoder, texts, said)
        words = [parse_query(query, context, self._info.lexical) for query, context in zip(texts, said, strict=True)]
        with one_line_errors(self._url):
            for i, found in zip(asked, self._candidates(vectors, words, k), strict=True):
                results[i] = self._hits(found, k)
        return results

    def limited(self, where: Filter) -> QdrantRetriever:
        """This retriever, over the documents that meet these conditions too."""
        narrower = copy.copy(self)
        narrower._where = Filter((*self._where.conditions, *where.conditions))
        narrower._allowed, narrower._is_resolved = None, not narrower._where
        return narrower

    def _refresh(self) -> None:
        """Notice an upload since the last search."""
        with one_line_errors(self._url):
            info = read_info(self._client, self._url, self._collection)
        if info != self._info:
            _check_encoder(self._encoder, info, self._collection)
            self._info, self._idf, self._is_resolved = info, {}, not self._where

    def _candidates(self, vectors: NDArray[np.float32], words: Sequence[WeightedQuery], k: int) -> list[_Found]:
        """For each query, enough candidates for `k` different texts where there are as many."""
        num = max(NUM_CANDIDATES, 2 * k)
        found = self._ask(vectors, words, num)
        for i, candidates in enumerate(found):
            wanted = num
            while len(candidates) >= wanted and len({folded(each.text) for each in candidates.passages}) < k:
                wanted *= 4
                candidates = self._ask(vectors[i : i + 1], words[i : i + 1], wanted)[0]
            found[i] = candidates
        return found

    def _ask(self, vectors: NDArray[np.float32], words: Sequence[WeightedQuery], num: int) -> list[_Found]:
        """One request for all queries: the best `num` of either side, each scored on both, and the idf of terms."""
        if not self._is_resolved:
            self._allowed, self._is_resolved = resolve(self._client, self._collection, self._where), True
        if len(self._idf) > _MAX_CACHED_TERMS:
            self._idf = {}
        idf = self._idf
        terms = sorted({term for query in words for term in query if term not in idf})
        requests = [probe(term) for term in terms]
        for vector, query in zip(vectors, words, strict=True):
            requests += both_sides(vector, query, num, self._allowed)
        answers = iter(self._client.query_batch_points(self._collection, requests))
        idf.update({term: idf_of(term, next(answers).points) for term in terms})
        absent = math.log(1 + (self._info.num_passages + 0.5) / 0.5)  # the idf of a document frequency of 0
        found = []
        for query in words:
            near, worded = next(answers).points, next(answers).points if query else []
            upper_bound = sum(weight * idf[term] for term, weight in query.items())
            term_weights = {term: weight * (idf[term] or absent) for term, weight in query.items()}
            found.append(self._fuse(near, worded, upper_bound, term_weights, num))
        return self._smooth(found)

    def _fuse(
        self, near: list[Any], worded: list[Any], upper_bound: float, term_weights: dict[str, float], num: int
    ) -> _Found:
        """`near`: all candidates with their payloads, scored by vector; `worded`: those that hold a word, by BM25."""
        bm25 = {point.id: point.score for point in worded}
        passages = [passage_of(point.payload) for point in near]
        dense = np.array([point.score for point in near], dtype=np.float32)
        lexical = np.array([bm25.get(point.id, 0.0) for point in near], dtype=np.float32)
        places = np.empty(len(near), dtype=np.int64)
        places[sorted(range(len(near)), key=lambda i: _natural(passages[i]))] = np.arange(len(near))
        ranks = _ranks(dense, places, num), np.where(lexical > 0, _ranks(lexical, places, num), 0)
        scores = fuse(dense, lexical, upper_bound, self._info.fusion, *ranks)
        found = _Found([point.id for point in near], passages, dense, lexical, scores, upper_bound, term_weights)
        return found.take(np.lexsort((places, -scores)))

    def _smooth(self, found: list[_Found]) -> list[_Found]:
        """The best candidates in the light of those like them, see `fusion.smooth`: one request for all vectors."""
        settings = self._info.fusion
        wanted = {point for each in found for point in each.ids[:NUM_SMOOTHED]}
        if settings.method != "weighted" or not settings.smoothing or not wanted:
            return found
        points: list[Any] = self._client.retrieve(
            self._collection, sorted(wanted), with_payload=False, with_vectors=[DENSE]
        )
        held = {point.id: point.vector[DENSE] for point in points}
        absent = [0.0] * self._info.encoder.dim  # deleted since the request before
        smoothed = []
        for each in found:
            vectors = np.array([held.get(point, absent) for point in each.ids[:NUM_SMOOTHED]], dtype=np.float32)
            titles = [subject(p.title, p.id.rpartition("#")[0]) for p in each.passages[:NUM_SMOOTHED]]
            scores, best = each.scores.copy(), slice(len(titles))
            shares = shares_of(each.lexical[best], each.upper_bound)
            scores[best] = smooth(scores[best], vectors.reshape(-1, len(absent)), settings, titles, shares)
            smoothed.append(replace(each, scores=scores).take(np.argsort(-scores, kind="stable")))
        return smoothed

    def _hits(self, found: _Found, k: int) -> list[Hit]:
        confidence = self._confidence(found)
        texts: set[str] = set()
        hits: list[Hit] = []
        for passage, score in zip(found.passages, found.scores.tolist(), strict=True):
            text = folded(passage.text)
            if text not in texts and len(hits) < k:
                texts.add(text)
                hits.append(Hit(passage, score, confidence))
        return hits

    def _confidence(self, found: _Found) -> float:
        """See `Hit`: from the calibration of the index, or, where it has none, the best cosine."""
        if not len(found):
            return 0.0
        calibration = self._info.calibration
        if calibration is None:
            return float(found.dense.max())
        terms = Tokenizer(self._info.lexical.language).tokens(embedding_text(found.passages[0]))
        return calibration.confidence(features(found.dense, found.term_weights, set(terms)))


def _ranks(scores: NDArray[np.float32], places: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """For each candidate its rank by score, from 1; 0 for those after the first `num`."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.lexsort((places, -scores))] = np.arange(1, len(scores) + 1)
    return np.where(ranks <= num, ranks, 0)


def _natural(passage: Passage) -> tuple[str, int, int, str]:
    """Sorts passages about as the index has them, to order equal scores."""
    return passage.source, passage.start, len(passage.id), passage.id


def _first_info(client: QdrantClient, url: str, collection: str) -> CollectionInfo:
    with one_line_errors(url):
        info = read_info(client, url, collection) if client.collection_exists(collection) else None
    remedy = f"python -m retrieval upload --index DIR --qdrant {url} --collection {collection}"
    if info is None:
        raise ValueError(f"there is no collection '{collection}' at {url}; upload an index with: {remedy}")
    if not info.complete:
        raise ValueError(f"the upload of collection '{collection}' at {url} did not end; start it again: {remedy}")
    return info


def _check_encoder(encoder: Encoder, info: CollectionInfo, collection: str) -> None:
    remedy = "pass --encoder with that one, or build the index anew with yours and upload it again"
    check_fingerprint(encoder, info.encoder, f"collection '{collection}'", remedy)
