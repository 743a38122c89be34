"""What the files of this folder speak of: a question with its answers and the passage that holds them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from retrieval.scoring.tokens import Tokenizer
from retrieval.types import Passage
from tools.evaluation.rag import holds, normalized

# generated, given: answered by `passage`. hidden: answered by passages that a search has to leave out. swapped: another
# name or number in the place of its own.
Kind = Literal["generated", "given", "hidden", "swapped"]

# A run of capitalised words after another word, or a number of two digits and more: what a question may ask for, and
# what makes it another question where it is exchanged.
NAME = re.compile(r"(?<=[\w,] )[A-Z][\w'’-]+(?: (?:of |the )*[A-Z][\w'’-]+)*")
NUMBER = re.compile(r"(?<=[\w,] )\d{2,4}\b(?![,.]\d)")


@dataclass(frozen=True)
class Question:
    """A question. `answers`: the accepted ones, the first of which stands in `passage`; none where the documents do not
    answer it, and `passage` is the one that it was made of. `without`: ids of the passages that a search for it is to
    leave out."""

    text: str
    kind: Kind
    answers: tuple[str, ...]
    passage: Passage
    without: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Equal for questions that differ in case, articles and punctuation alone."""
        return normalized(self.text)


def document_of(passage_id: str) -> str:
    """The id of a passage's document."""
    return passage_id.rpartition("#")[0]


def terms(text: str) -> frozenset[str]:
    """The stems of the words of `text`, without English function words."""
    return frozenset(_tokenizer().tokens(text))


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer()


def stands_in(answer: str, text: str) -> bool:
    """Whether `answer`, normalized as for SQuAD, is a run of whole words of `text`; an empty one is not."""
    return bool(normalized(answer)) and holds(normalized(text), [answer])
