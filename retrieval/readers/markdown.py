"""Markdown: headings become title and outline, paragraphs and list items blocks; code and tables keep their lines.

A light reader in the spirit of CommonMark (https://spec.commonmark.org), for searching and quoting rather than for
rendering. Where a rule of CommonMark could swallow text (an unclosed comment, a long setext heading), text wins.
"""

from __future__ import annotations

import re
import textwrap

from retrieval.readers.outline import Outline
from retrieval.types import Block

# All patterns run in linear time: no two neighbouring repeats can match the same character.
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s")
_QUOTE = re.compile(r"^ {0,3}(?:>[ \t]?)+")
_FRONT_MATTER_KEY = re.compile(r"\w[\w .-]*:")
_COMMENT = re.compile(r"(?<!`)<!--")

_CODE_SPAN = re.compile(r"(`+[^`]*`+)")
_TARGET = r"\([^()]*(?:\([^()]*\)[^()]*)?\)"
_IMAGE = re.compile(r"!\[[^\[\]]*\]" + _TARGET)
_LINK = re.compile(r"(?<!\\)\[([^\[\]]*)\]" + _TARGET)
_STARS = re.compile(r"(?<![\\*])(\*{1,3})(?=[^\s*])([^*]*[^\s*\\])\1(?!\*)")
_UNDERSCORES = re.compile(r"(?<![\\\w])(_{1,3})(?=[^\s_])([^_]*[^\s_\\])\1(?!\w)")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")


def read_markdown(text: str) -> tuple[str, list[Block]]:
    """Title ('' if there is none) and blocks of a Markdown text with '\\n' line ends.

    The title is the first level-1 heading, else the front matter's `title:`. Code and tables are blocks whose text
    keeps its line breaks; every other block is on one line.
    """
    return _Reader(text.split("\n")).read()


class _Reader:
    """Reads line by line; each step consumes a line, a fenced block or a table."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.blocks: list[Block] = []
        self.outline = Outline()
        self.title = ""
        self.paragraph: list[str] = []  # the lines so far of an unfinished paragraph, which began on line `start`
        self.start = 0
        self.in_comment = False
        self.last_comment_end = max((i for i, line in enumerate(lines) if "-->" in line), default=-1)

    def read(self) -> tuple[str, list[Block]]:
        front_title, i = _front_matter(self.lines)
        while i < len(self.lines):
            i = self._step(i)
        self._end_paragraph(len(self.lines))
        return self.title or front_title, self.blocks

    def _step(self, i: int) -> int:
        """Consume the line with index i, and more where it opens a fence or a table; return the next index."""
        quoted = _QUOTE.match(self.lines[i]) is not None
        line = _QUOTE.sub("", self.lines[i])
        if not self.in_comment and (fence := _FENCE.match(line)):
            self._end_paragraph(i)
            return self._code(i, fence[1], quoted)
        line = self._without_comments(i, line)
        if self._is_table(i, line):
            self._end_paragraph(i)
            return self._table(i)
        if atx := _ATX.match(line):
            self._end_paragraph(i)
            self._enter(len(atx[1]), _without_closing_hashes(line[atx.end() :]))
        elif self._is_underline(line):
            heading, self.paragraph = self.paragraph[0], []
            self._enter(1 if "=" in line else 2, heading)
        elif not line.strip() or _RULE.match(line):
            self._end_paragraph(i)
        else:
            if _ITEM.match(line):
                self._end_paragraph(i)
            if not self.paragraph:
                self.start = i + 1
            self.paragraph.append(line)
        return i + 1

    def _end_paragraph(self, end: int) -> None:
        """Turn the lines gathered so far into a block that ends on line `end`."""
        if text := clean(" ".join(self.paragraph)):
            self.blocks.append(Block(text, self.start, end, self.outline.path))
        self.paragraph = []

    def _enter(self, level: int, heading: str) -> None:
        heading = clean(heading)
        if level == 1 and heading and not self.title:
            self.title, heading = heading, ""
        self.outline.enter(level, heading)

    def _is_underline(self, line: str) -> bool:
        # Several lines of text above a dashed line are more likely a paragraph and a rule than a long heading.
        return len(self.paragraph) == 1 and not _ITEM.match(self.paragraph[0]) and _SETEXT.match(line) is not None

    def _without_comments(self, i: int, line: str) -> str:
        """The line without HTML comments, which may begin above it and end below it."""
        kept: list[str] = []
        position, last_end = 0, line.rfind("-->")
        while position < len(line):
            if self.in_comment:
                end = line.find("-->", position)
                self.in_comment = end == -1
                position = len(line) if end == -1 else end + 3
            elif (opening := _COMMENT.search(line, position)) and (
                opening.end() <= last_end or i < self.last_comment_end
            ):
                kept.append(line[position : opening.start()])
                position = opening.end()
                self.in_comment = True
            else:
                kept.append(line[position:])
                break
        return "".join(kept)

    def _code(self, i: int, fence: str, quoted: bool) -> int:
        """Add the lines up to the closing fence, or to the end of the text, as one block."""
        first = end = i + 1
        lines: list[str] = []
        while end < len(self.lines):
            line = _QUOTE.sub("", self.lines[end]) if quoted else self.lines[end]
            end += 1
            if (mark := line.strip()).startswith(fence) and not mark.strip(fence[0]):
                break
            lines.append(line.rstrip())
        self._add_lines(textwrap.dedent("\n".join(lines)).split("\n"), first + 1)
        return end

    def _is_table(self, i: int, line: str) -> bool:
        """A row with a bar in it, above a line like `|---|:-:|`."""
        if "|" not in line or i + 1 >= len(self.lines):
            return False
        below = _QUOTE.sub("", self.lines[i + 1])
        return "|" in below and "-" in below and not below.strip(" \t|:-")

    def _table(self, i: int) -> int:
        rows: list[str] = []
        end = i
        while end < len(self.lines) and "|" in self.lines[end]:
            rows.append(clean(_QUOTE.sub("", self.lines[end])))
            end += 1
        rows[1] = re.sub("-+", "---", rows[1])  # a drawn-out rule would fill the encoder's window with dashes
        self._add_lines(rows, i + 1)
        return end

    def _add_lines(self, lines: list[str], start: int) -> None:
        """Add a block that keeps its line breaks, without blank lines at either end."""
        full = [i for i, line in enumerate(lines) if line]
        if full:
            text = "\n".join(lines[full[0] : full[-1] + 1])
            self.blocks.append(Block(text, start + full[0], start + full[-1], self.outline.path))


def _front_matter(lines: list[str]) -> tuple[str, int]:
    """Its title ('' if none) and the index of the first line after it; ('', 0) where there is no front matter."""
    if len(lines) < 2 or lines[0].rstrip() != "---" or not _FRONT_MATTER_KEY.match(lines[1]):
        return "", 0
    for end in range(1, len(lines)):
        if lines[end].rstrip() in ("---", "..."):
            titles = [line.partition(":")[2] for line in lines[1:end] if line.startswith("title:")]
            return (" ".join(titles[0].split()).strip("\"'") if titles else ""), end + 1
    return "", 0


def _without_closing_hashes(heading: str) -> str:
    """'Setup ##' -> 'Setup', but 'C#' stays."""
    heading = heading.strip()
    bare = heading.rstrip("#")
    return bare if bare != heading and (not bare or bare[-1] in " \t") else heading


def clean(text: str) -> str:
    """Markdown inline text on one line, without emphasis marks, images and link targets; code spans stay as is."""
    parts = _CODE_SPAN.split(" ".join(text.split()))
    parts[::2] = map(_clean_prose, parts[::2])  # every second part is a code span
    return " ".join("".join(parts).split())


def _clean_prose(text: str) -> str:
    text = _LINK.sub(r"\1", _IMAGE.sub("", text))
    for _ in range(3):  # emphasis nests: ***a** b*
        text = _UNDERSCORES.sub(r"\2", _STARS.sub(r"\2", text))
    return _ESCAPE.sub(r"\1", text)
