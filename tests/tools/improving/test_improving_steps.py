"""Steps: done once, done anew where inputs changed, gone on with after SIGKILL; nothing half-done is taken for done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tools.improving.steps import Made, Step, only_one, run

# Three steps that depend on each other, slow enough to be killed in any of them; the second resumes.
PROGRAM = """
import sys, time
from pathlib import Path
from tools.improving.steps import Step, only_one, run

work, word = Path(sys.argv[1]), sys.argv[2]

def letters(folder):
    (folder / "out").write_text("")
    for letter in word:
        with open(folder / "out", "a") as file:
            file.write(letter)
        time.sleep(0.004)
    return {"num": len(word)}

def doubled(folder):
    done = (folder / "out").read_text() if (folder / "out").exists() else ""
    for letter in first_text[len(done):]:
        with open(folder / "out", "a") as file:
            file.write(letter)
            file.flush()
        time.sleep(0.004)
    return {"from": len(done)}

def last(folder):
    (folder / "out").write_text(second_text[::-1])
    return {}

with only_one(work):
    first = run(work, Step("first", {"word": word}, letters, ("out",)))
    first_text = (first.folder / "out").read_text()
    second = run(work, Step("second", {"of": first.sums}, doubled, ("out",), resumes=True))
    second_text = (second.folder / "out").read_text()
    third = run(work, Step("third", {"of": second.sums}, last, ("out",)))
    print((third.folder / "out").read_text())
"""


def start(work: Path, word: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(work), word],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )


def finished(work: Path, word: str) -> str:
    process = start(work, word)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.strip()


def test_killed_anywhere_it_ends_as_if_nobody_had(tmp_path: Path) -> None:
    word = "abcdefghijklmnopqrstuvwxyz" * 2
    began = time.monotonic()
    assert finished(tmp_path / "whole", word) == word[::-1]
    took = time.monotonic() - began
    work = tmp_path / "killed"
    for number in range(8):
        process = start(work, word)
        time.sleep(took * (0.25 + 0.09 * number))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for name in ("first", "second", "third"):  # what says that it is done is whole
            record = work / f"{name}.json"
            if record.is_file() and json.loads(record.read_text())["done"]:
                assert len((work / name / "out").read_text()) == len(word)
    assert finished(work, word) == word[::-1]
    assert finished(work, word[1:]) == word[1:][::-1]


def test_two_at_once_exclude_each_other(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(ValueError, match="another process"), only_one(tmp_path):
        pass


def counted(work: Path, inputs: Mapping[str, Any], calls: list[str], text: str = "x", name: str = "one") -> Made:
    def make(folder: Path) -> dict[str, Any]:
        calls.append(name)
        assert list(folder.iterdir()) == []  # nothing of an earlier attempt
        (folder / "out").write_text(text)
        return {"pair": (1, 2)}

    return run(work, Step(name, inputs, make, ("out",)))


def test_done_once_for_the_same_inputs(tmp_path: Path) -> None:
    calls: list[str] = []
    made = counted(tmp_path, {"a": 1, "b": [2, 3]}, calls)
    again = counted(tmp_path, {"b": [2, 3], "a": 1}, calls)
    assert calls == ["one"]
    assert made == again
    assert made.told == {"pair": [1, 2]}


def test_done_anew_for_other_inputs_and_for_other_files(tmp_path: Path) -> None:
    calls: list[str] = []
    counted(tmp_path, {"a": 1}, calls)
    counted(tmp_path, {"a": 2}, calls)
    (tmp_path / "one" / "out").write_text("changed by hand")
    counted(tmp_path, {"a": 2}, calls)
    (tmp_path / "one" / "out").unlink()
    counted(tmp_path, {"a": 2}, calls)
    (tmp_path / "one.json").write_text("{half a rec")
    made = counted(tmp_path, {"a": 2}, calls)
    assert calls == ["one"] * 5
    assert (made.folder / "out").read_text() == "x"


def test_an_error_leaves_the_step_undone(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "out").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(tmp_path, Step("one", {}, fail, ("out",)))
    calls: list[str] = []
    counted(tmp_path, {}, calls)
    assert calls == ["one"]


def test_a_step_that_resumes_finds_what_it_left_only_for_the_same_inputs(tmp_path: Path) -> None:
    found: list[bool] = []

    def make(folder: Path) -> dict[str, Any]:
        found.append((folder / "part").exists())
        (folder / "part").touch()
        if len(found) % 2:
            raise KeyboardInterrupt
        (folder / "out").touch()
        return {}

    for inputs in ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}):
        step = Step("one", inputs, make, ("out",), resumes=True)
        if len(found) % 2 == 0:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, step)
        else:
            run(tmp_path, step)
    assert found == [False, True, False, True]
