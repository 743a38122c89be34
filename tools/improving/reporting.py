"""What the gate saw and said: a table for the terminal, and report.md, report.html and report.json."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import atomic_write, write_json
from tools.evaluation.rag_figures import Row, is_right
from tools.evaluation.rag_page import page
from tools.evaluation.statistics import Interval
from tools.improving.figures import FIGURES, Compared
from tools.improving.gate import Verdict

NUM_EXAMPLES = 5  # of each kind, in Markdown
_KINDS = ("better", "worse", "same")


@dataclass(frozen=True)
class Report:
    """The old and the new model, by name, their figures, what the gate said of them, what they were made of (`counts`,
    of the step `rows`), what was `done`, and the rows of both runs."""

    old: str
    new: str
    compared: Mapping[str, Compared]
    verdicts: Sequence[Verdict]
    counts: Mapping[str, Any]
    done: str
    old_rows: Sequence[Row]
    new_rows: Sequence[Row]


def write(folder: Path, report: Report) -> None:
    """Write the three files, report.json last."""
    with atomic_write(folder / "report.md") as file:
        file.write(markdown(report))
    with atomic_write(folder / "report.html") as file:
        file.write(as_html(report))
    write_json(folder / "report.json", as_json(report))


def as_json(report: Report) -> dict[str, Any]:
    """All of it as JSON values."""
    return {
        "done": report.done,
        "passed": all(verdict.passed for verdict in report.verdicts),
        "old": report.old,
        "new": report.new,
        "questions": len(report.new_rows),
        "counts": dict(report.counts),
        "figures": {name: asdict(each) for name, each in report.compared.items()},
        "gate": [{"line": str(each.line), "passed": each.passed, "reason": each.reason} for each in report.verdicts],
        "changes": changes(report),
    }


def changes(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Replies that differ, as question, accepted answers, old and new reply: those that became right (better), those
    that ceased to be (worse), and others (same)."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for old, new in zip(report.old_rows, report.new_rows, strict=True):
        if old["reply"] != new["reply"]:
            gain = is_right(new) - is_right(old)
            kind = _KINDS[0] if gain > 0 else _KINDS[1] if gain < 0 else _KINDS[2]
            found[kind].append(
                {"question": new["question"], "answers": new["answers"], "old": old["reply"], "new": new["reply"]}
            )
    return found


def table(report: Report) -> str:
    """For a terminal: each figure before and after, and each line of the gate."""
    rows = [("", "before", "after", "gain", "95 % interval"), *_figure_rows(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    gate = [(_mark(each), str(each.line), each.reason) for each in report.verdicts]
    width = max((len(line) for _, line, _ in gate), default=0)
    lines += ["", *(f"{mark:<6}  {line:<{width}}  {reason}" for mark, line, reason in gate)]
    return "\n".join(lines)


def _figure_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    return [
        (name.replace("_", " "), _number(each.old), _number(each.new), _signed(each.gain), _between(each.gain_interval))
        for name, each in report.compared.items()
        if each.old is not None or each.new is not None
    ]


def markdown(report: Report) -> str:
    """The table, the gate, and some of the changes."""
    lines = [f"# {report.old} and {report.new}", "", report.done, "", *_counted(report), ""]
    lines += ["| | before | after | gain | 95 % interval |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in _figure_rows(report)]
    lines += ["", "| gate | | |", "|---|---|---|"]
    lines += [f"| {_mark(each)} | {each.line} | {each.reason} |" for each in report.verdicts]
    for kind, found in changes(report).items():
        lines += ["", f"## {kind.capitalize()}: {len(found):,}"]
        for each in found[:NUM_EXAMPLES]:
            lines += ["", *(f"    {line}" for line in _told(each))]
    return "\n".join(lines) + "\n"


def _counted(report: Report) -> list[str]:
    test = report.counts["test"]
    left_out = "".join(f"; {num:,} left out: {reason}" for reason, num in test["left_out"].items())
    return [f"{report.counts['train_rows']:,} rows learned, {test['rows']:,} questions asked{left_out}."]


def _told(change: Mapping[str, Any]) -> list[str]:
    """A change as lines; line breaks of replies are shown as blanks."""
    accepted = "; ".join(change["answers"]) or "(the documents do not say)"
    parts = {"question": change["question"], "accepted": accepted, "old": change["old"], "new": change["new"]}
    return [f"{name + ':':<10}{' '.join(text.split())}" for name, text in parts.items()]


def as_html(report: Report) -> str:
    """The same as one page, with all changes and the intervals of both models."""
    figures = "".join(
        f"<tr><th>{name.replace('_', ' ')}<small>{html.escape(FIGURES[name].about)}</small></th>"
        f"<td>{_number(each.old)}<small>{_between(each.old_interval)}</small></td>"
        f"<td>{_number(each.new)}<small>{_between(each.new_interval)}</small></td>"
        f"<td>{_signed(each.gain)}<small>{_between(each.gain_interval)}</small></td></tr>"
        for name, each in report.compared.items()
    )
    gate = "".join(
        f'<tr><td class="{"yes" if each.passed else "no"}">{_mark(each)}</td><td>{each.line}</td>'
        f"<td>{each.reason}</td></tr>"
        for each in report.verdicts
    )
    body = "".join(_html_changes(kind, found) for kind, found in changes(report).items())
    return page(
        f"{report.old} and {report.new}",
        f"<p>{html.escape(report.done)}</p><p>{html.escape(_counted(report)[0])}</p>"
        f"<table><tr><th></th><th>before</th><th>after</th><th>gain</th></tr>{figures}</table>"
        f"<h2>Gate</h2><table>{gate}</table>{body}",
    )


def _html_changes(kind: str, found: Sequence[Mapping[str, Any]]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in ("question", "accepted", "before", "after"))
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(text)}</td>"
            for text in (each["question"], "; ".join(each["answers"]) or "none", each["old"], each["new"])
        )
        + "</tr>"
        for each in found
    )
    return f"<h2>{kind.capitalize()}: {len(found):,}</h2><table><tr>{heads}</tr>{rows}</table>"


def _mark(verdict: Verdict) -> str:
    return "kept" if verdict.passed else "BROKEN"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _between(interval: Interval | None) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}" if interval else ""
