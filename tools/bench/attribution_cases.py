"""Sentences that passages support, and the same altered so that they do not: for tools/bench/attribution.py.

The rules here share nothing with chatbot/attribution, so that the two cannot agree by being wrong alike.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from retrieval.types import Passage

NUM_SHOWN = 3
LITERAL = ("number changed", "number swapped", "name changed", "name swapped")

_SENTENCE = re.compile(r"(?:(?<=[.!?]\s)|^)[A-Z][^.!?\n]{30,250}\.(?=\s|$)")
_NUMBER = re.compile(r"(?<![\w.,-])\d{1,3}(?:,\d{3})+(?![\w-])|(?<![\w.,:-])\d+(?![\w%:-]|[.,]\d)")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-zéèöüó]{2,}(?: [A-Z][a-zéèöüó]{2,})*")
_NOT_NAMES = {
    "The",
    "This",
    "These",
    "Those",
    "When",
    "While",
    "After",
    "Before",
    "And",
    "But",
    "For",
    "His",
    "Her",
    "Its",
}
_NOT = re.compile(r"\b(is|are|was|were|can|could|will|would|does|did|has|have|had|must|may) not |\bnever |\bno longer ")
_VERB = re.compile(r"\b(is|are|was|were|can|could|will|would|must|may)\b (?!not\b|no\b)")
_LEADING = re.compile(r"^((?:In|On|By|During|After|Before|At|Since|From) [^,]{3,60}), (?=[a-zA-Z])")
_ASIDE = re.compile(r" \([^()]{2,80}\)")
_TRAILING = re.compile(r", (?:which|who|where|although|while|including|such as|making|but|and) [^,]{5,160}\.$")
_PAIRS = (
    "began=started,large=big,largest=biggest,built=constructed,created=made,also=in addition,about=around,"
    "located=situated,many=numerous,became=turned into,important=significant,often=frequently,usually=normally,"
    "found=discovered,first=initial,small=little,various=different,main=principal,however=though,because=since,"
    "received=got,died=passed away,shows=displays,used=employed,several=some,city=town,released=published,"
    "show=programme,film=movie,song=track,started=began,made=produced,major=chief,helps=aids,requires=needs,"
    "begins=starts,ended=finished,over=more than"
)
_SYNONYMS = dict(re.findall(r"(\w+)=([^,]+)", _PAIRS))
_NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_DIGITS = {word: number for number, word in enumerate(_NUMBER_WORDS, start=2)}


class Case(NamedTuple):
    """A sentence of one `kind`, the `passages` shown, and the number of the one that supports it, 0 for none."""

    kind: str
    sentence: str
    passages: tuple[Passage, ...]
    gold: int
    document: str


def make_cases(passages: Sequence[Passage], count: int, seed: int = 0) -> list[Case]:
    """The cases of `count` sentences, each from a passage of its own; as many passages as have one."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    near = _Nearest(passages)
    names = sorted({name for each in passages for name in _names(each.text)})
    order = list(passages)
    rng.shuffle(order)
    found: list[Case] = []
    taken = 0
    for passage in order:
        sentences = _SENTENCE.findall(passage.text)
        if not sentences or taken == count:
            continue
        taken += 1
        others = near(passage)
        shown = [passage, *others[: NUM_SHOWN - 1]]
        rng.shuffle(shown)
        sentence = rng.choice(sentences)
        gold = shown.index(passage) + 1
        for kind, text in _supported(sentence, passage, rng):
            found.append(Case(kind, text, tuple(shown), gold, passage.title))
        for kind, text in _altered(sentence, passage, shown, names, rng):
            found.append(Case(kind, text, tuple(shown), 0, passage.title))
        found.append(Case("wrong passages", sentence, tuple(others[:NUM_SHOWN]), 0, passage.title))
    return found


def read_paraphrases(file: Path, passages: Sequence[Passage]) -> list[Case]:
    """Sentences that people wrote on `passages`: each with the passage that has its `anchor`, and the next ones."""
    found = []
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        own = [each for each in passages if each.source.endswith(row["source"])]
        place = next(i for i, each in enumerate(own) if row["anchor"] in " ".join(each.text.split()))
        shown = (own[place], *(own + own)[place + 1 : place + NUM_SHOWN])
        kind = "by hand, supported" if row["supported"] else "by hand, wrong"
        found.append(Case(kind, row["sentence"], shown, int(row["supported"]), row["source"]))
    return found


def _supported(sentence: str, passage: Passage, rng: random.Random) -> Iterator[tuple[str, str]]:
    yield "as it stands", sentence
    if (short := _shortened(sentence)) != sentence:
        yield "shortened", short
    if (other := _reworded(sentence)) != sentence:
        yield "reworded", other
    rest = [each for each in _SENTENCE.findall(passage.text) if each != sentence]
    if rest:
        second = rng.choice(rest)
        yield "two joined", f"{_shortened(sentence)[:-1]}, and {_shortened(second)}"


def _shortened(sentence: str) -> str:
    """Without asides in brackets, an opening phrase, and a clause at the end, as far as half of it is left."""
    short = sentence
    for pattern in (_ASIDE, _TRAILING, _LEADING):
        cut = pattern.sub("." if pattern is _TRAILING else "", short)
        if len(cut) >= max(30, len(sentence) // 2):
            short = cut
    return short[0].upper() + short[1:]


def _reworded(sentence: str) -> str:
    """Other words for some, digits for number words, and the opening phrase at the end."""
    text = re.sub(r"[a-z]+", lambda match: _SYNONYMS.get(match[0], match[0]), sentence)
    text = re.sub(r"[a-z]+", lambda match: str(_DIGITS.get(match[0], match[0])), text)
    if leading := _LEADING.match(text):
        rest = text[leading.end() : -1]
        text = f"{rest[0].upper()}{rest[1:]} {leading[1][0].lower()}{leading[1][1:]}."
    return text


def _altered(
    sentence: str, passage: Passage, shown: Sequence[Passage], names: Sequence[str], rng: random.Random
) -> Iterator[tuple[str, str]]:
    everything = " ".join(f"{each.title} {each.text}" for each in shown)
    if numbers := list(_NUMBER.finditer(sentence)):
        match = rng.choice(numbers)
        known = set(_NUMBER.findall(everything))
        fresh = next(each for each in iter(lambda: _other_number(match[0], rng), "") if each not in known)
        yield "number changed", _put(sentence, match, fresh)
        inside = sorted(set(_NUMBER.findall(passage.text)) - set(_NUMBER.findall(sentence)))
        if inside:
            yield "number swapped", _put(sentence, match, rng.choice(inside))
    if matches := [match for match in _NAME.finditer(sentence) if match[0] not in _NOT_NAMES]:
        match = rng.choice(matches)
        strange = next(
            each for each in iter(lambda: rng.choice(names), "") if not any(word in everything for word in each.split())
        )
        yield "name changed", _put(sentence, match, strange)
        inside = sorted(
            name for name in set(_names(passage.text)) if not any(word in sentence for word in name.split())
        )
        if inside:
            yield "name swapped", _put(sentence, match, rng.choice(inside))
    title = passage.title.partition(" > ")[0]
    if sentence.startswith(title) and title[0].isupper():
        strange = next(each for each in iter(lambda: rng.choice(names), "") if each not in everything)
        yield "subject changed", strange + sentence[len(title) :]
    if _NOT.search(sentence):
        yield "negation removed", _NOT.sub(lambda match: f"{match[1]} " if match[1] else "", sentence, count=1)
    elif _VERB.search(sentence):
        yield "negation added", _VERB.sub(lambda match: f"{match[1]} not ", sentence, count=1)


def _other_number(number: str, rng: random.Random) -> str:
    plain = int(number.replace(",", ""))
    if 1000 <= plain <= 2100 and "," not in number:
        return str(plain + rng.choice([-1, 1]) * rng.randint(1, 40))
    other = max(0, plain + rng.choice([-1, 1]) * rng.randint(1, max(9, plain // 2)))
    return f"{other:,}" if "," in number else str(other)


def _put(sentence: str, match: re.Match[str], text: str) -> str:
    return sentence[: match.start()] + text + sentence[match.end() :]


def _names(text: str) -> list[str]:
    return [name for name in _NAME.findall(text) if name not in _NOT_NAMES]


class _Nearest:
    """The passages of other documents that share the most rare words with one."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        self.words: Callable[[Passage], set[str]] = lambda each: set(re.findall(r"[a-z]{4,}", each.text.lower()))
        self.with_word: defaultdict[str, list[int]] = defaultdict(list)
        for number, each in enumerate(passages):
            for word in self.words(each):
                self.with_word[word].append(number)

    def __call__(self, passage: Passage) -> list[Passage]:
        shared: Counter[int] = Counter()
        for word in sorted(self.words(passage)):
            holders = self.with_word[word]
            if len(holders) <= max(5, len(self.passages) // 20):
                for number in holders:
                    shared[number] += 1
        document = passage.title.partition(" > ")[0]
        ranked = (self.passages[number] for number, _ in shared.most_common(50))
        others = [each for each in ranked if each.title.partition(" > ")[0] != document]
        return others[: NUM_SHOWN + 1]
