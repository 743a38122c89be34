"""tools/evaluate.py rag: figures against hand arithmetic, a whole run with the echo engine, two runs side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatbot.core import Reply
from retrieval.build import build_index
from retrieval.types import Hit, Passage
from tools.evaluate import cli
from tools.evaluation.asked import read_asked
from tools.evaluation.rag import f1, is_refusal, judged, normalized
from tools.evaluation.rag_figures import figures
from tools.evaluation.rag_page import as_html

BRIDGE = "The harbour bridge was opened in 1932. It carries eight lanes of traffic."
SOURCES = (
    Hit(Passage("a", "Bread needs flour, water and salt.", "Bread", "b.md", 1, 1), 1.0),
    Hit(Passage("b", BRIDGE, "The harbour", "h.md", 1, 2), 0.9),
)


def row(text: str, answers: tuple[str, ...] = ("1932",), refused: bool = False):
    return judged("When?", answers, Reply(text, SOURCES), refused, 0.5)


def test_words_are_normalized_as_for_squad():
    assert normalized("The  Bridge, (an) old-one!") == "bridge oldone"


@pytest.mark.parametrize(
    ("reply", "answer", "expected"),
    [("In 1932.", "1932", 2 / 3), ("the 1932", "1932", 1.0), ("a b b c", "b b d", 2 * 2 / 6), ("", "x", 0.0)],
)
def test_f1_by_hand(reply, answer, expected):
    assert f1(reply, answer) == pytest.approx(expected)


def test_a_reply_is_judged_by_its_sources():
    found = row("The bridge was opened in 1932 [2]. It carries nine lanes [2]. It carries eight lanes [1].")
    assert (found["sentences"], found["supported"], found["wrong_source"], found["rightly_cited"]) == (3, 2, 1, 1)
    assert (found["citations"], found["right_citations"]) == (3, 1)
    assert (found["found"], found["contained"], found["exact"]) == (True, True, False)
    assert [each["text"] for each in found["unsupported"]] == ["It carries nine lanes [2]."]


def test_figures_by_hand():
    rows = [row("1932"), row("In 1932 [2]."), row("In 1933."), row("Not known.", (), True), row("In 1932.", ())]
    found = figures(rows)
    assert (found["questions_all"], found["questions_answerable"], found["questions_unanswerable"]) == (5, 3, 2)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["answer_contained"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # '[2]' is no word of the answer
    assert found["refusals_of_unanswerable"] == 0.5
    assert found["false_refusals"] == 0
    assert found["citation_precision"] == 1
    low, high = found["answer_contained_ci"]
    assert low < 2 / 3 < high


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("The passages do not say when it was opened.", True),
        ("I'm sorry. I don't know.", True),
        ("The documents do not mention it. It was opened in 1932.", False),
        ("It was not opened in 1932.", False),
    ],
)
def test_refusals_are_known_by_their_words(text, refuses):
    assert is_refusal(text) == refuses


@pytest.mark.parametrize("line", ["{", "[]", '{"question": 1}', '{"question": "Q", "answer": [1]}', ""])
def test_a_bad_line_is_named(tmp_path, line):
    file = tmp_path / "q.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"q\.jsonl"):
        read_asked(file)


def test_text_is_no_markup_in_the_report():
    report = {"figures": {"f1": 1.0}, "index": "<i>", "rows": [row("<script>alert(1)</script>")]}
    page = as_html(report, report)
    assert "<script" not in page
    assert "<i>" not in page
    assert page.count("&lt;script&gt;") >= 2


def test_a_whole_run_and_a_second_beside_it(tmp_path: Path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "harbour.md").write_text(f"# The harbour\n\n{BRIDGE}\n")
    build_index([folder], tmp_path / "index", "hash")
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        '{"question": "When was the harbour bridge opened?", "answer": "1932"}\n{"question": "Hello"}\n'
    )
    arguments = ["rag", str(tmp_path / "index"), str(questions), "--engine", "echo", "--no-moderation", "--floor", "0"]
    for run, more in (("one", ()), ("two", ("--against", str(tmp_path / "one" / "report.json")))):
        done = CliRunner().invoke(cli, [*arguments, "--report", str(tmp_path / run), *more])
        assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    # The echo engine says its whole prompt: what was found is in the answer.
    assert report["figures"]["retrieval_recall"] == report["figures"]["answer_contained"] == 1
    assert [each["question"] for each in report["rows"]][1] == "Hello"
    assert "other run" in (tmp_path / "two" / "report.html").read_text()


def test_passages_may_be_named_and_left_out_of_the_search(tmp_path: Path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "harbour.md").write_text(f"# The harbour\n\n{BRIDGE}\n")
    (folder / "bread.md").write_text(f"# Bread\n\n{SOURCES[0].passage.text}\n")
    build_index([folder], tmp_path / "index", "hash")
    name = f"{folder}/harbour.md#0"
    lines = [
        {"question": "When was the harbour bridge opened?", "answers": ["1932"], "passage": name},
        {"question": "How many lanes has the harbour bridge?", "answers": [], "without": [name]},
        {"question": "How wide is the harbour bridge?", "answers": ["wide"], "passage": "elsewhere#0"},
    ]
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--engine", "echo", "--no-moderation", "--floor", "0", "--report", str(tmp_path / "r")]
    done = CliRunner().invoke(cli, ["rag", str(tmp_path / "index"), str(questions), *flags])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert [row["found_passage"] for row in report["rows"]] == [True, None, False]
    assert report["figures"]["passage_recall"] == 0.5
    assert ["1932" in row["reply"] for row in report["rows"]] == [True, False, True]
    assert report["rows"][1]["sources"] == [f"{folder}/bread.md:3"]


@pytest.mark.parametrize("more", [{"passage": 1}, {"document": []}, {"without": "a#0"}, {"without": [1]}])
def test_ids_are_texts(tmp_path, more):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "Q", "answer": "A"} | more) + "\n")
    with pytest.raises(ValueError, match=rf"q\.jsonl:1: `{next(iter(more))}` must be"):
        read_asked(file)


def test_another_file_is_no_report(tmp_path):
    questions, other = tmp_path / "q.jsonl", tmp_path / "o.json"
    questions.write_text('{"question": "Q", "answer": "A"}\n')
    other.write_text("[]")
    command = [sys.executable, "tools/evaluate.py", "rag", "nowhere", str(questions), "--report", str(tmp_path / "r")]
    done = subprocess.run([*command, "--against", str(other)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is no report" in done.stderr
    assert "Traceback" not in done.stderr
