"""Questions about documents, as files have them: of the user, or of tools/make_qa.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import read_text


@dataclass(frozen=True)
class Asked:
    """A question with its accepted answers, none where the documents do not answer it.

    document, passage: the ids of the document and of the passage that hold an answer, where they are known. without:
    ids of passages that a search is to leave out. row: all of it, as it stands in the file.
    """

    question: str
    answers: tuple[str, ...] = ()
    document: str | None = None
    passage: str | None = None
    without: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)


def read_asked(path: Path) -> list[Asked]:
    """The rows of JSON Lines: `question`, and perhaps `answer` (or `answers`), `document`, `passage` and `without`.
    Raises ValueError, which names the line, for one that is no question, and for a file without any."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    found = [_asked(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path}: holds no question; write one JSON object a line")
    return found


def _asked(line: str, where: str) -> Asked:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{where}: not a line of JSON") from None
    question = row.get("question") if isinstance(row, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: needs `question`, a text")
    answers, without = row.get("answers") or row.get("answer") or [], row.get("without") or []
    answers = [answers] if isinstance(answers, str) else answers
    if not _are_texts(answers):
        raise ValueError(f"{where}: `answer` must be a text, `answers` a list of texts")
    if not _are_texts(without):
        raise ValueError(f"{where}: `without` must be a list of ids of passages, texts")
    for name in ("document", "passage"):
        if not isinstance(row.get(name), str | None):
            raise ValueError(f"{where}: `{name}` must be the id of a {name}, a text")
    return Asked(question.strip(), tuple(answers), row.get("document"), row.get("passage"), tuple(without), row)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
