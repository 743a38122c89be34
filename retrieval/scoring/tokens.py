"""Texts to the terms that BM25 counts: words, case-folded, stemmed, without the stop words of the language.

- Words are runs of letters and digits, with the marks that belong to them. An apostrophe within an English word stays
  in it (don't -> dont) but for the 's; in other languages it parts words (l'eau -> l, eau).
- Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese, which write no spaces or build long words, become pairs of
  neighbouring characters, and a character that stands alone a term of its own.
- NFKC makes one of the many ways to write a character; of English also the accents go (café finds cafe).

The time is linear in the text, whatever it holds: what is normalised (quadratic in a run of combining marks) is cut
to MAX_WORD_CHARS first. Importing this is cheap; PyStemmer (https://snowballstem.org) loads with the first Tokenizer.
"""

from __future__ import annotations

import importlib
import re
import string
import unicodedata
from collections.abc import Callable, Iterator

MAX_WORD_CHARS = 64  # what a longer word has beyond these does not count
_MAX_CACHED = 16_384  # words whose terms are remembered: nearly all that a text has, in few megabytes

# Function and question words. On nq, cranfield and npl nDCG@10 was .872, .368, .438; with Lucene's list of 33 words
# .869, .359, .434, with none .870, .360, .432.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about an and any are as at be been being but by can could did do does for from had has have how i if in "
        "into is it its me my no nor not of on or our shall should so such that the their them then there these they "
        "this those to was we were what when where which who whom whose why will with would you your",
    )
)

_PAIRED = (  # scripts whose characters are taken in pairs; halfwidth forms and separate Jamo become such by NFKC
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59\u0e81-\u0ebd\u0ec0-\u0ecd\u0ed0-\u0ed9\u0edc-\u0edf\u1000-\u1049"
    "\u1050-\u109f\u1100-\u11ff\u1780-\u17d3\u17e0-\u17e9\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
# Marks that belong to a word though `\w` has them not, the signs of the Indic scripts among them, and the invisible
# joiners and soft hyphens.
_DIACRITICS = "\u0300-\u036f"
_POINTS = "\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
_INDIC = "\u0900-\u0963\u0966-\u0dff"
_INVISIBLE = "\u00ad\u200c\u200d"
_MARKS = _DIACRITICS + _POINTS + _INDIC + _INVISIBLE
_APOSTROPHES = "'\u2019\u02bc\uff07"

_SPECIAL = re.compile(f"[_{_PAIRED}{_POINTS}{_INDIC}{_INVISIBLE}]")
_IS_PAIRED = re.compile(f"[{_PAIRED}]")
_PLAIN_WORD = re.compile(rf"[\w{_DIACRITICS}]+")
_PLAIN_WORD_OR_APOSTROPHE = re.compile(rf"[\w{_DIACRITICS}{_APOSTROPHES}]+")
_ANY_WORD = re.compile(rf"[{_PAIRED}]+|(?:[^\W_{_PAIRED}]|[{_MARKS}])+")
_ANY_WORD_OR_APOSTROPHE = re.compile(rf"[{_PAIRED}]+|(?:[^\W_{_PAIRED}]|[{_MARKS}{_APOSTROPHES}])+")
_DROPPED = re.compile(f"[{_APOSTROPHES}{_POINTS}{_INVISIBLE}\u0640]")
_ACCENTS = re.compile(f"[{_DIACRITICS}]")
_POSSESSIVE = re.compile(f"[{_APOSTROPHES}][sS]?[{_APOSTROPHES}]*$")


def _ascii_table(apostrophe: str) -> dict[int, str]:
    kept = string.ascii_lowercase + string.digits
    table = dict.fromkeys(range(128), " ")
    table |= {ord(char): char for char in kept} | {ord(char): char.lower() for char in string.ascii_uppercase}
    return table | {ord("'"): apostrophe}


class Tokenizer:
    """The terms of texts in `language`, one of PyStemmer's ('english', 'german', ...) or 'none' for no stemming.

    Raises ValueError for a language that PyStemmer does not know. Only 'english' has stop words.
    """

    def __init__(self, language: str = "english") -> None:
        self.language = language
        self._english = language == "english"
        self._table = str.maketrans(_ascii_table("'" if self._english else " "))
        self._stem = _stemmer(language)
        self._terms: dict[str, str] = {}

    def tokens(self, text: str) -> list[str]:
        """The terms of `text` in its order, repeated as often as they stand there."""
        return [term for word in self.words(text) if (term := self.term(word))]

    def words(self, text: str) -> list[str]:
        """The words of `text` as they are written, stop words included, each to be passed to `term`."""
        if text.isascii():
            return text.translate(self._table).split()
        if not _SPECIAL.search(text):
            return (_PLAIN_WORD_OR_APOSTROPHE if self._english else _PLAIN_WORD).findall(text)
        words: list[str] = []
        for run in (_ANY_WORD_OR_APOSTROPHE if self._english else _ANY_WORD).findall(text):
            if _IS_PAIRED.match(run):
                words.extend(_pairs(run))
            else:
                words.append(run)
        return words

    def term(self, word: str) -> str:
        """The term of one of `words`; '' for a stop word."""
        term = self._terms.get(word)
        if term is None:
            term = self._make_term(word[:MAX_WORD_CHARS])
            if len(word) <= MAX_WORD_CHARS:
                if len(self._terms) >= _MAX_CACHED:
                    self._terms = {}
                self._terms[word] = term
        return term

    def _make_term(self, word: str) -> str:
        word = self._plain(word)
        if self._english and word in STOP_WORDS:
            return ""
        return self._stem(word[:MAX_WORD_CHARS]) or word

    def _plain(self, word: str) -> str:
        """One way to write `word`, whatever its case, its encoding and, in English, its accents."""
        if self._english and not word.isalnum():
            word = _POSSESSIVE.sub("", word)
        if word.isascii():
            return word.replace("'", "").lower()
        if self._english:
            word = _ACCENTS.sub("", unicodedata.normalize("NFKD", word))
        word = unicodedata.normalize("NFKC", word).casefold()
        return _DROPPED.sub("", unicodedata.normalize("NFKC", word))


def _pairs(run: str) -> Iterator[str]:
    """The pairs of neighbours in a run of one of the paired scripts, or its only character."""
    for start in range(0, len(run), MAX_WORD_CHARS):
        piece = unicodedata.normalize("NFKC", run[start : start + MAX_WORD_CHARS + 1])
        if len(piece) == 1 and start == 0:
            yield piece
        yield from (piece[i : i + 2] for i in range(len(piece) - 1))


def _stemmer(language: str) -> Callable[[str], str]:
    if language == "none":
        return str
    library = importlib.import_module("Stemmer")
    try:
        stem: Callable[[str], str] = library.Stemmer(language).stemWord
    except KeyError:
        raise ValueError(
            f"no stemmer for the language '{language}'; known: none, {', '.join(library.algorithms())}"
        ) from None
    return stem
