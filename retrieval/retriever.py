"""Search over an index: dense retrieval by the encoder that built it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders import open_encoder
from retrieval.manifest import Manifest
from retrieval.store import Store
from retrieval.types import Encoder, Hit

# A follow-up question is searched for by a mix of itself and itself after the conversation. On conversational
# questions this found far more than the last turn alone (nDCG@10 .83 against .76) or all turns in one (.57).
QUERY_WEIGHT = 0.7
CONTEXT_WEIGHT = 0.3
# Encoders read a text from its start, the usual ones 256 tokens of it: of a long conversation take the end, so that
# the query, which comes after it, is not what they leave out.
CONTEXT_CHARS = 800


class Retriever:
    """A `types.Searcher` over an index on disk. Scores are cosines in [-1, 1]."""

    def __init__(self, store: Store, encoder: Encoder) -> None:
        self._store = store
        self._encoder = encoder

    @classmethod
    def open(cls, path: str | Path, encoder: Encoder | None = None, device: str | None = None) -> Retriever:
        """Open the index at `path` with `encoder`, by default the one that its manifest names, on `device`.

        Raises ValueError, with the remedy, for an index that is missing or damaged, for an encoder that cannot be
        loaded, and for one that is not the encoder the index was built with.
        """
        store = Store(path)
        built_with = store.manifest.encoder
        if encoder is None:
            try:
                encoder = open_encoder(built_with.name, device)
            except ValueError as error:
                raise ValueError(f"index '{path}' was built with encoder '{built_with.name}': {error}") from error
        if encoder.fingerprint != built_with.fingerprint:
            raise ValueError(
                f"index '{path}' was built with encoder '{built_with.name}' "
                f"(fingerprint {built_with.fingerprint[:12]}), which encoder '{encoder.name}' "
                f"({encoder.fingerprint[:12]}) is not; rebuild it with: python -m retrieval build DOCUMENTS "
                f"--index {path} --encoder {encoder.name}, or pass --encoder with the one it was built with"
            )
        return cls(store, encoder)

    def __str__(self) -> str:
        held = self._store.manifest
        return f"{held.num_documents} documents ({held.num_passages} passages)"

    @property
    def floor(self) -> float:
        """See `types.Searcher`; set when the index was built."""
        return self._store.manifest.floor

    @property
    def manifest(self) -> Manifest:
        """What the index holds and how it was made."""
        return self._store.manifest

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        """See `types.Searcher`. Passages of the same text count once; a blank query finds nothing.

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
            vectors = self._query_vectors([queries[i] for i in asked], [contexts[i] if contexts else "" for i in asked])
            for i, hits in zip(asked, self._nearest(vectors, k), strict=True):
                results[i] = hits
        return results

    def _query_vectors(self, queries: Sequence[str], contexts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) unit vectors, each mixed with its context where that is not blank; one call to the encoder."""
        followups = [i for i, context in enumerate(contexts) if context.strip()]
        vectors = self._encoder.encode(
            [*queries, *(f"{contexts[i].strip()[-CONTEXT_CHARS:]}\n{queries[i]}" for i in followups)]
        )
        own, whole = vectors[: len(queries)].copy(), vectors[len(queries) :]
        own[followups] = QUERY_WEIGHT * own[followups] + CONTEXT_WEIGHT * whole
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        return own

    def _nearest(self, vectors: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """The `k` best different texts for each vector; looks further where texts repeat."""
        fetch = min(k + 8, len(self._store))
        while True:
            found = [self._distinct(row, k) for row in self._store.vectors.search(vectors, fetch)]
            if fetch == len(self._store) or all(len(hits) == k for hits in found):
                return found
            fetch = min(4 * fetch, len(self._store))

    def _distinct(self, row: Iterable[tuple[int, float]], k: int) -> list[Hit]:
        hits: list[Hit] = []
        seen: set[str] = set()
        for i, score in row:
            passage = self._store.passage(i)
            text = " ".join(passage.text.casefold().split())
            if text not in seen:
                seen.add(text)
                hits.append(Hit(passage, score))
            if len(hits) == k:
                break
        return hits
