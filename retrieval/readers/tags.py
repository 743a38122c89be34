"""HTML text -> start tags, end tags and the text between them, as a browser would cut it, in linear time.

What the standard library's html.parser does, without attributes and without its quadratic cases: no character is
looked at from more than a few starting points, however broken the page. The rules are those of the HTML standard
(https://html.spec.whatwg.org/multipage/parsing.html#tokenization), except where an unclosed comment or title would
swallow the rest of the page: there text wins.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Literal, NamedTuple

_RAW = frozenset({"script", "style", "xmp", "iframe", "noembed", "noframes"})  # markup in them means nothing
_TEXT_ONLY = frozenset({"title", "textarea"})  # so in these, but character references count

_NAME = re.compile(r"[a-zA-Z][^\s/>]*")
_QUOTE_OR_END = re.compile(r"""=\s*(["'])|>""")


class Token(NamedTuple):
    """`value` is the name of a tag in small letters, or text as it stands in the source; it begins at `position`."""

    kind: Literal["start", "end", "text"]
    value: str
    position: int


def tokens(text: str) -> Iterator[Token]:
    """The tags and texts of a page, in order."""
    return _Tokenizer(text).tokens()


class _Tokenizer:
    def __init__(self, text: str) -> None:
        self.text = text
        self.last = {mark: text.rfind(mark) for mark in ('"', "'", ">", "-->")}  # beyond it, nobody need search
        self.unclosed: set[str] = set()  # elements whose end was searched for in vain
        self.heeds_quotes = True

    def tokens(self) -> Iterator[Token]:
        begin = search = 0  # of the text that is not yet given out; of what is not yet looked at
        while (opening := self.text.find("<", search)) != -1 and opening < self.last[">"]:
            follows = self.text[opening + 1 : opening + 2]
            if not (follows.isascii() and follows.isalpha()) and follows not in ("!", "?", "/"):
                search = opening + 1
                continue
            if opening > begin:
                yield Token("text", self.text[begin:opening], begin)
            if follows.isalpha():
                begin = yield from self._start_tag(opening)
            elif name := _NAME.match(self.text, opening + 2) if follows == "/" else None:
                yield Token("end", name[0].lower(), opening)
                begin = self.text.find(">", name.end()) + 1 or len(self.text)
            else:
                begin = self._end_of_declaration(opening)
            search = begin
        if begin < len(self.text):
            yield Token("text", self.text[begin:], begin)

    def _start_tag(self, opening: int) -> Generator[Token, None, int]:
        """Give out the tag, and the text inside elements that hold nothing but text; return where to go on."""
        name = _NAME.match(self.text, opening + 1)
        tag = name[0].lower() if name else ""
        end = self._end_of_tag(name.end() if name else opening + 1)
        yield Token("start", tag, opening)
        if self.text[end - 1] == "/":
            yield Token("end", tag, opening)
        elif tag in _RAW or tag in _TEXT_ONLY:
            return (yield from self._content(tag, end + 1))
        return end + 1

    def _end_of_tag(self, position: int) -> int:
        """The index of the '>' that ends a tag; one inside a quoted value does not."""
        start = position
        while self.heeds_quotes and position <= self.last[">"]:
            found = _QUOTE_OR_END.search(self.text, position)
            if found is None:
                break
            if found[0] == ">":
                return found.start()
            if found.end() > self.last[found[1]]:
                return self.text.find(">", found.end())
            position = self.text.find(found[1], found.end()) + 1
        # The last '>' is inside quotes. That can be so for every tag to come; look this far only once.
        self.heeds_quotes = False
        return self.text.find(">", start)

    def _content(self, tag: str, begin: int) -> Generator[Token, None, int]:
        """Give out the text up to the end tag of `tag`; return where that stands."""
        end = None
        if tag not in self.unclosed:
            end = re.compile(rf"</{tag}(?=[\s/>])", re.IGNORECASE).search(self.text, begin)
        if end is None:
            self.unclosed.add(tag)
            return begin if tag in _TEXT_ONLY else len(self.text)
        if end.start() > begin:
            yield Token("text", self.text[begin : end.start()], begin)
        return end.start()

    def _end_of_declaration(self, opening: int) -> int:
        """Where to go on after `<!doctype ...>`, `<?xml ...>`, `</>` or a comment."""
        if not self.text.startswith("<!--", opening):
            return self.text.find(">", opening) + 1
        if self.text.startswith((">", "->"), opening + 4):
            return self.text.find(">", opening) + 1
        if opening + 4 > self.last["-->"]:
            return opening + 4
        return self.text.find("-->", opening + 4) + 3
