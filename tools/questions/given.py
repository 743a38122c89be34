"""Questions of the user's own, with their answers; and whether a question finds its passage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.files import read_text
from retrieval.passages import folded
from tools.questions.library import Library
from tools.questions.types import Question, document_of, stands_in

_AT_ONCE = 64  # questions that are searched for


@dataclass(frozen=True)
class Given:
    """A question with its accepted answers, none where the documents do not answer it, and the id of the document that
    holds one, where the user names it."""

    text: str
    answers: tuple[str, ...]
    document: str | None = None


def read_given(path: Path) -> list[Given]:
    """The rows of JSON Lines: `question`, perhaps `answer` or `answers`, and `document`. Raises ValueError, which names
    the line, for another."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            found.append(_given(line, f"{path}:{number}"))
    if not found:
        raise ValueError(f"{path}: holds no question; write one JSON object a line")
    return found


def _given(line: str, where: str) -> Given:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{where}: not a line of JSON") from None
    text = row.get("question") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: needs `question`, a text")
    answers = row.get("answers") or row.get("answer") or []
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(each, str) for each in answers):
        raise ValueError(f"{where}: `answer` must be a text, `answers` a list of texts")
    document = row.get("document")
    if not isinstance(document, str | None):
        raise ValueError(f"{where}: `document` must be the id of a document, a text")
    return Given(text.strip(), tuple(answers), document)


def placed(given: Sequence[Given], library: Library, among: int) -> Iterator[Question | str]:
    """Each question with the first of its `among` best hits that holds an answer, and is of its document where one is
    named; or why there is none."""
    for start in range(0, len(given), _AT_ONCE):
        batch = given[start : start + _AT_ONCE]
        for each, hits in zip(batch, library.search([each.text for each in batch], among), strict=True):
            wanted = [hit.passage for hit in hits if each.document in (None, document_of(hit.passage.id))]
            matches = ((answer, passage) for passage in wanted for answer in each.answers)
            found = next((match for match in matches if stands_in(match[0], match[1].text)), None)
            if found is None:
                yield "given questions of which no passage that is found holds an answer"
            else:
                first, passage = found
                rest = (answer for answer in each.answers if answer != first)
                yield Question(each.text, "given", (first, *rest), passage)


def round_trip(question: Question, library: Library, among: int) -> Question | str:
    """The question, if its passage, or one of the same text, is among its `among` best hits; its passage is then the
    one that was found."""
    hits = library.search([question.text], among)[0]
    text = folded(question.passage.text)
    found = next((hit.passage for hit in hits if folded(hit.passage.text) == text), None)
    return replace(question, passage=found) if found else "questions that do not find their passage"
