"""Bytes -> text: Unicode where it is evident, else what charset-normalizer is sure of, else Windows-1252."""

from __future__ import annotations

import codecs
import re

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\f\r\x1b")) + b"\x7f"
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_CONTROL_SHARE = 0.02  # of all characters; terminal logs and form feeds stay below, binary files do not

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Which bytes of each group of four are zero in text that is mostly Latin.
_ZEROS = {"utf-32-le": "0111", "utf-32-be": "1110", "utf-16-le": "0101", "utf-16-be": "1010"}
_SAMPLE_BYTES = 20_000

# Of the bytes that are not space: in Latin scripts a few are above 127, in all others most are. What is named here
# was tried on a sentence each in 15 languages.
_MAX_LATIN_SHARE = 0.35
_MIN_HIGH_BYTES = 4  # fewer say nothing about the encoding
_MIN_COHERENCE = 0.2  # charset-normalizer: agreement of the letters' frequencies with a language's, up to 1
_NEAR_COHERENCE = 0.05
_MAX_CHAOS = 0.1  # charset-normalizer: improbable sequences, from 0


def decode(data: bytes) -> str:
    """Text from bytes; line ends become '\\n'.

    UTF-8, UTF-16 and UTF-32 with a byte order mark or where the zero bytes show them; UTF-8 with a few damaged bytes
    (they become U+FFFD); else see `_legacy_encoding`. Stray control characters become spaces. Raises ValueError for
    bytes that are no text.
    """
    text = clean_text(_decode(data), len(data))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def clean_text(text: str, num_before: int | None = None) -> str:
    """Text that can be stored as UTF-8 and does no harm to a terminal: control characters become spaces, and halves
    of surrogate pairs U+FFFD. With `num_before`, ValueError where so many are control characters that it is no text.
    """
    text, num_control = _CONTROL.subn(" ", text)
    if num_before is not None and num_control > _MAX_CONTROL_SHARE * len(text):
        raise _not_text()
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def unicode_encoding(data: bytes) -> tuple[str, int]:
    """The Unicode encoding that the beginning of a file shows, and the length of its byte order mark; ('', 0) if it
    shows none."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    sample = data[: 4096 if len(data) > 4096 else len(data) // 4 * 4]
    if len(sample) >= 8 and b"\0" in sample:
        shares = [sample[i::4].count(0) / (len(sample) / 4) for i in range(4)]
        for encoding, zeros in _ZEROS.items():
            if all((share > 0.7) if zero == "1" else (share < 0.1) for zero, share in zip(zeros, shares, strict=True)):
                return encoding, 0
    return "", 0


def _decode(data: bytes) -> str:
    encoding, num_mark = unicode_encoding(data)
    if encoding and encoding != "utf-8":
        try:
            return data[num_mark:].decode(encoding)
        except UnicodeDecodeError:
            raise ValueError(f"it is not text (it begins as {encoding[:6].upper()} but is not)") from None
    data = data[num_mark:]
    num_control = len(data) - len(data.translate(None, _CONTROL_BYTES))
    if b"\0" in data or num_control > _MAX_CONTROL_SHARE * len(data):
        raise _not_text()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    num_bad = text.count("\ufffd")
    num_good = len(text) - len(text.encode("ascii", "ignore")) - num_bad
    if num_bad * 4 <= num_good:  # it would take a miracle in any other encoding
        return text
    return data.decode(_legacy_encoding(data) or "cp1252", "replace")


def _legacy_encoding(data: bytes) -> str:
    """An encoding from before Unicode that charset-normalizer is sure of, '' if none.

    Western European texts decode alike, or nearly so, in many encodings: there cp1252 wins unless another fits the
    frequencies of a language clearly better.
    """
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return ""
    first_high = next((match.start() for match in re.finditer(rb"[\x80-\xff]", data)), 0)
    begin = max(data.rfind(b"\n", 0, first_high), first_high - 1000, 0)
    sample = data[begin : begin + _SAMPLE_BYTES]
    if len(sample) == _SAMPLE_BYTES:  # do not end within a character
        sample = sample[: max(sample.rfind(b"\n"), sample.rfind(b" ")) + 1] or sample
    num_high = sum(byte > 127 for byte in sample)
    if num_high < _MIN_HIGH_BYTES:
        return ""
    matches = from_bytes(sample)
    best = matches.best()
    if best is None or best.chaos > _MAX_CHAOS or best.encoding.startswith(("utf_16", "utf_32")):
        return ""
    if num_high <= _MAX_LATIN_SHARE * len(sample.translate(None, b" \t\r\n")):
        western = next((match.coherence for match in matches if match.encoding == "cp1252"), -1.0)
        if best.coherence < _MIN_COHERENCE or western >= best.coherence - _NEAR_COHERENCE:
            return ""
    elif best.coherence < _MIN_COHERENCE and best.language == "Unknown":
        return ""
    return best.encoding if len(data.decode(best.encoding, "ignore")) * 4 >= len(data) else ""


def _not_text() -> ValueError:
    return ValueError("it is not text (it holds NUL bytes or many control characters)")
