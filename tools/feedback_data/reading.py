"""Feedback logs -> entries: the last line on each answer, with the prompt as the model was given it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbot.conversation import Conversation
from chatbot.prompting import SPOTLIGHT, PromptAssembler
from retrieval.types import Hit, Passage
from training.data.converting import LeftOut
from training.data.decoding import read_raw
from training.data.reading import Report
from training.data.rows import PromptRow
from training.data.turns import from_dicts, tidied
from training.data.values import Fields, list_of, text_of

RATINGS = ("good", "bad", "edit", "regenerate", "drop")
REBUILT = "prompt of an older line put together again from messages and passages"


@dataclass(frozen=True)
class Entry:
    """An answer and what was said of it. `prompt`: what the model was given, system text and passages included, as
    turns that alternate; `edit`: what the answer should have been; `replaced`: the answer in whose place this one was
    asked for; `is_whole`: it was not cut off."""

    place: str
    prompt: Conversation
    answer: str
    rating: str
    edit: str | None = None
    replaced: str | None = None
    is_whole: bool = True


def last_lines(paths: Iterable[Path], report: Report) -> Iterator[tuple[str, Fields]]:
    """(place, line) of all files, of several lines on one answer (one `id`) the last, where the first stood. What is no
    object, and earlier lines, are counted in `report`. The files are held in memory: people have written them."""
    last: dict[str, tuple[str, Fields]] = {}
    for path in paths:
        for raw in read_raw(path, str(path)):
            report.num_read += 1
            if raw.problem is not None or not isinstance(raw.value, dict):
                report.skip(raw.problem or "not an object", raw.place)
                continue
            id_ = raw.value.get("id")
            key = f"id {id_}" if isinstance(id_, str) else f"at {raw.place}"
            if key in last:
                report.skip("an earlier rating of the same answer", last[key][0])
            last[key] = (raw.place, raw.value)
    yield from last.values()


def read_entries(paths: Iterable[Path], report: Report, reviewed_only: bool = False) -> Iterator[Entry]:
    """What can be learned from; all else is counted in `report`. Raises ValueError for a file that cannot be read."""
    for place, record in last_lines(paths, report):
        try:
            if reviewed_only and not record.get("reviewed"):
                raise LeftOut("not reviewed")
            entry = entry_of(place, record, report)
        except (LeftOut, ValueError) as reason:
            report.skip(str(reason), place)
        else:
            report.num_given += 1
            yield entry


def entry_of(place: str, record: Fields, report: Report) -> Entry:
    """One line. Raises LeftOut where nothing is to be learned from it, ValueError where it is no line of a log."""
    rating = text_of(record, "rating")
    if rating not in RATINGS:
        raise ValueError(f"'rating' must be one of {', '.join(RATINGS)}, not {rating[:20]!r}")
    if rating == "drop":
        raise LeftOut("dropped in review")
    if _blocked(record):
        raise LeftOut("blocked by moderation")
    row, changes = tidied(PromptRow(_prompt(record, report)))
    assert isinstance(row, PromptRow)  # noqa: S101  # for mypy: a row stays of its kind
    report.changed.update(changes)
    optional = {name: text_of(record, name) for name in ("edit", "replaced") if record.get(name) is not None}
    if (other := {"edit": "edit", "regenerate": "replaced"}.get(rating)) and other not in optional:
        raise ValueError(f"rating {rating!r} without '{other}'")
    if rating != "edit":
        optional.pop("edit", None)
    is_whole = record.get("finish_reason") != "length"
    return Entry(place, row.prompt, text_of(record, "answer"), rating, is_whole=is_whole, **optional)


def _blocked(record: Fields) -> bool:
    """Whether question or answer was blocked. (A passage that was is merely missing.)"""
    verdicts = record.get("verdicts")
    said = [verdicts.get(each) for each in ("input", "output")] if isinstance(verdicts, dict) else []
    return any(isinstance(each, dict) and each.get("action") == "block" for each in said)


def _prompt(record: Fields, report: Report) -> Conversation:
    if record.get("prompt_messages") is not None:
        return from_dicts(list_of(record, "prompt_messages"))
    seen = record.get("prompt")
    if not isinstance(seen, str):
        raise LeftOut("the model was not asked")
    said = from_dicts(list_of(record, "messages"))
    if "prompt_messages" in record or seen == said.last.content:
        raise LeftOut("plain text was continued, without turns")
    report.changed[REBUILT] += 1
    return _put_together(said, record, seen)


def _put_together(said: Conversation, record: Fields, seen: str) -> Conversation:
    """By the assembler itself, with room for all. Lines from before `prompt_messages` do not tell few-shot pairs."""
    settings = record.get("settings")
    system = settings.get("system") if isinstance(settings, dict) else ""
    spotlight = SPOTLIGHT if SPOTLIGHT in seen else ""
    assembler = PromptAssembler(lambda _: 0, 2, system if isinstance(system, str) else "", spotlight=spotlight)
    hits = [_hit(each) for each in list_of(record, "passages")] if record.get("passages") else []
    return assembler.assemble(said, hits, max_tokens=1).conversation


def _hit(passage: Any) -> Hit:
    if not isinstance(passage, dict):
        raise ValueError("a passage is not an object")
    for name in ("title", "source", "text"):
        text_of(passage, name, may_be_empty=True)
    try:
        return Hit(Passage(**{name: value for name, value in passage.items() if name != "score"}), 0.0)
    except TypeError as error:
        raise ValueError(f"a passage has other fields than passages have ({error})") from None
