"""The sentences of an answer, and the numbers `[n]` that they cite passages with. Pure functions over text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

CITATION = re.compile(r"((?:\s*\[\d{1,2}(?:\s*[,;]\s*\d{1,2})*\])+)(?!\()")
_NUMBER = re.compile(r"\d+")
_MARKER = re.compile(r"\s*(?:[-*+•]|\d{1,2}[.)])\s+|\s*#{1,6}\s+|\s*>\s?")  # of a list item, a heading, a quotation
_END = re.compile(r"(?:[.!?…]+[\"'”’)*_]*(?:\s*\[\d[\d\s,;]*\])*(?=\s|$))|[。！？]")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|[A-Za-z](?:\.[A-Za-z])+|[Dd]r|[Mm]rs?|[Mm]s|[Pp]rof|[Ss]t|[Mm]t|[Nn]o|[Vv]ol|[Jj]r|[Ss]r|ca?|"
    r"approx|vs|etc|al|fig|Fig|Gen|Col|Lt|Capt|Rev|Gov|Sen|Rep|Inc|Ltd|Co|Corp|Jan|Feb|Aug|Sept?|Oct|Nov|Dec)\.$"
)
_FENCE = "```"
_OPEN = re.compile(r"(?:\[\d[\d\s,;]*\]\s*)*\[[\d\s,;]*")  # what may still become a citation, or one more
_UNSURE = re.compile(r"\s*(?:\[|$)")  # from here on a sentence may change


def spans(text: str, with_code: bool = False) -> list[tuple[int, int]]:
    """(start, end) of each sentence of `text`, in characters, without white space around it and without the marks of
    lists and headings. A line break ends a sentence; a citation after a full stop belongs to the sentence before it.
    Code blocks hold none, but `with_code` their lines count."""
    found: list[tuple[int, int]] = []
    place, in_code = 0, False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith(_FENCE):
            in_code = not in_code
        elif with_code or not in_code:
            marker = _MARKER.match(line)
            found.extend(_in_line(text, place + (marker.end() if marker else 0), place + len(line)))
        place += len(line)
    return found


def _in_line(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in _END.finditer(text, start, end):
        after = text[match.end() : end].lstrip()
        if _ABBREVIATION.search(text, start, match.start() + 1) or after[:1].islower():
            continue
        yield from _stripped(text, start, match.end())
        start = match.end()
    yield from _stripped(text, start, end)


def _stripped(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    inner = text[start:end]
    if inner.strip():
        yield start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip())


def citations(sentence: str) -> tuple[int, ...]:
    """The numbers cited in `sentence`, each once, in order."""
    numbers = [int(each) for found in CITATION.findall(sentence) for each in _NUMBER.findall(found)]
    return tuple(dict.fromkeys(numbers))


def without_citations(sentence: str) -> str:
    """`sentence` without its `[n]`."""
    return CITATION.sub("", sentence)


def with_citations(sentence: str, keep: Iterable[int]) -> str:
    """`sentence` with only the numbers `keep` cited. Those that it did not cite stand where its first citation was;
    where none is left the place closes up."""
    kept = tuple(keep)
    cited = citations(sentence)
    new = [each for each in kept if each not in cited]

    def replaced(match: re.Match[str]) -> str:
        nonlocal new
        numbers = [int(each) for each in _NUMBER.findall(match[1])]
        numbers, new = [*new, *(each for each in numbers if each in kept)], []
        if not numbers:
            return ""
        space = match[1][: len(match[1]) - len(match[1].lstrip())]
        return space + "".join(f"[{each}]" for each in dict.fromkeys(numbers))

    return sentence if set(cited) <= set(kept) and not new else CITATION.sub(replaced, sentence)


def rewrite_cited(pieces: Iterable[str], rewrite: Callable[[str], str]) -> Iterator[str]:
    """Pass a stream on, each sentence outside code as `rewrite` makes it; which may change nothing before the first
    `[` and the white space there.

    From its first `[` on a sentence is held back until it is known to have ended; all else passes as it comes. However
    the text is cut into pieces, joined the result is the same.
    """
    held, shown, in_code = "", 0, False  # held[:shown] has been passed on already
    for piece in pieces:
        held += piece
        while cut := _end(held):
            sentence, held = held[:cut], held[cut:]
            in_code ^= sentence.lstrip().startswith(_FENCE)
            yield from _some((sentence if in_code else rewrite(sentence))[shown:])
            shown = max(shown - cut, 0)
        safe = len(held) if in_code else _UNSURE.search(held).start()  # type: ignore[union-attr]  # it always matches
        yield from _some(held[shown:safe])
        shown = max(shown, safe)
    yield from _some((held if in_code else rewrite(held))[shown:])


def _some(text: str) -> Iterator[str]:
    if text:
        yield text


def _end(text: str) -> int:
    """Where the first sentence of a text that goes on has ended for certain; 0 where none has."""
    line_end = text.find("\n") + 1
    found = list(_in_line(text, 0, line_end or len(text)))
    if len(found) > 1 and not _OPEN.fullmatch(text, found[1][0]):
        return found[0][1]
    return line_end
