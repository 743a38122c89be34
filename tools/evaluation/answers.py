"""Answers that are to be judged: what `generate` wrote, or the last answers of conversations in any format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chatbot.conversation import Conversation
from tools.evaluation.resuming import read_records
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import ChatRow, RankedRow


class Answered(NamedTuple):
    """Answers to one prompt; without a prompt they are whole texts. `given`: the scores that somebody gave them."""

    place: str
    prompt: Conversation | None
    answers: tuple[str, ...]
    given: tuple[float | None, ...] | None = None


def is_generated(data: str) -> bool:
    """Whether a file is one that `generate` wrote: its first line has messages and an answer to them."""
    if not Path(f"{data}.settings.json").is_file():
        return False
    _, first = next(_records(data), (0, {}))
    return "messages" in first and "answer" in first


def read_answers(data: str, report: Report, strict: bool = True) -> Iterator[Answered]:
    """An answer for each row: what `generate` wrote, or the last of each conversation. A row that cannot be used is a
    ValueError, or counted unless `strict`."""
    if is_generated(data):
        yield from _generated(data)
        return
    for place, row in read_rows(Source(data), (ChatRow,), report, strict):
        if isinstance(row, ChatRow):  # it is no other: that was asked for
            yield _last_answer(place, row)


def read_scored(reports: Mapping[str, Report], strict: bool = True) -> Iterator[Answered]:
    """The answers of ranked rows, preferences and conversations in files (each with its report to fill); or those that
    stand in the same row of several files of `generate`, together. Raises ValueError where these answer different
    prompts."""
    files = list(reports)
    if is_generated(files[0]):
        for rows in aligned([list(_generated(each)) for each in files], files):
            yield Answered(rows[0].place, rows[0].prompt, tuple(row.answers[0] for row in rows))
        return
    for each, report in reports.items():
        for place, row in read_rows(Source(each), (RankedRow, ChatRow), report, strict):
            if isinstance(row, RankedRow):
                yield Answered(place, row.prompt, row.responses, row.scores)
            elif isinstance(row, ChatRow):
                yield _last_answer(place, row)


def aligned(columns: Sequence[Sequence[Answered]], names: Sequence[str]) -> Iterator[tuple[Answered, ...]]:
    """The rows of several files side by side. Raises ValueError where they are not answers to the same prompts."""
    counts = [len(column) for column in columns]
    if len(set(counts)) > 1:
        told = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
        raise ValueError(f"the files have different numbers of answers ({told}); make them from the same prompts")
    for rows in zip(*columns, strict=True):
        for row in rows[1:]:
            if row.prompt != rows[0].prompt:
                raise ValueError(
                    f"{rows[0].place} and {row.place} answer different prompts; make both files from the same prompts"
                )
        yield rows


def _generated(data: str) -> Iterator[Answered]:
    if not is_generated(data):
        raise ValueError(f"{data}: `generate` did not write it; name files of one kind")
    for number, row in _records(data):
        yield Answered(f"{data}:{number}", Conversation.from_dicts(row["messages"]), (row["answer"],))


def _records(data: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row). Raises ValueError for a line that was not written whole."""
    try:
        yield from enumerate(read_records(Path(data)), start=1)
    except json.JSONDecodeError:
        raise ValueError(f"{data} ends within a line; run the command that writes it again, to its end") from None


def _last_answer(place: str, row: ChatRow) -> Answered:
    return Answered(place, row.conversation.upto(len(row.conversation) - 1), (row.conversation.last.content,))
