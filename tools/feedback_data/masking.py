"""Personal data in texts -> marks: `<email>`, `<phone>`, `<hidden>` for keys.

Rules, not understanding: what has the shape of an address, a number or a key is masked, sometimes too much (a
checksum), and what is spelled out ("anna at example dot org") stays. Names and postal addresses are not looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from training.tracking.redaction import HIDDEN, redacted_text

EMAIL, PHONE = "<email>", "<phone>"

_EMAIL = re.compile(r"[^\s@<>()\[\],;:\"\\]{1,64}@(?:(?:[\w-]{1,63}\.)+[\w-]{2,63}|\[[0-9A-Fa-f.:]{2,45}\])")

_GAP = r"[ \t\u00a0\u202f().\-\u2010-\u2013/]{0,3}"
_DATE = r"\d{1,2}[./-]\d{1,2}[./-](?:19|20)\d\d(?!\d)"
_APART = r"(?<!\d)(?<!\d[.,/:-])"  # no later part of a longer number, date or time
_WORDS = "telephone|telefon|tel|phone|mobile|mobil|handy|cell|fax|call|sms|text|whatsapp|dial|ring"
_PHONES = (
    # E.164: at most 15 digits after + or 00
    re.compile(rf"(?:\+|(?<!\d)00){_GAP}\d(?:{_GAP}\d){{7,14}}"),
    # with the 0 that many countries put before an area: 9 to 11 digits
    re.compile(rf"{_APART}(?!{_DATE})\(?0(?!0)\d(?:{_GAP}\d){{7,9}}(?!\d)"),
    # North America: 3, 3 and 4 digits
    re.compile(rf"{_APART}(?:1[ .-])?\(?[2-9]\d\d\)?[ .-]{{1,2}}[2-9]\d\d[ .-]\d{{4}}(?!\d)"),
    # any number that is called one
    re.compile(rf"(?<=\b)(?i:(?P<kept>\b(?:{_WORDS})\b[^\d\n]{{0,15}}?))\+?\(?\d(?:{_GAP}\d){{5,14}}"),
)

_VALUE = r"[\"']?\s*(?:[:=]\s*[\"']?(?=[^\s\"',;]{6})|is\s+[\"']?(?=[^\s\"',;]*\d)(?=[^\s\"',;]{6}))"
_NAMES = r"pass(?:word|wd|phrase|code)|pwd|secret|token|(?:api|access|private|secret)[ _-]?key|credentials?"
_KEYS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(rf"(?P<kept>(?<![^\W_])(?:{_NAMES}){_VALUE})[^\s\"',;]+", re.IGNORECASE),
    # long and random: hexadecimal, or of digits and letters of both cases
    re.compile(r"(?<![^\W_])(?:[0-9a-f]{32,}|(?=[A-Za-z]*\d)(?=[a-z0-9]*[A-Z])(?=[A-Z0-9]*[a-z])[A-Za-z0-9]{32,})"),
)


def _emails(text: str) -> tuple[str, int]:
    return _EMAIL.subn(EMAIL, text)


def _phones(text: str) -> tuple[str, int]:
    return _replaced(text, _PHONES, PHONE)


def _keys(text: str) -> tuple[str, int]:
    """Also what a run hides in its own records: tokens of known kinds, passwords in URLs, values of this machine's own
    variables such as HF_TOKEN."""
    known = redacted_text(text)
    masked, num = _replaced(known, _KEYS, HIDDEN)
    return masked, num + (known != text) * max(1, known.count(HIDDEN) - text.count(HIDDEN))


def _replaced(text: str, patterns: Sequence[re.Pattern[str]], mark: str) -> tuple[str, int]:
    """`text` with each match as `mark`, but for the group `kept` of it; how often it was another text."""
    num = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal num
        new = (match.groupdict().get("kept") or "") + mark
        num += new != match.group()
        return new

    for pattern in patterns:
        text = pattern.sub(replace, text)
    return text, num


# Keys first: they may hold what looks like an address or a number.
_MASKS: dict[str, Callable[[str], tuple[str, int]]] = {"keys": _keys, "emails": _emails, "phones": _phones}
CLASSES = tuple(_MASKS)


class Masker:
    """Masks the classes that it is given, of `CLASSES`, and counts what it masked in `counts`."""

    def __init__(self, classes: Sequence[str] = ()) -> None:
        if unknown := [each for each in classes if each not in CLASSES]:
            raise ValueError(f"cannot mask '{unknown[0]}'; choose of: {','.join(CLASSES)}")
        self.counts: Counter[str] = Counter(dict.fromkeys((each for each in CLASSES if each in classes), 0))

    def __call__(self, text: str) -> str:
        """`text` with a mark in the place of each."""
        for name in self.counts:
            text, num = _MASKS[name](text)
            self.counts[name] += num
        return text
