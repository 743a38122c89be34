"""The words of a text as numbers: hashes of its words, pairs of words, and parts of words.

Deterministic on every machine (CRC-32 of UTF-8), for any string: lone surrogates, control characters, no text at all.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# A longer text is judged in windows of this many characters (about what the sentence encoder reads), cut at a space
# where there is one near; at most MAX_WINDOWS of them: all of a text up to 9,600 characters, of a longer one the
# first six and the last two.
WINDOW = 1200
MAX_WINDOWS = 8
LAST_WINDOWS = 2
PARTS = (3, 5)  # characters in a part of a word, least and most
LONGEST_WORD = 40  # characters of a word that are cut into parts

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]")
_LINK = re.compile(r"(?:https?://|www\.)\S+")
_NAME = re.compile(r"(?<!\w)@\w+")
_DIGITS = re.compile(r"\d+")
_REPEAT = re.compile(r"(.)\1{2,}", re.DOTALL)


def windows(text: str) -> list[str]:
    """The text in pieces of at most WINDOW characters; at least one piece, at most MAX_WINDOWS."""
    if len(text) <= WINDOW:
        return [text]
    pieces: list[str] = []
    start, stop = 0, min(len(text), WINDOW * (MAX_WINDOWS - LAST_WINDOWS))
    whole = len(text) <= WINDOW * MAX_WINDOWS
    end_at = len(text) if whole else stop
    while start < end_at and len(pieces) < MAX_WINDOWS:
        end = min(start + WINDOW, end_at)
        if end < end_at and (space := text.rfind(" ", start + WINDOW - 100, end)) > start:
            end = space
        pieces.append(text[start:end])
        start = end
    if not whole:
        tail = text[-WINDOW * LAST_WINDOWS :]
        pieces = [*pieces[: MAX_WINDOWS - LAST_WINDOWS], tail[:WINDOW], tail[WINDOW:]]
    elif start < len(text):  # cutting at spaces left a rest
        pieces[-1] = text[-WINDOW:]
    return pieces


def normalise(text: str) -> str:
    """One spelling: compatibility forms, case, invisible characters, links, names, digits, drawn-out letters."""
    text = unicodedata.normalize("NFKC", text)
    if not text.isascii():
        text = "".join(char for char in text if unicodedata.category(char) not in ("Cf", "Mn"))
    text = _NAME.sub(" @ ", _LINK.sub(" § ", text.casefold()))
    return _REPEAT.sub(r"\1\1", _DIGITS.sub("0", text))


def hashes(text: str) -> NDArray[np.uint32]:
    """(n,) sorted hashes of what stands in the text, each once. The text is read up to WINDOW characters."""
    found = {zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in _grams(normalise(text[:WINDOW]))}
    return np.sort(np.fromiter(found, dtype=np.uint32, count=len(found)))


def _grams(text: str) -> Iterator[str]:
    """Words, pairs of neighbours, and parts of words; told apart by their first character."""
    words: list[str] = _WORD.findall(text)
    for word in words:
        yield "1" + word
    for left, right in zip(["^", *words], [*words, "$"], strict=True):
        yield f"2{left} {right}"
    low, high = PARTS
    for word in set(words):
        padded = f" {word[:LONGEST_WORD]} "
        for size in range(low, min(high, len(padded)) + 1):
            for start in range(len(padded) - size + 1):
                yield "3" + padded[start : start + size]
