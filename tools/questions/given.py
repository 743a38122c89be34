"""Questions of the user's own, with their answers; and whether a question finds its passage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from retrieval.passages import folded
from tools.evaluation.asked import Asked
from tools.questions.library import Library
from tools.questions.types import Question, document_of, stands_in

_AT_ONCE = 64  # questions that are searched for


def placed(given: Sequence[Asked], library: Library, among: int) -> Iterator[Question | str]:
    """Each question with the first of its `among` best hits that holds an answer, and is of its document where one is
    named; or why there is none."""
    for start in range(0, len(given), _AT_ONCE):
        batch = given[start : start + _AT_ONCE]
        for each, hits in zip(batch, library.search([each.question for each in batch], among), strict=True):
            wanted = [hit.passage for hit in hits if each.document in (None, document_of(hit.passage.id))]
            matches = ((answer, passage) for passage in wanted for answer in each.answers)
            found = next((match for match in matches if stands_in(match[0], match[1].text)), None)
            if found is None:
                yield "given questions of which no passage that is found holds an answer"
            else:
                first, passage = found
                rest = (answer for answer in each.answers if answer != first)
                yield Question(each.question, "given", (first, *rest), passage)


def round_trip(question: Question, library: Library, among: int) -> Question | str:
    """The question, if its passage, or one of the same text, is among its `among` best hits; its passage is then the
    one that was found."""
    hits = library.search([question.text], among)[0]
    text = folded(question.passage.text)
    found = next((hit.passage for hit in hits if folded(hit.passage.text) == text), None)
    return replace(question, passage=found) if found else "questions that do not find their passage"
