"""Document -> Passages: windows of a few sentences, never across headings or documents, never too short or too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

from sentencex import segment

from retrieval.types import Block, Document, Passage

MIN_MAX_CHARS = 50
MIN_MAX_TOKENS = 16
MAX_TITLE_CHARS = 200  # it stands before the text of every passage, which should still be what the vector is about


@dataclass(frozen=True)
class SplitSettings:
    """How documents are cut; an index remembers its own.

    window: sentences in a passage. stride: sentences from the start of one to the start of the next; less than
    `window` makes neighbours overlap. min_chars: a shorter passage is joined with the next one under the same
    heading, or with the one before. max_chars, max_tokens: no passage is longer, in characters or in tokens of the
    encoder; of the tokens an encoder reads at a time, the title needs some.

    Raises ValueError for values out of range.
    """

    window: int = 3
    stride: int = 3
    min_chars: int = 200
    max_chars: int = 1200
    max_tokens: int = 224

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window is {self.window}; it must be at least 1 sentence")
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"stride is {self.stride}; it must be from 1 to the window ({self.window})")
        if self.min_chars < 0:
            raise ValueError(f"min_chars is {self.min_chars}; it must be at least 0")
        if self.max_chars < MIN_MAX_CHARS:
            raise ValueError(f"max_chars is {self.max_chars}; it must be at least {MIN_MAX_CHARS}")
        if self.max_tokens < MIN_MAX_TOKENS:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least {MIN_MAX_TOKENS}")


@dataclass(frozen=True)
class _Unit:
    """A sentence or a line: what is never cut. `glue` stands before it where it is not the first of a passage."""

    text: str
    glue: str
    start: int
    end: int


CountTokens = Callable[[Sequence[str]], list[int]]


def split(
    document: Document, settings: SplitSettings | None = None, count_tokens: CountTokens | None = None
) -> Iterator[Passage]:
    """The passages of a document, in order; with stride equal to window they hold each word of it exactly once.

    `count_tokens` is the encoder's (`Encoder.count_tokens`); without it `max_tokens` is not looked at.

    `title` is the document's, with the heading after ' > ' where there is one, 200 characters at most. `start` and
    `end` are the lines of the paragraphs that a passage takes text from; within code and tables they are exact.
    """
    settings = settings or SplitSettings()
    number = 0
    for heading, blocks in groupby(document.blocks, key=lambda block: block.heading):
        title = f"{document.title} > {heading}" if heading not in ("", document.title) else document.title
        title = title if len(title) <= MAX_TITLE_CHARS else title[: MAX_TITLE_CHARS - 1] + "…"
        for units in _Section(list(blocks), settings, count_tokens).passages():
            text = units[0].text + "".join(unit.glue + unit.text for unit in units[1:])
            place = (document.source, units[0].start, units[-1].end, document.unit, document.meta)
            yield Passage(f"{document.id}#{number}", text, title, *place)
            number += 1


def embedding_text(passage: Passage) -> str:
    """What an encoder is given for a passage: the title makes it findable by words that its text leaves out."""
    return titled(passage.title, passage.text)


def subject(title: str, document: str) -> str:
    """A passage's title without the heading above it; for documents without a title, the document's id."""
    return title.partition(" > ")[0] or document


def folded(text: str) -> str:
    """What texts that count as one have in common: case and white space make no difference."""
    return " ".join(text.casefold().split())


def titled(title: str, text: str) -> str:
    """`text` with its title before it, where it has one."""
    return f"{title}. {text}" if title else text


class _Section:
    """The blocks under one heading as a list of units; passages are ranges (i, j) of it, so they never repeat text."""

    def __init__(self, blocks: list[Block], settings: SplitSettings, count_tokens: CountTokens | None) -> None:
        self.settings = settings
        self.units: list[_Unit] = []
        self.tokens: list[int] = []
        self.blocks: list[tuple[int, int, bool]] = []  # for each block its first unit, the one after its last, is code
        for block in blocks:
            first = len(self.units)
            is_code = "\n" in block.text
            units = list(_lines(block, settings.max_chars) if is_code else _sentences(block, settings.max_chars))
            self._add(units, count_tokens)
            self.blocks.append((first, len(self.units), is_code))
        self.ends = [0, *accumulate(len(unit.glue) + len(unit.text) for unit in self.units)]
        self.token_ends = [0, *accumulate(self.tokens)]

    def _add(self, units: list[_Unit], count_tokens: CountTokens | None) -> None:
        """Append units, those with more tokens than a passage may have in halves."""
        numbers = count_tokens([unit.text for unit in units]) if count_tokens and units else [0] * len(units)
        for unit, number in zip(units, numbers, strict=True):
            if number > self.settings.max_tokens and len(unit.text) > 1:
                pieces = _cut(unit.text, (len(unit.text) + 1) // 2, unit.glue)
                self._add([replace(unit, text=text, glue=glue) for glue, text in pieces], count_tokens)
            else:
                self.units.append(unit)
                self.tokens.append(number)

    def size(self, i: int, j: int) -> int:
        """Characters of the passage that units i to j - 1 make."""
        return self.ends[j] - self.ends[i] - len(self.units[i].glue)

    def fits(self, i: int, j: int, share: int = 1) -> bool:
        """Whether units i to j - 1 make a passage of at most 1/`share` of the characters, and of the tokens allowed."""
        num_tokens = self.token_ends[j] - self.token_ends[i]
        return self.size(i, j) * share <= self.settings.max_chars and num_tokens <= self.settings.max_tokens

    def passages(self) -> Iterator[list[_Unit]]:
        """Windows, the short ones joined."""
        joined: list[tuple[int, int]] = []
        for i, j in self._windows():
            if joined and self._is_short(*joined[-1]) and self.fits(joined[-1][0], j):
                joined[-1] = (joined[-1][0], j)
            else:
                joined.append((i, j))
        if len(joined) > 1 and self._is_short(*joined[-1]) and self.fits(joined[-2][0], joined[-1][1]):
            _, end = joined.pop()
            joined[-1] = (joined[-1][0], end)
        for i, j in joined:
            yield self.units[i:j]

    def _windows(self) -> Iterator[tuple[int, int]]:
        for first, last, is_code in self.blocks:
            # Code and tables take an encoder about twice the tokens that prose of the same length does, and it reads
            # only the first 256 or so: keep them to half the length, but do not break them into windows.
            share = 2 if is_code else 1
            window, stride = (last, last) if is_code else (self.settings.window, self.settings.stride)
            start = first
            while start < last:
                end = start + 1
                while end < min(last, start + window) and self.fits(start, end + 1, share):
                    end += 1
                yield start, end
                start = last if end == last else min(start + stride, end)

    def _is_short(self, i: int, j: int) -> bool:
        return self.size(i, j) < self.settings.min_chars


def _sentences(block: Block, limit: int) -> Iterator[_Unit]:
    """Sentences, the over-long ones cut. A number on its own ('1.') belongs to the sentence after it."""
    glue = "\n"
    pending = ""
    segments = segment("en", block.text)
    for i, sentence in enumerate(segments):
        pending += sentence
        if i + 1 < len(segments) and len(pending) < 10 and not any(character.isalpha() for character in pending):
            continue
        for unit_glue, text in _cut(pending.strip(), limit, glue):
            yield _Unit(text, unit_glue, block.start, block.end)
        glue = " " if pending[-1:].isspace() else ""
        pending = ""


def _lines(block: Block, limit: int) -> Iterator[_Unit]:
    """Lines with their indentation, the over-long ones cut; blank lines become part of the glue."""
    lines = block.text.split("\n")
    exact = block.end - block.start == len(lines) - 1  # not so where <br> broke the lines
    glue = "\n"
    for i, line in enumerate(lines):
        if not line.strip():
            glue += "\n"
            continue
        start, end = (block.start + i, block.start + i) if exact else (block.start, block.end)
        for unit_glue, text in _cut(line, limit, glue):
            yield _Unit(text, unit_glue, start, end)
        glue = "\n"


def _cut(text: str, limit: int, glue: str) -> Iterator[tuple[str, str]]:
    """(glue, piece) pairs of at most `limit` characters a piece, cut at a space where there is one."""
    start = 0
    while len(text) - start > limit:
        space = text.rfind(" ", start + 1, start + limit + 1)
        end = space if space > 0 else start + limit
        if text[start:end].strip():
            yield glue, text[start:end]
            glue = ""
        start = end + (space > 0)
        glue = " " if space > 0 else glue
    if text[start:].strip():
        yield glue, text[start:]
