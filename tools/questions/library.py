"""The index that questions are made from: its passages, searches in it, and which passages say the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from retrieval.confidence.questions import DUPLICATE_COSINE
from retrieval.index.store import Place
from retrieval.passages import folded
from retrieval.retriever import Retriever
from retrieval.types import Hit, Passage

_BLOCK = 65536  # passages whose vectors are compared at a time


class Library:
    """A local index, as it was when it was opened."""

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self._store = retriever.current().store

    @classmethod
    def open(cls, index: str | Path) -> Library:
        """Raises ValueError, with the remedy, for an index that is missing or damaged."""
        return cls(Retriever.open(index))

    def __len__(self) -> int:
        return len(self._store)

    def drawn(self, min_chars: int, seed: int, dropped: Counter[str]) -> list[Place]:
        """Where all passages of `min_chars` or more stand, those of the same text once, in an order that follows from
        `seed`. `dropped` counts the others by reason."""
        seen: set[int] = set()
        places: list[Place] = []
        for place, passage in self._store.live_passages():
            text = hash(folded(passage.text))
            if len(passage.text) < min_chars:
                dropped["passages shorter than --min-chars"] += 1
            elif text in seen:
                dropped["passages of the same text as another"] += 1
            else:
                seen.add(text)
                places.append(place)
        random.Random(seed).shuffle(places)  # noqa: S311  # no secret
        return places

    def passage(self, place: Place) -> Passage:
        """The passage that stands there."""
        return self._store.passage(place)

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The `k` best hits of each question, as the bot searches for a question that stands alone."""
        return self.retriever.search(questions, k)

    @cached_property
    def _places(self) -> dict[str, Place]:
        return {passage.id: place for place, passage in self._store.live_passages()}

    def twins(self, passages: Iterable[Passage]) -> dict[str, frozenset[str]]:
        """For the id of each of `passages` the ids of all that say nearly the same, its own among them: their vectors'
        cosine is `DUPLICATE_COSINE` or more."""
        ids = sorted({passage.id for passage in passages})
        found: dict[str, set[str]] = {each: {each} for each in ids}
        if not ids:
            return {}
        places = [self._places[each] for each in ids]
        wanted = np.stack([self._store.segments[segment].vectors[i] for segment, i in places])
        for segment in self._store.segments:
            live = segment.live()
            for start in range(0, len(segment), _BLOCK):
                alike = segment.vectors[start : start + _BLOCK] @ wanted.T >= DUPLICATE_COSINE
                for i, number in np.argwhere(alike & live[start : start + _BLOCK, None]).tolist():
                    found[ids[number]].add(segment.passage(start + i).id)
        return {each: frozenset(others) for each, others in found.items()}
