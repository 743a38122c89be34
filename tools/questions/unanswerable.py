"""Questions that the documents do not answer, made of ones that they do. Two ways, both checked literally:

- hidden: the passages that hold an answer, among the best hits, are left out of the search; the rest stays.
- swapped: another name or number stands in the question in the place of its own, and no passage among the best hits
  holds it together with most of the question's other words.

What a passage says in other words is not seen.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from retrieval.types import Hit
from tools.questions.library import Library
from tools.questions.types import NAME, NUMBER, Question, stands_in, terms

DEPTH = 100  # hits that are checked
SUBJECT = 0.5  # of a question's other words: a passage with so many of them is about the same
_TRIES = 8  # names or numbers tried for one question


def answering(question: Question, hits: Sequence[Hit], twins: Collection[str]) -> frozenset[str]:
    """Ids of the passages that hold an answer to `question` among `hits`; its own, and its `twins`, in any case."""
    held = (hit.passage for hit in hits if any(stands_in(answer, hit.passage.text) for answer in question.answers))
    return frozenset([*twins, *(passage.id for passage in held), question.passage.id])


def hidden(question: Question, without: Collection[str]) -> Question:
    """The question, asked of an index that does not have the passages `without`."""
    return Question(question.text, "hidden", (), question.passage, tuple(sorted(without)))


def names_in(questions: Sequence[Question]) -> list[str]:
    """The names of the questions, each once, in order."""
    return list(dict.fromkeys(name for each in questions for name in NAME.findall(each.text)))


def swapped(question: Question, names: Sequence[str], library: Library, rng: random.Random) -> Question | None:
    """The question with another name, of `names`, or another number; None where it has neither, or nothing else was
    found that the documents do not answer."""
    match = next((found for pattern in (NAME, NUMBER) if (found := pattern.search(question.text))), None)
    if match is None:
        return None
    others = [each for each in names if not set(each.split()) & set(match[0].split())]
    for _ in range(_TRIES):
        new = str(int(match[0]) + rng.choice((-1, 1)) * rng.randint(3, 40)) if match[0].isdigit() else ""
        new = new or (rng.choice(others) if others else "")
        text = question.text[: match.start()] + new + question.text[match.end() :]
        if new and not _is_answered(text, new, question.text.replace(match[0], " "), library):
            return Question(text, "swapped", (), question.passage)
    return None


def _is_answered(text: str, new: str, rest: str, library: Library) -> bool:
    """Whether a passage that is found holds the new name, or a number, and enough of the other words."""
    named, subject = terms(new), terms(rest)
    for hit in library.search([text], DEPTH)[0]:
        here = terms(f"{hit.passage.title} {hit.passage.text}")
        if named <= here and len(subject & here) >= SUBJECT * len(subject):
            return True
    return False
