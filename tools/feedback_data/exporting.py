"""Entries -> rows to train on: good answers, preferences, ranked lists.

What people said makes a standing of each answer to a prompt: 1 where it was rated good or written as a correction, 0
where it was rated bad, corrected, or another was asked for in its place, 1/2 where it is that other one and nobody said
more. A rating beats what regenerating merely suggests. Where people disagree, and of an answer that was cut off and
would be held up as an example, nothing is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from chatbot.conversation import Conversation, Message
from tools.feedback_data.masking import Masker
from tools.feedback_data.reading import Entry
from tools.generating.row_formats import written
from training.data.reading import Report
from training.data.rows import ChatRow, PreferenceRow, RankedRow, Row

GOOD, ACCEPTED, BAD = 1.0, 0.5, 0.0
FORMATS = {"sft": "messages", "preferences": "preference", "ranked": "ranked"}
DISAGREED = "people disagree about the answer"
CUT_OFF = "the answer was cut off"

Placed = tuple[str, Row]


@dataclass
class Said:
    """What was said of an answer, and where first."""

    place: str
    words: set[str] = field(default_factory=set)
    is_whole: bool = True

    def standing(self) -> float | str:
        """See above; where nothing is known the reason."""
        if {"good", "bad"} <= self.words:
            return DISAGREED
        if "bad" in self.words or ("replaced" in self.words and "good" not in self.words):
            return BAD
        if not self.is_whole:
            return CUT_OFF
        return GOOD if "good" in self.words else ACCEPTED


@dataclass
class Asked:
    """A prompt and the answers to it, the first ones first."""

    prompt: Conversation
    answers: dict[str, Said] = field(default_factory=dict)

    def note(self, answer: str, word: str, place: str, is_whole: bool = True) -> None:
        said = self.answers.setdefault(answer, Said(place))
        said.words.add(word)
        said.is_whole &= is_whole

    def standings(self) -> dict[str, float]:
        """Of the answers whose standing is known, the best first."""
        known = {text: found for text, each in self.answers.items() if isinstance(found := each.standing(), float)}
        return dict(sorted(known.items(), key=lambda item: -item[1]))

    @property
    def place(self) -> str:
        return next(iter(self.answers.values())).place


def gathered(entries: Iterable[Entry], masker: Masker, report: Report) -> list[Asked]:
    """The entries by their prompt, masked first; what is said twice counts once, and is counted."""
    asked: dict[Conversation, Asked] = {}
    seen: set[Entry] = set()
    for entry in entries:
        masked = _masked(entry, masker)
        if (bare := replace(masked, place="")) in seen:
            report.skip("the same was said of the same answer before", entry.place)
            continue
        seen.add(bare)
        if masked.edit == masked.answer and entry.edit != entry.answer:
            report.skip("answer and edit are the same once masked", entry.place)
            continue
        _note(asked.setdefault(masked.prompt, Asked(masked.prompt)), masked)
    return list(asked.values())


def _masked(entry: Entry, mask: Masker) -> Entry:
    prompt = Conversation(tuple(Message(each.role, mask(each.content)) for each in entry.prompt))
    edit, replaced = (None if text is None else mask(text) for text in (entry.edit, entry.replaced))
    return replace(entry, prompt=prompt, answer=mask(entry.answer), edit=edit, replaced=replaced)


def _note(asked: Asked, entry: Entry) -> None:
    if entry.replaced is not None and entry.replaced != entry.answer:
        asked.note(entry.replaced, "replaced", entry.place)
    if entry.rating == "edit" and entry.edit is not None and entry.edit != entry.answer:
        asked.note(entry.answer, "bad", entry.place)
        asked.note(entry.edit, "good", entry.place)
    else:
        word = {"edit": "good", "regenerate": "accepted"}.get(entry.rating, entry.rating)
        asked.note(entry.answer, word, entry.place, entry.is_whole)


def sft_rows(asked: list[Asked], report: Report) -> Iterator[Placed]:
    """A chat for each answer of standing 1. All its replies are learned, so no earlier one may be known to be bad."""
    by_standing: dict[float, set[str]] = {GOOD: set(), ACCEPTED: set(), BAD: set()}
    for each in asked:
        for text, standing in each.standings().items():
            by_standing[standing].add(text)
    bad = by_standing[BAD] - by_standing[GOOD]
    for each in asked:
        earlier_is_bad = any(turn.role == "assistant" and turn.content in bad for turn in each.prompt)
        for text, said in each.answers.items():
            known = said.standing()
            if known != GOOD:
                report.skip(known if isinstance(known, str) else "no good answer", said.place)
            elif earlier_is_bad:
                report.skip("an earlier answer in the conversation was bad", said.place)
            else:
                yield said.place, ChatRow(each.prompt.add("assistant", text))


def preference_rows(asked: list[Asked], report: Report) -> Iterator[Placed]:
    """Each better answer over each worse one to the same prompt."""
    for each in _comparable(asked, report):
        standings = each.standings()
        for chosen, better in standings.items():
            for rejected, worse in standings.items():
                if better > worse:
                    yield each.answers[chosen].place, PreferenceRow(each.prompt, chosen, rejected)


def ranked_rows(asked: list[Asked], report: Report) -> Iterator[Placed]:
    """All answers to a prompt with their standings as scores."""
    for each in _comparable(asked, report):
        standings = each.standings()
        yield each.place, RankedRow(each.prompt, tuple(standings), tuple(standings.values()))


def _comparable(asked: list[Asked], report: Report) -> Iterator[Asked]:
    """Prompts with answers of different standing."""
    for each in asked:
        for said in each.answers.values():
            if isinstance(reason := said.standing(), str):
                report.skip(reason, said.place)
        standings = each.standings()
        if len(set(standings.values())) > 1:
            yield each
        elif len(standings) == 1:
            report.skip("the only answer to its prompt", each.place)
        elif standings:
            report.skip("all answers to the prompt are as good", each.place)


_ROWS = {"sft": sft_rows, "preferences": preference_rows, "ranked": ranked_rows}


def exported(kind: str, asked: list[Asked], report: Report) -> Iterator[dict[str, Any]]:
    """The rows of a kind, of `FORMATS`, as objects of its format. Each is read again before it is given; one that does
    not come back as it was is left out, and counted like all else in `report`."""
    report.location, report.formats = kind, Counter({FORMATS[kind]: 1})
    for place, row in _ROWS[kind](asked, report):
        report.num_read += 1
        try:
            objects = written(row, FORMATS[kind])
        except ValueError as error:
            report.skip(str(error), place)
            continue
        report.num_given += 1
        yield from objects
