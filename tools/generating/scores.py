"""The score in a judge's answer. What could be read in two ways is not read: a wrong score is worse than none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER = rf"[-+]?\d+(?:\.\d+)?(?![\d%])(?!\.\d)|\b(?:{'|'.join(_WORDS)})\b"
_OF = r"(?:\s*(?:/|\bout\s+of\b|\bof\b)\s*(?P<of>\d+(?:\.\d+)?)(?![\d.]*\d))?"
_UNIT = r"(?:\s*(?:stars?|points?)\b)?"
_VALUE = rf"(?P<value>{_NUMBER}){_OF}{_UNIT}"
# After the number: no second one that makes a range or a choice of it (3-4, 3 or 4, 4,5).
_ALONE = r"(?!\s*(?:[-–—/,]|to\b|or\b|and\b)\s*(?:\d|" + "|".join(_WORDS) + "))"
_LABEL = r"\b(?:score|rating|grade|mark|reward)\b(?:\s+(?:is|would\s+be|of))?\s*[:=]?\s*(?:is\s+)?"
_BEFORE = r"(?<![\w.,/-])"
_LABELLED = re.compile(rf"(?P<final>\b(?:final|overall|total)\s+)?{_LABEL}{_BEFORE}{_VALUE}{_ALONE}", re.IGNORECASE)
_OUT_OF = re.compile(rf"{_BEFORE}{_VALUE}{_ALONE}", re.IGNORECASE)
_LINE = re.compile(rf"{_VALUE}[.!]?", re.IGNORECASE)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_MARKUP = re.compile(r"[*_`\"'“”„«»#\[\]()]+")


def parse_score(text: str, low: float, high: float) -> float:
    """The score that an answer gives, from `low` to `high`.

    Read are a number alone in the answer, or alone in its first or last line; `Score: 4`, with `final` or `overall`
    before others; and `4/5`, `4 out of 5`, where 5 is `high`. Words up to ten are numbers. Raises ValueError, with the
    reason, where there is none, where several differ, and where one is out of range or of another scale.
    """
    plain = _MARKUP.sub("", unicodedata.normalize("NFKC", _THOUGHTS.sub("", text))).strip()
    found = _final(_LABELLED.finditer(plain)) or _lines(plain) or [m for m in _OUT_OF.finditer(plain) if m["of"]]
    if not found:
        raise ValueError("holds no clear score")
    values = {_value(match, high) for match in found}
    if len(values) > 1:
        raise ValueError("holds several scores")
    (value,) = values
    if not low <= value <= high:
        raise ValueError(f"has a score out of range ({low:g} to {high:g})")
    return value


def _final(matches: Iterable[re.Match[str]]) -> list[re.Match[str]]:
    """Those with `final` or `overall` before them, or all."""
    found = list(matches)
    return [match for match in found if match["final"]] or found


def _lines(plain: str) -> list[re.Match[str]]:
    """The first and the last line, where they are numbers."""
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return [match for line in {*lines[:1], *lines[-1:]} if (match := _LINE.fullmatch(line))]


def _value(match: re.Match[str], high: float) -> float:
    if match["of"] and float(match["of"]) != high:
        raise ValueError(f"has a score of another scale (to {match['of']}, not {high:g})")
    said = match["value"].lower()
    return float(_WORDS.index(said)) if said in _WORDS else float(said)
