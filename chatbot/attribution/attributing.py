"""Which passages support each sentence of an answer: numbers and names literally, negations, words, and meaning.

A passage supports a sentence where every number and name of the sentence stands in it (or in its title) beside words
that also stand beside it in the sentence, where it denies nothing that the sentence affirms nor the other way round,
and where enough of the sentence's words stand in it, or an encoder puts the two close together. The thresholds were
found by `tools/bench/attribution.py`, which measures this. What only the order of words tells (who beat whom) is not
seen, and a sentence in quite other words than the passage's passes for unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from chatbot.attribution.facts import Fact, facts
from chatbot.attribution.sentences import citations, spans, with_citations, without_citations
from retrieval.passages import titled
from retrieval.types import Passage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Encode = Callable[[Sequence[str]], NDArray[np.float32]]

THRESHOLD = 0.5  # of the score, from which on a sentence counts as supported; the score is the share of its words found
SIMILAR = 0.7  # the cosine with a sentence of the passage that counts as much
LOCAL = 0.3  # of the words beside a number or name in the sentence, that must stand beside it in the passage
BESIDE, NEAR = 5, 2  # how many words on either side that is, in the sentence and in the passage
_UNTOLD = re.compile(
    r"\b(?:documents?|passages?|texts?|sources?|information|context)\b.{0,60}\b(?:not|no|n't|never)\b|"
    r"\b(?:not|no|n't|cannot)\b.{0,60}\b(?:documents?|passages?|sources?|information|context)\b|"
    r"\bI (?:do not|don't|cannot|can't|am unable|am not)\b|\bI'm (?:not|sorry|unable)\b",
    re.IGNORECASE,
)
_DEMONYM = re.compile(r"(?:an|ian|ese|ish|ic|i|y|s|a|ia|land)?$")


def says_unknown(sentence: str) -> bool:
    """Whether a sentence says that something is not known, or that the passages do not say (in English)."""
    return bool(_UNTOLD.search(sentence))


@dataclass(frozen=True)
class Attribution:
    """What stands behind one sentence of an answer.

    `start`, `end`: its place in the answer, in characters. `score`: 0 to 1, higher is better; 0 where a number, a name
    or a negation is wrong. `passages`: the numbers, from 1, of the passages that support it, best first; none where it
    is not supported. `reason`: why not, '' where it is. `cited`: the numbers that it cites itself.
    """

    text: str
    start: int
    end: int
    score: float
    passages: tuple[int, ...] = ()
    reason: str = ""
    cited: tuple[int, ...] = ()

    @property
    def supported(self) -> bool:
        """Whether a passage that was shown supports it."""
        return bool(self.passages)


class Attributor:
    """Attributes sentences to `passages`, whose numbers are 1, 2, ... in their order. Without `encode` it goes by words
    alone, in a few milliseconds; `encode` is asked about a sentence only where too few of its words stand in a passage
    while nothing speaks against it. Deterministic."""

    def __init__(self, passages: Sequence[Passage], encode: Encode | None = None) -> None:
        self._texts = [_Evidence(each.title, each.text) for each in passages]
        self._encode = encode

    def attribute(self, answer: str) -> tuple[Attribution, ...]:
        """An `Attribution` for each sentence that states something; questions, and sentences that say that something is
        not known, have none. Without passages there are none at all."""
        found = []
        for start, end in spans(answer) if self._texts else ():
            sentence = answer[start:end]
            if (judged := self._judge(sentence)) is not None:
                score, passages, reason = judged
                found.append(Attribution(sentence, start, end, score, passages, reason, citations(sentence)))
        return tuple(found)

    def corrected(self, sentence: str) -> str:
        """`sentence` with those of its `[n]` that are wrong corrected, or removed where no passage supports it."""
        cited = citations(sentence)
        if not cited:
            return sentence
        judged = self._judge(sentence)
        if judged is None:  # it states nothing that could be wrong
            return with_citations(sentence, [each for each in cited if 1 <= each <= len(self._texts)])
        right = judged[1]
        return with_citations(sentence, [each for each in cited if each in right] or right[:1])

    def _judge(self, sentence: str) -> tuple[float, tuple[int, ...], str] | None:
        """(score, passages, reason); None for a sentence that states nothing."""
        bare = without_citations(sentence)
        stated = facts(bare)
        if not stated or bare.rstrip().endswith(("?", ":")) or says_unknown(bare):
            return None
        judged = [(*self._compare(bare, stated, each), n) for n, each in enumerate(self._texts, start=1)]
        cited = [each for each in citations(sentence) if 1 <= each <= len(self._texts)]
        best = max(judged, key=lambda each: (each[0], each[1], -each[3]))
        right = sorted((each for each in judged if each[0] >= THRESHOLD), key=lambda each: (-each[0], each[3]))
        if not right and len(cited) > 1:  # each may support a part
            score, _, reason = self._compare(bare, stated, _joined([self._texts[n - 1] for n in cited]))
            if score >= THRESHOLD:
                return score, tuple(cited), reason
        return round(best[0], 4), tuple(n for *_, n in right), "" if right else best[2]

    def _compare(self, sentence: str, stated: Sequence[Fact], evidence: _Evidence) -> tuple[float, float, str]:
        """(score, share of the words found, reason) of a sentence against one text."""
        share = evidence.share(stated)
        if problem := evidence.contradiction(stated):
            return 0.0, share, problem
        score = share
        if score < THRESHOLD and self._encode is not None:  # in other words, maybe; encoding takes longest by far
            score = max(score, min(1.0, evidence.similarity(sentence, self._encode) * THRESHOLD / SIMILAR))
        return score, share, "" if score >= THRESHOLD else "too little of it stands in the passages"


@dataclass
class _Evidence:
    """A text that may support a sentence, with its title."""

    title: str
    text: str
    _vectors: NDArray[np.float32] | None = field(default=None, init=False)

    @cached_property
    def sentences(self) -> list[str]:
        return [self.text[start:end] for start, end in spans(self.text, with_code=True)]

    @cached_property
    def parts(self) -> list[tuple[Fact, ...]]:
        """The facts of the title, then those of each sentence."""
        return [facts(self.title), *map(facts, self.sentences)]

    @cached_property
    def terms(self) -> list[tuple[str, int]]:
        """Every term in order, with the number of its part."""
        return [(fact.term, number) for number, part in enumerate(self.parts) for fact in part]

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Where in `terms` each term stands."""
        found: dict[str, list[int]] = {}
        for place, (term, _) in enumerate(self.terms):
            found.setdefault(term, []).append(place)
        return found

    @cached_property
    def title_terms(self) -> frozenset[str]:
        return frozenset(fact.term for fact in self.parts[0])

    def has(self, fact: Fact) -> bool:
        return fact.term in self.places or bool(fact.kind == "name" and self._related(fact.term))

    def _related(self, name: str) -> str:
        """A term of the text that differs from a name only as Portugal does from Portuguese; '' for none."""
        for term in self.places:
            same = _common_prefix(name, term)
            if same >= 4 and _DEMONYM.fullmatch(name[same:]) and _DEMONYM.fullmatch(term[same:]):
                return term
        return ""

    def share(self, stated: Sequence[Fact]) -> float:
        """Of the different words of a sentence, the share that the text has."""
        different = {each.term: each for each in stated}
        return sum(self.has(each) for each in different.values()) / len(different)

    def contradiction(self, stated: Sequence[Fact]) -> str:
        """What the text lacks or says otherwise, as a reason; '' for nothing."""
        for each in stated:
            if each.kind == "word":
                continue
            if not self.has(each):
                return f"'{each.text}' does not stand in the passages"
            if each.term not in self.title_terms and self._locality(each, stated) < LOCAL:
                return f"'{each.text}' stands there for something else"
        return self._denial(stated)

    def _locality(self, fact: Fact, stated: Sequence[Fact]) -> float:
        """Of the words beside a fact that the text has at all, the share that stands near it there: in the same
        sentence or a word or two away. 1 where the very next word, no name, does."""
        neighbours = stated[max(fact.place - BESIDE, 0) : fact.place + BESIDE + 1]
        beside = {each.term for each in neighbours if each.term != fact.term and self.has(each)} - self.title_terms
        if not beside:
            return 1.0
        next_to = {
            each.term for each in stated[max(fact.place - 1, 0) : fact.place + 2] if each.kind == "word"
        } & beside
        most = 0
        for place in self.places.get(fact.term) or self.places[self._related(fact.term)]:
            near = {term for term, _ in self.terms[max(place - NEAR, 0) : place + NEAR + 1]}
            near |= {each.term for each in self.parts[self.terms[place][1]]}
            if next_to & near:
                return 1.0
            most = max(most, len(beside & near))
        return most / len(beside)

    def _denial(self, stated: Sequence[Fact]) -> str:
        """What the sentence that shares the most words says the opposite of, as a reason; '' for nothing."""
        terms = {each.term for each in stated} - self.title_terms  # these go without saying in every sentence
        aligned = max(self.parts[1:], key=lambda part: len(terms & {each.term for each in part}), default=())
        for fact in stated:
            here = {each.denied for each in stated if each.term == fact.term}
            there = {each.denied for each in aligned if each.term == fact.term}
            if there and not here & there:
                return f"the passages {'deny' if True in there else 'affirm'} '{fact.text}'"
        return ""

    def similarity(self, sentence: str, encode: Encode) -> float:
        """The highest cosine of the sentence with the text's sentences and the whole, 0 to 1."""
        if self._vectors is None:
            self._vectors = encode([titled(self.title, self.text), *self.sentences])
        return float(max(0.0, min(1.0, (self._vectors @ encode([sentence])[0]).max())))


def _joined(texts: Sequence[_Evidence]) -> _Evidence:
    return _Evidence(". ".join(each.title for each in texts), "\n".join(each.text for each in texts))


def _common_prefix(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
