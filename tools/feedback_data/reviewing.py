"""Going through a feedback log: each answer is shown, and kept, dropped or corrected.

A decision is one more line of the log, with the id of the answer and `reviewed`: the last line on an answer holds. So
nothing is lost, what was decided is not asked again, and a bot may go on writing into the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from common.files import append_json_line
from tools.feedback_data.reading import Entry, entry_of, last_lines
from training.data.converting import LeftOut
from training.data.reading import Report
from training.data.values import Fields

Decision = Literal["keep", "drop", "edit", "quit"]
DECISIONS: tuple[Decision, ...] = ("keep", "drop", "edit", "quit")


class Show(Protocol):
    """Where it is shown: `chatbot.terminal.Screen`."""

    def line(self, text: str = "") -> None: ...
    def remark(self, text: str) -> None: ...


Line = tuple[Fields, Entry]


def unreviewed(path: Path, report: Report) -> Iterator[Line]:
    """The lines of a log that nobody has decided about. What cannot be exported anyway is counted in `report`."""
    for place, record in last_lines([path], report):
        try:
            if record.get("reviewed"):
                raise LeftOut("reviewed before")
            if not isinstance(record.get("id"), str):
                raise LeftOut("no id, as in logs of old: exported as it is")
            entry = entry_of(place, record, report)
        except (LeftOut, ValueError) as reason:
            report.skip(str(reason), place)
        else:
            report.num_given += 1
            yield record, entry


def review(
    path: Path, lines: list[Line], screen: Show, decide: Callable[[], Decision], edit: Callable[[str], str]
) -> int:
    """Show each line and append what is decided, at once; returns how many were decided before `quit`. `edit` makes a
    better answer of one; an empty or unchanged one asks for the decision again."""
    for number, (record, entry) in enumerate(lines, start=1):
        screen.line()
        screen.remark(f"{number} of {len(lines)}")
        _show(record, entry, screen)
        changes: dict[str, Any] | None = None
        while changes is None:
            decision = decide()
            if decision == "quit":
                return number - 1
            changes = _changes(decision, entry, edit)
        append_json_line(path, {**record, **changes, "reviewed": True})
    return len(lines)


def _changes(decision: Decision, entry: Entry, edit: Callable[[str], str]) -> dict[str, Any] | None:
    if decision == "drop":
        return {"rating": "drop"}
    if decision == "keep":
        return {}
    text = edit(entry.edit or entry.answer)
    return {"rating": "edit", "edit": text} if text.strip() and text != entry.answer else None


def _show(record: Fields, entry: Entry, screen: Show) -> None:
    """The newest turn as the model was given it, with its passages, and all that was answered and said."""
    screen.line(f"Asked: {entry.prompt.last.content}")
    for name, text in (("Replaced", entry.replaced), ("Answer", entry.answer), ("Edit", entry.edit)):
        if text is not None:
            screen.line(f"{name}: {text}")
    reason = f" ({record['reason']})" if record.get("reason") else ""
    screen.line(f"Rating: {entry.rating}{reason}")
