"""Answers to many prompts, as JSON Lines: several at a time, in the order of the prompts, and resumable.

Beside the answers stands FILE.settings.json: what they were made with. A run that finds answers goes on after them
if its own settings and data are the same; half a line that a kill left is cut off.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatbot.conversation import Conversation
from chatbot.engines.base import ChatModel, Generation
from chatbot.engines.many import generate_all
from common.files import check_can_write, read_json, read_text, write_json
from common.text import lines_of
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


def done_rows(out: Path, settings: Mapping[str, Any]) -> int:
    """How many answers stand in `out`, which is cut back to whole lines; writes or compares the settings beside it.

    Raises ValueError where the answers were made with other settings, or are none of ours.
    """
    check_can_write(out)
    settings = json.loads(json.dumps(settings))  # as they are read again: tuples are lists
    beside = out.with_name(out.name + ".settings.json")
    if not out.exists():
        write_json(beside, settings)
        return 0
    if not beside.is_file():
        raise ValueError(f"{out} exists without {beside.name}: it is none of these answers; name another file")
    before = read_json(beside)
    if changed := [name for name in {**before, **settings} if before.get(name) != settings.get(name)]:
        name = changed[0]
        raise ValueError(
            f"{out} was made with {name}={before.get(name)!r}, not {settings.get(name)!r}; name another file, or "
            "remove it to begin anew"
        )
    return _whole_lines(out)


def _whole_lines(out: Path) -> int:
    with open(out, "rb+") as file:
        count, end = 0, 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            if _row_number(line) != count:
                raise ValueError(
                    f"{out}:{count + 1}: is not the answer to row {count}; name another file, or remove it"
                )
            count, end = count + 1, end + len(line)
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())
    return count


def _row_number(line: bytes) -> int | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record.get("row") if isinstance(record, dict) else None


def generate(
    model: ChatModel,
    prompts: Iterable[tuple[str, Conversation]],
    generation: Generation,
    out: Path,
    num_done: int = 0,
    num_threads: int = 8,
) -> Iterator[int]:
    """Append the answers to all prompts after the first `num_done`; the number of rows done, after each.

    A line holds row (from 0), place, messages, answer, finish_reason and usage, and is on disk before the next begins.
    """
    wanted, asked = itertools.tee(itertools.islice(prompts, num_done, None))
    answers = generate_all(model, (conversation for _, conversation in asked), generation, num_threads)
    # Closed at the end, whatever ends it: the threads stop.
    with open(out, "ab") as file, closing(answers):  # type: ignore[type-var]  # a generator
        for number, ((place, conversation), answer) in enumerate(zip(wanted, answers, strict=True), start=num_done):
            record = {
                "row": number,
                "place": place,
                "messages": conversation.to_dicts(),
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "usage": asdict(answer.usage) if answer.usage else None,
            }
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            yield number + 1
