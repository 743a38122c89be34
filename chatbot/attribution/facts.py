"""What a text states, as far as it can be read off its words: numbers, names, other words, and which are denied.

English, mostly: names are looked for only where function words show that a text is English, since other languages write
capitals by other rules; numbers and words are compared in any.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, NamedTuple

from retrieval.scoring.tokens import STOP_WORDS, Tokenizer

Kind = Literal["word", "name", "number"]

_TOKEN = re.compile(r"\d[\d,.]*(?:st|nd|rd|th|s)?\b|[^\W\d_]+(?:[.'’&-]?[^\W_]+)*|[.,;:!?()\n—–]")
_DIGITS = re.compile(r"(\d[\d,.]*?)[.,]*(?:st|nd|rd|th|s)?$")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {word: n for n, word in enumerate([*_ONES.split(), "eighteen", "nineteen"])}
_NUMBER_WORDS |= {word: 10 * n for n, word in enumerate(_TENS.split(), start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
# Words that say little beside the others, whose absence says nothing: auxiliaries, light verbs, degrees.
_LIGHT = frozenset(
    re.findall(
        r"\w+",
        "also although among another around away became because become began both came come during each either "
        "even ever every few fewer first gave get gets give got however just keep kept know known last later "
        "least less made make makes many may might more most much need needs often one other over own part per "
        "put rather same several since some still tell than though through too toward under until up upon us use "
        "used uses using usually very was way well went whether while within yet ",
    )
)
_VAGUE_NUMBERS = {"one", "zero", "hundred", "thousand", "million", "billion"}  # pronouns and manners of speech
_NEGATORS = {"not", "no", "never", "without", "neither", "nor", "cannot", "none", "nobody", "nothing"}
_NOT_NEGATING = {
    "only",
    "just",
    "until",
    "least",
    "merely",
    "fewer",
    "less",
    "more",
    "doubt",
    "matter",
}  # after not, no
_CLAUSE_ENDS = set(".,;:!?()\n—–") | {"but"}
_SINGULAR_VERBS = {"is", "was", "has", "had", "became"}
_COMMON_NOUN = re.compile(r"(?:ing|ion|ment|ness|ity|er|ers|or|ism|ance|ence|ship|age|ure|cy|ly|one|body)$")
_SENTENCE_ENDS = set(".!?:\n")
NEGATION_SCOPE = 2  # words that a negator is about
_ENGLISH_SHARE = 0.1  # function words of all words; in English prose it is about 0.45, in other languages about 0.02


class Fact(NamedTuple):
    """A word that carries meaning. `term`: what equal ones have in common (a number's digits, a word's stem); `text`:
    as it is written; `place`: its number among the facts of its text; `denied`: a negator stands before it."""

    term: str
    text: str
    kind: Kind
    place: int
    denied: bool


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer("english")


def facts(text: str) -> tuple[Fact, ...]:
    """The facts of `text`, in its order. The cost is linear in its length."""
    tokens = [match.group() for match in _TOKEN.finditer(text.replace("’", "'"))]
    words = [token for token in tokens if token[0].isalpha()]
    english = sum(word.casefold() in STOP_WORDS for word in words) >= _ENGLISH_SHARE * len(words)
    found: list[Fact] = []
    scope, starting = 0, True
    for i, token in enumerate(tokens):
        lower = token.casefold()
        if lower in _CLAUSE_ENDS:
            scope, starting = 0, starting or lower in _SENTENCE_ENDS
            continue
        after = tokens[i + 1] if i + 1 < len(tokens) else ""
        following = after.casefold()
        if _negates(lower, following):
            scope, starting = NEGATION_SCOPE, False
            continue
        for term, kind in _terms(token, following, english and (not starting or _opens_as_name(lower, after))):
            found.append(Fact(term, token, kind, len(found), scope > 0))
            scope -= 1
        starting = False
    return tuple(found)


def _negates(word: str, following: str) -> bool:
    return (word in _NEGATORS or word.endswith("n't")) and following not in _NOT_NEGATING


def _opens_as_name(word: str, after: str) -> bool:
    """Whether the first word of a sentence seems to be a name, as far as the word after it can tell."""
    if word in STOP_WORDS or _COMMON_NOUN.search(word):
        return False
    return after[:1].isupper() or after in _SINGULAR_VERBS or after.endswith("ed")


def _terms(token: str, following: str, may_be_name: bool) -> list[tuple[str, Kind]]:
    """The terms of one token with their kind: several of a word with hyphens, none of a function word."""
    if token[0].isdigit():
        return [(_number(token, following), "number")]
    lower = token.casefold()
    if lower in _NUMBER_WORDS and lower not in _VAGUE_NUMBERS:
        return [(_scaled(str(_NUMBER_WORDS[lower]), following), "number")]
    if lower in _SCALES:
        return []  # part of the number before it
    if lower in _LIGHT:
        return []
    tokenizer = _tokenizer()
    parts = [term for word in tokenizer.words(token.replace("-", " ")) if (term := tokenizer.term(word))]
    is_name = len(token) > 1 and ((may_be_name and token[0].isupper()) or token.isupper())
    return [(part, "name" if is_name else "word") for part in parts]


def _number(token: str, following: str) -> str:
    match = _DIGITS.match(token)
    digits = _THOUSANDS.sub("", match[1]) if match else token
    whole, dot, rest = digits.partition(".")
    if dot and rest.isdigit():
        digits = f"{whole}.{rest.rstrip('0')}".rstrip(".")
    return _scaled(digits.lstrip("0") or "0", following)


def _scaled(digits: str, following: str) -> str:
    """`1.5` before `million` -> `1500000`; a number that is none in the decimal system stays as it is."""
    scale = _SCALES.get(following)
    if scale is None or not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", digits):
        return digits
    return f"{float(digits) * scale:.10g}" if "." in digits else str(int(digits) * scale)
