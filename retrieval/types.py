"""The words of retrieval: Document, Passage, Hit, and the two protocols that the rest of Parley talks to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Block:
    """A paragraph of a document: its text on one line (code and tables keep their line breaks), the 1-based lines
    `start` to `end` of the source file that it stands on, and the heading it stands under ('' for none)."""

    text: str
    start: int
    end: int
    heading: str = ""


@dataclass(frozen=True)
class Document:
    """One source text. `id` is unique in an index, `source` is what a citation shows (a path as the user gave it)."""

    id: str
    blocks: tuple[Block, ...]
    title: str
    source: str
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The paragraphs, separated by blank lines."""
        return "\n\n".join(block.text for block in self.blocks)


@dataclass(frozen=True)
class Passage:
    """A piece of one document, small enough to search and to quote. `start` and `end` are 1-based source lines."""

    id: str
    text: str
    title: str
    source: str
    start: int
    end: int

    @property
    def location(self) -> str:
        """`file:line`, as compilers and editors write it."""
        return f"{self.source}:{self.start}"


@dataclass(frozen=True)
class Hit:
    """A passage that a search found. Higher score is better, always; dense search scores are cosines in [-1, 1]."""

    passage: Passage
    score: float


class Encoder(Protocol):
    """Texts to unit vectors."""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def name(self) -> str:
        """What to pass to `open_encoder` to get this encoder again."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two encoders only if they give the same vectors; an index refuses any other."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, each row of unit length, in the order of `texts`."""
        ...


class Searcher(Protocol):
    """Whatever can search: the local Retriever, a remote one, a fake."""

    @property
    def floor(self) -> float:
        """The score below which a hit says nothing: with no hit at or above it, the documents do not answer."""
        ...

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        """Best first, at most `k` hits for each query. `contexts[i]` is the earlier conversation of query i, or ''."""
        ...
