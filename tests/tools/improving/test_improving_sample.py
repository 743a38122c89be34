"""What the demonstration works with is sound: answers stand in the sample library, the feedback can be learned."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from tools.evaluation.rag import normalized
from tools.feedback_data.exporting import gathered
from tools.feedback_data.masking import Masker
from tools.feedback_data.reading import read_entries
from tools.loop_demo import ROOT, SAMPLE
from training.data.reading import Report


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / SAMPLE / name).read_text().splitlines()]


def test_each_answer_stands_in_a_document() -> None:
    texts = [path.read_text() for path in (ROOT / "docs" / "sample").rglob("*.*")]
    words = [f" {normalized(html.unescape(re.sub('<[^>]+>', ' ', text)))} " for text in texts]
    wrong = [
        row
        for row in rows("questions.jsonl")
        if "answer" in row and not any(f" {normalized(row['answer'])} " in each for each in words)
    ]
    assert wrong == []


def test_no_question_is_asked_twice() -> None:
    asked = [normalized(row["question"]) for row in rows("questions.jsonl")]
    assert len(set(asked)) == len(asked)


def test_the_feedback_is_a_log_and_names_no_place_of_a_machine() -> None:
    log, report = ROOT / SAMPLE / "feedback.jsonl", Report()
    asked = gathered(read_entries([log], report), Masker([]), report)
    assert len(asked) == 12
    assert all(
        Path(each["source"]).parts[:2] == ("docs", "sample") for row in rows(log.name) for each in row["passages"]
    )
