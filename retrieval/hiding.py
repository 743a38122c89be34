"""Searching as if some passages were not in the index: to ask what the documents would answer without them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.types import Encoder, Hit, Searcher


def without(searcher: Searcher, hidden: Collection[str]) -> Searcher:
    """`searcher`, as if the passages with the ids `hidden` were not there.

    One that can leave them out itself (`without`, as a Retriever has) has the confidence of a search that does not find
    them; any other one keeps the confidence of a search that does, so that its floor refuses less.
    """
    able: Any = searcher
    return able.without(hidden) if hasattr(able, "without") else Without(searcher, frozenset(hidden))


@dataclass(frozen=True)
class Without:
    """A searcher that leaves out the passages with the ids `hidden`. Its confidence is as if it did not."""

    searcher: Searcher
    hidden: frozenset[str]

    @property
    def floor(self) -> float:
        """See `retrieval.types.Searcher`."""
        return self.searcher.floor

    @property
    def encoder(self) -> Encoder | None:
        """What encodes the queries, where the searcher says."""
        return getattr(self.searcher, "encoder", None)

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        """See `retrieval.types.Searcher`."""
        found = self.searcher.search(queries, k + len(self.hidden), contexts)
        return [[hit for hit in hits if hit.passage.id not in self.hidden][:k] for hits in found]
