"""HTML: paragraphs, list items, table rows and preformatted text as blocks, with the source lines they stand on.

Reads any tag soup without building a tree, so that neither missing end tags nor very deep nesting are a problem.
"""

from __future__ import annotations

from collections import Counter
from html import unescape

from retrieval.readers.outline import Outline
from retrieval.readers.tags import tokens
from retrieval.types import Block

_DROPPED = frozenset({"script", "style", "noscript", "template", "svg"})
_CELLS = frozenset({"td", "th"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_OTHER_BLOCKS = """
    address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure
    footer form header hr html li main menu nav ol option p pre section select summary table tbody tfoot thead tr ul
"""
_BLOCKS = _HEADINGS | frozenset(_OTHER_BLOCKS.split())
_BAR = " | "  # between the cells of a table row


def read_html(text: str) -> tuple[str, list[Block]]:
    """Title ('' if there is none) and blocks of an HTML page with '\\n' line ends.

    The title is <title>, else the first <h1>. A table row is one block, its cells joined by ' | '; <pre> keeps its
    line breaks; every other block is on one line. Scripts, styles, templates and the rest of <head> are dropped.
    """
    reader = _Reader()
    line, counted = 1, 0
    for token in tokens(text):
        line += text.count("\n", counted, token.position)
        counted = token.position
        if token.kind == "text":
            reader.text(token.value, line)
        elif token.kind == "start":
            reader.start_tag(token.value)
        else:
            reader.end_tag(token.value)
    reader.end_block()
    return reader.title, reader.blocks


class _Reader:
    """Gathers text until a block-level tag begins or ends, then turns it into a block, a heading or the title."""

    def __init__(self) -> None:
        self.title = ""
        self.blocks: list[Block] = []
        self._outline = Outline()
        self._gathered: list[str] = []
        self._start = self._end = 0  # lines of the first and last visible text gathered
        self._dropped: list[str] = []  # the open elements whose text nobody should see
        self._num_dropped: Counter[str] = Counter()  # the same by name
        self._in_head = self._in_title = self._in_pre = self._in_row = False
        self._level = 0  # of the heading that is open; 0: none

    def start_tag(self, tag: str) -> None:
        if tag in _DROPPED:
            self._dropped.append(tag)
            self._num_dropped[tag] += 1
        if self._dropped:
            return
        if tag == "title" and not self.title:
            self.end_block()
            self._in_title = True
        elif tag in _BLOCKS:
            self._boundary(tag)
            self._in_head = False
            self._in_pre = self._in_pre or tag == "pre"
            self._in_row = self._in_row or tag == "tr"
            self._level = int(tag[1]) if tag in _HEADINGS else self._level
        elif tag == "head":
            self._in_head = True
        elif tag in _CELLS and self._gathered:
            self._gathered.append(_BAR)
        elif tag == "br":
            self._gathered.append("\n")

    def end_tag(self, tag: str) -> None:
        while self._num_dropped[tag]:
            closed = self._dropped.pop()
            self._num_dropped[closed] -= 1
            if closed == tag:
                break
        if self._dropped:
            return
        if tag == "title" and self._in_title:
            self.end_block()
        elif tag in _BLOCKS:
            self._boundary(tag)
            self._in_pre = self._in_pre and tag != "pre"
            self._in_row = self._in_row and tag not in ("tr", "table")
            self._level = 0 if tag in _HEADINGS else self._level
        elif tag == "head":
            self._in_head = False

    def text(self, data: str, line: int) -> None:
        """Take text as it stands in the source, from `line` on."""
        if self._dropped or (self._in_head and not self._in_title):
            return
        self._gathered.append(unescape(data))
        if not self._gathered[-1].isspace():
            self._start = self._start or line + data[: len(data) - len(data.lstrip())].count("\n")
            self._end = line + data.rstrip().count("\n")

    def _boundary(self, tag: str) -> None:
        """End the block, except for what stands inside a table row: that stays on the row's one line."""
        if self._in_row and tag not in _HEADINGS and tag not in ("tr", "table"):
            self._gathered.append(" ")
        else:
            self.end_block()

    def end_block(self) -> None:
        """Turn the text gathered so far into the title, a heading or a block."""
        text = "".join(self._gathered)
        text = _trim_lines(text) if self._in_pre else " ".join(text.split())
        text = text.strip(_BAR) if self._in_row else text  # no bars for empty cells at either end
        start, end = self._start, self._end
        self._gathered, self._start, self._end = [], 0, 0
        if self._in_title:
            self.title, self._in_title = text, False
        elif text and self._level:
            self._enter(self._level, " ".join(text.split()).rstrip("¶ "))
            self._level = 0  # whatever follows before the end tag is not part of the heading
        elif text and start:
            self.blocks.append(Block(text, start, end, self._outline.path))

    def _enter(self, level: int, heading: str) -> None:
        if level == 1 and not self.title:
            self.title = heading
        self._outline.enter(level, "" if heading == self.title else heading)


def _trim_lines(text: str) -> str:
    """Preformatted text without blank lines at either end and without spaces at line ends."""
    lines = [line.rstrip() for line in text.split("\n")]
    full = [i for i, line in enumerate(lines) if line]
    return "\n".join(lines[full[0] : full[-1] + 1]) if full else ""
