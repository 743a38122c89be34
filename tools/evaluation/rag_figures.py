"""What tools/evaluate.py rag says of many replies: shares over the rows that it judged one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tools.evaluation.statistics import wilson

Row = Mapping[str, Any]  # of one reply, see `rag.judged`


@dataclass(frozen=True)
class Figure:
    """sum(top) / sum(bottom) over rows; `lower_is_better` where that is so. `quantile`: of `top`, no share. `counts`:
    `top` says how many of `bottom` trials went so, which gives Wilson's interval."""

    about: str
    top: Callable[[Row], float]
    bottom: Callable[[Row], float]
    lower_is_better: bool = False
    quantile: float | None = None
    counts: bool = True

    def of(self, rows: Sequence[Row]) -> float | None:
        """The figure of these rows; None where nothing counts."""
        values = [self.top(row) for row in rows]
        if self.quantile is not None:
            return sorted(values)[min(len(values) - 1, int(self.quantile * len(values)))]
        total = sum(self.bottom(row) for row in rows)
        return sum(values) / total if total else None


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether a reply is right: it holds an accepted answer; for an unanswerable question, it says so."""
    return bool(row["contained"] if row["answers"] else row["refused"])


def _answerable(row: Row) -> float:
    return float(bool(row["answers"]))


def _unanswerable(row: Row) -> float:
    return float(not row["answers"])


def _always(_: Row) -> float:
    return 1.0


def _share(about: str, field: str, of: str | Callable[[Row], float] = _always, lower_is_better: bool = False) -> Figure:
    bottom: Callable[[Row], float] = (lambda row: float(row[of])) if isinstance(of, str) else of
    counts = bottom if not isinstance(of, str) else _always
    return Figure(about, lambda row: float(row[field]) * counts(row), bottom, lower_is_better)


FIGURES: dict[str, Figure] = {
    "retrieval_recall": _share("an accepted answer stands in a passage shown", "found", _answerable),
    "passage_recall": Figure(
        "the passage that a question was made of is shown",
        lambda row: float(row.get("found_passage") or 0),
        lambda row: float(row.get("found_passage") is not None),
    ),
    "exact_match": _share("the reply is an accepted answer", "exact", _answerable),
    "f1": replace(_share("words shared with an accepted answer", "f1", _answerable), counts=False),
    "answer_contained": _share("the reply holds an accepted answer", "contained", _answerable),
    "false_refusals": _share("refusals of answerable questions", "refused", _answerable, lower_is_better=True),
    "refusals_of_unanswerable": _share("refusals of unanswerable questions", "refused", _unanswerable),
    "flagged_by_moderation": _share("flagged message, passage or answer", "flagged", lower_is_better=True),
    "sentences_supported": _share("sentences that a passage supports", "supported", "sentences"),
    "sentences_citing_a_wrong_source": _share(
        "supported, but not by what they cite", "wrong_source", "sentences", lower_is_better=True
    ),
    "citation_precision": _share("citations whose passage supports the sentence", "right_citations", "citations"),
    "citation_recall": _share("sentences with such a citation", "rightly_cited", "sentences"),
    "median_seconds": Figure("seconds of a reply", lambda row: row["seconds"], _always, True, 0.5),
    "p95_seconds": Figure("seconds of the slowest twentieth", lambda row: row["seconds"], _always, True, 0.95),
}


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """How many questions there are, and all figures; after each that counts trials its 95 % interval (Wilson) as
    `NAME_ci`. None where nothing counts."""
    num_answerable = sum(bool(row["answers"]) for row in rows)
    found: dict[str, Any] = {
        "questions_all": len(rows),
        "questions_answerable": num_answerable,
        "questions_unanswerable": len(rows) - num_answerable,
        "questions_with_passage": sum(row.get("found_passage") is not None for row in rows),
    }
    for name, figure in FIGURES.items():
        found[name] = figure.of(rows)
        if figure.counts and figure.quantile is None:
            top, bottom = (int(sum(map(count, rows))) for count in (figure.top, figure.bottom))
            interval = wilson(top, bottom)
            found[f"{name}_ci"] = list(interval) if interval else None
    return found
