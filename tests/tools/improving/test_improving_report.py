"""The report: changes sorted by hand, texts of users as text, every figure and line in all three files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.files import read_json
from tools.improving.figures import compare
from tools.improving.gate import Line, judge
from tools.improving.reporting import Report, changes, table, write


def row(question: str, reply: str, answers: tuple[str, ...] = ("1932",), refused: bool = False) -> dict[str, Any]:
    """As tools/evaluation/rag.py writes them, with what the report shows."""
    numbers = dict.fromkeys(
        ("sentences", "supported", "wrong_source", "rightly_cited", "citations", "right_citations"), 0
    )
    return {
        "question": question,
        "reply": reply,
        "answers": list(answers),
        "contained": any(answer in reply for answer in answers),
        "refused": refused,
        "found": True,
        "exact": False,
        "f1": 0.5,
        "flagged": False,
        "seconds": 1.0,
        **numbers,
    }


OLD = [
    row("When?", "In 1933."),
    row("Where?", "1932, there."),
    row("Who?", "<script>alert(1)</script>"),
    row("Why?", "The same."),
    row("What king?", "Henry.", ()),
]
NEW = [
    row("When?", "In 1932."),
    row("Where?", "There."),
    row("Who?", "Nobody\nknows | it."),
    row("Why?", "The same."),
    row("What king?", "The documents do not say.", (), refused=True),
]


def report() -> Report:
    compared = compare(OLD, NEW)
    verdicts = judge((Line("f1", "min", 0.4), Line("answer_contained", "gain", 0.0)), compared)
    counts = {"train_rows": 7, "test": {"rows": 5, "left_out": {"its passage is in the training rows": 2}}}
    return Report("old", "new", compared, verdicts, counts, "refused: old stays", OLD, NEW)


def test_changes_are_better_worse_or_the_same() -> None:
    found = {kind: [each["question"] for each in rows] for kind, rows in changes(report()).items()}
    assert found == {"better": ["When?", "What king?"], "worse": ["Where?"], "same": ["Who?"]}


def test_the_table_has_what_was_measured_and_the_gate() -> None:
    lines = table(report()).splitlines()
    assert lines[1].split()[:5] == ["right", "replies", "0.200", "0.400", "+0.200"]
    assert not any(line.startswith("citation precision") for line in lines)  # nothing was cited by either
    assert [line.split()[:2] for line in lines[-2:]] == [["kept", "f1"], ["BROKEN", "answer_contained"]]


def test_all_of_it_is_written_and_text_is_no_markup(tmp_path: Path) -> None:
    write(tmp_path / "report", report())
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    told = read_json(tmp_path / "report" / "report.json")
    assert (told["passed"], told["questions"], told["figures"]["f1"]["new"]) == (False, 5, 0.5)
    assert json.dumps(told)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "7 rows learned, 5 questions asked; 2 left out: its passage is in the training rows." in text
    assert "    new:      Nobody knows | it." in text
