"""The words of retrieval: Document, Passage, Hit, and the two protocols that the rest of Parley talks to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Unit = Literal["line", "page", "record", "paragraph"]
_UNIT_SHORT = {"page": "p.", "paragraph": "par."}
MetaValue = str | int | float | bool


@dataclass(frozen=True)
class Block:
    """A paragraph of a document: its text on one line (code and tables keep their line breaks), where in the source
    file it stands (`start` to `end`, 1-based, in the document's `unit`), and the heading above it ('' for none)."""

    text: str
    start: int
    end: int
    heading: str = ""


@dataclass(frozen=True)
class Document:
    """One source text. `id` is unique in an index, `source` is what a citation shows (a path as the user gave it).

    `unit` is what `Block.start` and `end` count: lines, pages (pdf), paragraphs (docx) or records (a document that is
    itself one record of its file). `meta` is what came with the document beside its text; searches can be limited to
    values in it.
    """

    id: str
    blocks: tuple[Block, ...]
    title: str
    source: str
    meta: Mapping[str, MetaValue] = field(default_factory=dict)
    unit: Unit = "line"

    @property
    def text(self) -> str:
        """The paragraphs, separated by blank lines."""
        return "\n\n".join(block.text for block in self.blocks)


@dataclass(frozen=True)
class SourceFile:
    """A file to read. `source` is its path as the user gave it, joined with the part inside the folder `folder` (or
    beside the pattern) where it was found; `folder` is '' for a file that the user named. `size` is in bytes. Links
    may not lead out of `root`."""

    path: Path
    source: str
    folder: str
    size: int
    mtime_ns: int
    root: Path | None = None


@dataclass(frozen=True)
class Passage:
    """A piece of one document, small enough to search and to quote. `start`, `end`, `unit`: see `Document`.

    injection: the probability that it is written to instruct the model that reads it; None where nobody has judged.
    """

    id: str
    text: str
    title: str
    source: str
    start: int
    end: int
    unit: Unit = "line"
    meta: Mapping[str, MetaValue] = field(default_factory=dict)
    injection: float | None = None

    @property
    def location(self) -> str:
        """`file:line`, as compilers and editors write it; `file p. 3`, `file par. 12`, `file record 7` for the rest."""
        if self.unit == "line":
            return f"{self.source}:{self.start}"
        return f"{self.source} {_UNIT_SHORT.get(self.unit, self.unit)} {self.start}"


@dataclass(frozen=True)
class Hit:
    """A passage that a search found. Higher `score` is better, always; the hits of a search come best first. It is
    what the search ordered by last: the fused score, or, with a reranker, the reranker's.

    `confidence`, the same for all hits of a search, says how far the search trusts that the documents answer the query
    at all: compare it with `Searcher.floor`.
    """

    passage: Passage
    score: float
    confidence: float = 1.0


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

    @property
    def max_length(self) -> int:
        """How many tokens of a text are read; the rest is ignored."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32, each row of unit length, in the order of `texts`."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """For each text its tokens, without those that the encoder adds around a text, and without a limit."""
        ...


class Screener(Protocol):
    """Judges passages when they are indexed; its scores are kept with them, as `Passage.injection`."""

    @property
    def name(self) -> str:
        """What to ask the plugin 'parley.screener' for to get this screener again."""
        ...

    @property
    def encoder(self) -> str:
        """The name of the encoder whose vectors it reads; where others are given, it makes its own."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two screeners only if they give the same scores."""
        ...

    def screen(self, texts: Sequence[str], vectors: NDArray[np.float32], encoder: str) -> NDArray[np.float32]:
        """(n,) probabilities, higher is worse; NaN for a text it cannot judge. `vectors`: (n, dim), what the encoder
        called `encoder` makes of these texts."""
        ...


class Searcher(Protocol):
    """Whatever can search: the local Retriever, a remote one, a fake."""

    @property
    def floor(self) -> float:
        """The confidence below which the documents do not answer a query; see `Hit`."""
        ...

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        """Best first, at most `k` hits for each query. `contexts[i]` is the earlier conversation of query i, or ''."""
        ...
