"""Questions for calibration and tuning: made from passages, or the user's own. See `calibration` for why made so.

for question in make_questions(passages, num=300):
    question.text       # for the encoder
    question.words      # for BM25
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from sentencex import segment

from retrieval.scoring.tokens import Tokenizer
from retrieval.types import Passage

NUM_CONTENT_WORDS = (2, 4)  # of the clause; the subject comes on top
EXCHANGED = 0.45  # of the content words, for BM25: real questions share half of theirs, by idf, with what answers them
MAX_TITLE_WORDS = 5
DUPLICATE_COSINE = 0.85  # passages as alike as this are held out together
COMMON = 0.25  # of the passages: a word in more of them is taken for a function word, in every language
MAX_POOL = 200  # passages whose words serve for the exchange
LANGUAGE = "english"
_WORD = re.compile(r"\w+(?:['’.-]\w+)*")
_GOLD = ("passages", "passage", "documents", "document", "source")
_ASKING = ("what is", "who", "when did", "where is", "how many", "which", "what")


@dataclass(frozen=True)
class Question:
    """A question made from passage number `passage` of those given, from its sentence `sentence`.

    `text` is what the encoder is to search for, `words` what BM25 is.
    """

    text: str
    words: str
    passage: int
    sentence: str


@dataclass(frozen=True)
class Labelled:
    """A question of the user's own. `gold`: ids or sources of what answers it, as far as the user gave them; holding
    these out makes an unanswerable question of it. `for_test`: it is kept to measure with."""

    text: str
    answerable: bool
    gold: tuple[str, ...] = ()
    for_test: bool = False


def make_questions(passages: Sequence[Passage], num: int, seed: int = 0, language: str = LANGUAGE) -> list[Question]:
    """Up to `num` questions, each from another passage; the same for the same seed. `passages`, a sample of an index
    of perhaps 2,000, also says which words are common. Passages without a sentence of 3 content words
    give none.

    Raises ValueError for num < 1.
    """
    if num < 1:
        raise ValueError(f"num is {num}; ask for at least 1 question")
    rng = random.Random(seed)  # noqa: S311
    words = _Words(passages, language)
    pool = _pool(passages, words, rng)
    questions: list[Question] = []
    for number in rng.sample(range(len(passages)), len(passages)):
        if len(questions) == num:
            break
        sentence = _sentence(passages[number], words, rng)
        if sentence is not None:
            parts = [_clause(sentence, words, rng), _subject(passages[number], words)]
            rng.shuffle(parts)
            questions.append(_question(parts[0] + parts[1], sentence, number, pool, words, rng))
    return questions


def is_held_out(question: Question, text: str, cosine: float) -> bool:
    """Whether a passage of this text, with this cosine to the question's own passage, would answer the question too:
    the passage itself, an overlapping window, a near duplicate."""
    return cosine >= DUPLICATE_COSINE or question.sentence in text


def read_labelled(path: str | Path) -> list[Labelled]:
    """The user's questions: JSON Lines with "question" and either "answerable" (true or false) or what answers it:
    "passages" or "documents" (lists of ids; "passage" or "document", one) or "source" (a path), null or empty for
    nothing. "split": "test" says that it is kept to measure with, as tools/make_qa.py writes it.

    Raises ValueError, naming the line, for anything else.
    """
    questions = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    questions.append(_labelled(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"cannot read the questions in {path}: {reason}") from None
    if not questions:
        raise ValueError(f"{path} holds no questions; write one JSON object a line")
    return questions


def _labelled(line: str, where: str) -> Labelled:
    try:
        record: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{where}: not a JSON object") from None
    text = record.get("question") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: needs "question", a text')
    gold: list[str] = []
    for key in _GOLD:
        value = record.get(key)
        values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if (value is not None and not isinstance(value, str | list)) or not all(isinstance(i, str) for i in values):
            raise ValueError(f'{where}: "{key}" must be a text or a list of texts')
        gold.extend(values)
    answerable = record.get("answerable", bool(gold))
    if not isinstance(answerable, bool) or not {"answerable", *_GOLD} & set(record):
        raise ValueError(f'{where}: needs "answerable" (true or false), or "passages", "documents" or "source"')
    return Labelled(text, answerable, tuple(gold) if answerable else (), record.get("split") == "test")


class _Words:
    """Which words of a corpus carry content, and how rare they are."""

    def __init__(self, passages: Sequence[Passage], language: str) -> None:
        self._tokenizer = Tokenizer(language)
        self._num = len(passages)
        self._counts = Counter(
            term for passage in passages for term in {self.term(word) for word in _WORD.findall(passage.text)}
        )

    def term(self, word: str) -> str:
        return "".join(self._tokenizer.tokens(word))

    def is_content(self, word: str) -> bool:
        term = self.term(word)
        # Of few passages, most words are in a quarter.
        return len(term) > 1 and (self._num < 40 or self._counts[term] <= COMMON * self._num)

    def content(self, text: str) -> list[str]:
        return [word for word in _WORD.findall(text) if self.is_content(word)]

    def rarity(self, word: str) -> float:
        """Inverse document frequency: higher for words in fewer passages."""
        return math.log((self._num + 1) / (self._counts[self.term(word)] + 0.5))


def _pool(passages: Sequence[Passage], words: _Words, rng: random.Random) -> list[str]:
    """Content words, the more often a word is used the more often it is here."""
    chosen = rng.sample(passages, min(MAX_POOL, len(passages)))
    return [word for passage in chosen for word in words.content(passage.text)]


def _sentence(passage: Passage, words: _Words, rng: random.Random) -> str | None:
    """A sentence that says something, at random."""
    sentences = [part.strip() for line in passage.text.split("\n") for part in segment("en", line)]
    good = [sentence for sentence in sentences if len(words.content(sentence)) > NUM_CONTENT_WORDS[0]]
    return rng.choice(good) if good else None


def _clause(sentence: str, words: _Words, rng: random.Random) -> list[str]:
    """Some words of a sentence in their order, without one name or number of it: what would be asked for."""
    written = _WORD.findall(sentence)
    runs = [list(run) for named, run in groupby(range(1, len(written)), lambda i: _is_name(written[i])) if named]
    answer = set(rng.choice(runs)) if runs else set()
    content = [i for i, word in enumerate(written) if words.is_content(word)]
    left = [i for i in content if i not in answer] or content
    num = min(rng.randint(*NUM_CONTENT_WORDS), len(left))
    start = rng.randrange(len(left) - num + 1)
    return [written[i] for i in range(left[start], left[start + num - 1] + 1) if i not in answer or i in left]


def _is_name(word: str) -> bool:
    return word[0].isupper() or word[0].isdigit()


def _subject(passage: Passage, words: _Words) -> list[str]:
    """The title's content words, or of a passage without them its two most telling words."""
    if title := words.content(passage.title)[:MAX_TITLE_WORDS]:
        return title
    used = Counter(word.lower() for word in words.content(passage.text))
    return sorted(used, key=lambda word: (-used[word] * words.rarity(word), word))[:2]


def _question(
    written: list[str], sentence: str, number: int, pool: list[str], words: _Words, rng: random.Random
) -> Question:
    """A question word and `written`, each word once."""
    asked = [*rng.choice(_ASKING).split(), *dict.fromkeys(word.lower() for word in written)]
    exchanged = [rng.choice(pool) if words.is_content(word) and rng.random() < EXCHANGED else word for word in asked]
    return Question(" ".join(asked), " ".join(exchanged).lower(), number, sentence)
