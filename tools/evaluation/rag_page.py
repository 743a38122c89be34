"""The replies of tools/evaluate.py rag as a page, beside those of another run where there is one."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from tools.evaluation.rag_figures import is_right

_STYLE = (
    "body{font:15px system-ui;margin:2em}td,th{padding:.3em .6em;text-align:left;vertical-align:top}"
    "tr:nth-child(even){background:#8881}.no{color:#b3261e}small{display:block;color:#777;font-weight:normal}"
)


def page(title: str, body: str) -> str:
    """An HTML page of its own: `title`, a text, and below it `body`, HTML."""
    title = html.escape(title)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"{head}<h1>{title}</h1>{body}</html>\n"


def as_html(report: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> str:
    """The report as one page: figures, then every question; beside those of another run where there is one. Questions
    that this run answers and the other does not, or the other way round, come first."""
    theirs = {row["question"]: row for row in other["rows"]} if other else {}
    rows = sorted(report["rows"], key=lambda row: not _differs(row, theirs.get(row["question"])))
    shown = [name for name in report["figures"] if not name.endswith("_ci")]
    table = "".join(
        f"<tr><th>{name.replace('_', ' ')}</th><td>{_number(report['figures'][name])}</td>"
        + (f"<td>{_number(other['figures'].get(name))}</td>" if other else "")
        + "</tr>"
        for name in shown
    )
    heads = "".join(f"<th>{each}</th>" for each in ("question", "accepted", "reply", *(["other run"] if other else [])))
    body = "".join(_html_row(row, theirs.get(row["question"]), bool(other)) for row in rows)
    title = f"Answers from {report['index']}"
    return page(title, f"<table>{table}</table><table><tr>{heads}</tr>{body}</table>")


def _differs(row: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    return other is not None and (row["contained"], row["refused"]) != (other["contained"], other["refused"])


def _html_row(row: Mapping[str, Any], other: Mapping[str, Any] | None, beside: bool) -> str:
    cells = [html.escape(row["question"]), html.escape("; ".join(row["answers"]) or "none"), _html_reply(row)]
    if beside:
        cells.append(_html_reply(other) if other else "")
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _html_reply(row: Mapping[str, Any]) -> str:
    notes = [
        f"{row['supported']} of {row['sentences']} sentences supported",
        f"{row['seconds']:.2f} s",
        *row["sources"],
    ]
    notes += [f"{each['text']} ({each['reason']})" for each in row["unsupported"]]
    small = "".join(f"<small>{html.escape(note)}</small>" for note in notes)
    return f'<span class="{"yes" if is_right(row) else "no"}">{html.escape(row["reply"])}</span>{small}'


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
