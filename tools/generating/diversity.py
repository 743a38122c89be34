"""Texts that differ from one another: by ROUGE-L, as Self-Instruct does (Wang et al. 2022, section 3.1)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_TOKENS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+|[^\w\s]")  # writing without spaces: characters


class Diverse:
    """Accepts texts whose ROUGE-L to each accepted before is below `most`."""

    def __init__(self, most: float, texts: Iterable[str] = ()) -> None:
        self.most = most
        self._accepted = [_tokens(text) for text in texts]

    def accept(self, text: str) -> bool:
        """Whether the text differs enough; it then counts for those after it."""
        tokens = _tokens(text)
        if not tokens or any(_too_close(tokens, other, self.most) for other in self._accepted):
            return False
        self._accepted.append(tokens)
        return True


def rouge_l(first: str, second: str) -> float:
    """2 LCS / (m + n), from 0 to 1: the F-measure of the longest common subsequence of words (Lin 2004)."""
    a, b = _tokens(first), _tokens(second)
    return 2 * _lcs(a, b) / (len(a) + len(b)) if a and b else 0.0


def _too_close(a: list[str], b: list[str], most: float) -> bool:
    total = len(a) + len(b)
    if 2 * min(len(a), len(b)) < most * total:  # no common subsequence is longer than the shorter
        return False
    return 2 * _lcs(a, b) >= most * total


def _lcs(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time as the bits of one number (Hyyrö
    2004): bit i is 0 where the length grows at a[i]."""
    places: dict[str, int] = {}
    for place, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << place
    row = whole = (1 << len(a)) - 1
    for token in b:
        common = row & places.get(token, 0)
        row = (row + common | row - common) & whole
    return len(a) - row.bit_count()


def _tokens(text: str) -> list[str]:
    return _TOKENS.findall(unicodedata.normalize("NFKC", text).casefold())
