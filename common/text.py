"""Text at the edges: lines in, in one known encoding; text out, harmless to a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO


def lines_of(stream: TextIO) -> Iterator[str]:
    """Lines as they arrive. ValueError where the input is not UTF-8 text."""
    # Bytes, since what Python makes of other encodings depends on the locale: it may hide them in surrogates.
    for number, line in enumerate(stream.buffer, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {number} of the input is not UTF-8 text (byte {error.start}); convert it first, such as with "
                "iconv -f latin1 -t utf-8"
            ) from None
        yield text


def printable(text: str) -> str:
    """`text` without control characters other than line break and tab: it cannot move the cursor, recolour the
    screen, write to the clipboard or reverse the direction of what follows."""
    return "".join(char for char in text if char in "\n\t" or not _is_control(char))


def _is_control(char: str) -> bool:
    code = ord(char)
    # C0, DEL, C1, and the marks that reverse the direction of text.
    return code < 0x20 or 0x7F <= code < 0xA0 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
