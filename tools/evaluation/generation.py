"""Answers to many prompts, as JSON Lines: several at a time, in the order of the prompts, and resumable."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatbot.conversation import Conversation
from chatbot.engines.base import ChatModel, Generation
from chatbot.engines.many import generate_all
from common.files import read_text
from common.text import lines_of
from tools.evaluation.resuming import append_records
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import PromptRow


def read_prompts(data: str, report: Report, strict: bool = True) -> Iterator[tuple[str, Conversation]]:
    """(place, prompt) for each row: conversations up to their last answer, prompts, or the lines of a .txt file. A row
    that cannot be used is a ValueError, or counted unless `strict`."""
    if data.lower().endswith(".txt"):
        read_text(Path(data))  # says in one line what cannot be read
        with open(data, encoding="utf-8") as file:
            for number, line in enumerate(lines_of(file), start=1):
                if text := line.strip():
                    yield f"{data}:{number}", Conversation().add("user", text)
        return
    for place, row in read_rows(Source(data), (PromptRow,), report, strict):
        if isinstance(row, PromptRow):  # it is no other: that was asked for
            yield place, row.prompt


def generate(
    model: ChatModel,
    prompts: Iterable[tuple[str, Conversation]],
    generation: Generation,
    out: Path,
    num_done: int = 0,
    num_threads: int = 8,
) -> Iterator[int]:
    """Append the answers to all prompts after the first `num_done`; the number of rows done, after each.

    A line holds row (from 0), place, messages, answer, finish_reason and usage.
    """
    wanted, asked = itertools.tee(itertools.islice(prompts, num_done, None))
    answers = generate_all(model, (conversation for _, conversation in asked), generation, num_threads)

    def records() -> Iterator[dict[str, Any]]:
        for (place, conversation), answer in zip(wanted, answers, strict=True):
            yield {
                "place": place,
                "messages": conversation.to_dicts(),
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "usage": asdict(answer.usage) if answer.usage else None,
            }

    # Closed at the end, whatever ends it: the threads stop.
    with closing(answers):  # type: ignore[type-var]  # a generator
        yield from append_records(out, records(), num_done)
