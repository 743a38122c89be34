"""Review: every decision is a line of the log, the last holds, and what was decided is not asked again."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from tools import feedback
from tools.feedback_data.reviewing import review, unreviewed
from training.data.reading import Report

ROOT = Path(__file__).parents[3]


def line(number: int, **more: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"question {number}"}]
    return {"id": f"answer-{number}", "rating": "bad", "reason": "why not", "answer": f"answer {number}"} | {
        "messages": asked,
        "prompt_messages": asked,
        "prompt": "...",
        **more,
    }


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return log


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in log.read_text().splitlines()]


class Page:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.text = ""

    def line(self, text: str = "") -> None:
        self.text += text + "\n"

    remark = line


def go(log: Path, *decisions: Any, edits: tuple[str, ...] = ()) -> tuple[int, str]:
    steps, texts, page = iter(decisions), iter(edits), Page()
    done = review(log, list(unreviewed(log, Report())), page, lambda: next(steps), lambda _: next(texts))
    return done, page.text


def test_decisions_are_further_lines(tmp_path: Path) -> None:
    log = write(tmp_path, *(line(number) for number in range(4)))
    before = lines_of(log)
    done, shown = go(log, "keep", "drop", "edit", "edit", "keep", edits=("", "better 2"))
    assert done == 4
    assert lines_of(log) == [
        *before,
        before[0] | {"reviewed": True},
        before[1] | {"reviewed": True, "rating": "drop"},
        before[2] | {"reviewed": True, "rating": "edit", "edit": "better 2"},
        before[3] | {"reviewed": True},
    ]
    for part in ("question 0", "answer 0", "bad (why not)", "1 of 4"):
        assert part in shown
    assert list(unreviewed(log, Report())) == []


def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    log = write(tmp_path, *(line(number) for number in range(3)))
    assert go(log, "keep", "quit")[0] == 1
    report = Report()
    assert [record["id"] for record, _ in unreviewed(log, report)] == ["answer-1", "answer-2"]
    assert report.skipped() == {"an earlier rating of the same answer": 1, "reviewed before": 1}
    # a person thinks better of an answer that was reviewed: it is asked about again
    with log.open("a") as file:
        file.write(json.dumps(line(0, rating="good")) + "\n")
    assert [record["id"] for record, _ in unreviewed(log, Report())] == ["answer-0", "answer-1", "answer-2"]


def test_what_cannot_be_reviewed_is_counted(tmp_path: Path) -> None:
    without = line(1)
    del without["id"]
    log = write(tmp_path, without, line(2, answer=3), line(3, rating="drop"), line(4))
    report = Report()
    assert [record["id"] for record, _ in unreviewed(log, report)] == ["answer-4"]
    assert sum(report.skipped().values()) == 3


def test_without_a_terminal_it_says_so(tmp_path: Path) -> None:
    log = write(tmp_path, line(1), line(2))
    done = CliRunner().invoke(feedback.cli, ["review", str(log)])
    assert done.exit_code == 2
    assert "2 answers to review, and no terminal to ask in; `export` needs none" in done.stderr
    assert len(lines_of(log)) == 2


def test_in_a_real_terminal(tmp_path: Path) -> None:
    log = write(tmp_path, line(1, answer="one\x1b[31m"), line(2), line(3))
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "tools" / "feedback.py"), "review", str(log)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < end, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 4096)
        before, _, shown = shown.partition(text)
        assert b"\x1b[31m" not in before

    try:
        until(b"quit?")
        os.write(ours, b"maybe\n")
        until(b"quit?")
        os.write(ours, b"d\n")
        until(b"quit?")
        os.write(ours, b"e\n")
        until(b">>>")
        os.write(ours, b" and more\r")
        until(b"quit?")
        os.write(ours, b"\x04")
        until(b"1 left, the same command goes on")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(ours)
    assert [(each["rating"], each.get("edit")) for each in lines_of(log)[3:]] == [
        ("drop", None),
        ("edit", "answer 2 and more"),
    ]
