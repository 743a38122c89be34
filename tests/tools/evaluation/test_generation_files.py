"""Many answers into a file: in order, and after a kill at any byte the same file as without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.evaluate import cli

NUM = 12


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"Grüße number {n}"}]} for n in range(NUM)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(data: Path, out: Path, *more: str, model: str = "echo", engine: str = "echo") -> Any:
    arguments = ["generate", model, str(data), "--out", str(out), "--engine", engine, "--at-once", "3", *more]
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(scope="module")
def whole(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    done = run(prompts, out)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    return out


def test_a_line_for_each_prompt_in_order(whole: Path, prompts: Path) -> None:
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(NUM))
    assert [row["answer"] for row in rows] == [f"Grüße number {n}" for n in range(NUM)]
    first = rows[0]
    assert first["messages"] == [{"role": "user", "content": "Grüße number 0"}]
    assert (first["finish_reason"], first["usage"]["completion_tokens"]) == ("stop", 3)
    assert str(prompts) in first["place"]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_after_a_kill_at_any_byte_it_goes_on_to_the_same_file(
    data: st.DataObject, whole: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = whole.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    out = tmp_path_factory.mktemp("cut") / "answers.jsonl"
    out.write_bytes(content[:cut])
    shutil.copy(whole.with_name("answers.jsonl.settings.json"), out.with_name("answers.jsonl.settings.json"))
    done = run(prompts, out)
    assert done.exit_code == 0, done.stderr
    assert out.read_bytes() == content
    if num := content[:cut].count(b"\n"):
        assert f"going on after {num} answers" in done.stderr


def test_a_repeat_changes_nothing_and_other_settings_are_refused(whole: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    for name in ("answers.jsonl", "answers.jsonl.settings.json"):
        shutil.copy(whole.with_name(name), tmp_path / name)
    assert run(prompts, out, "--api-key", "x").exit_code == 0
    assert "api_key" not in (tmp_path / "answers.jsonl.settings.json").read_text()
    other = tmp_path / "other.jsonl"
    other.write_bytes(prompts.read_bytes() + prompts.read_bytes())
    for refused, message in (
        (run(prompts, out, "--max-tokens", "5"), "was made with max_tokens=256, not 5"),
        (run(prompts, out, "--sample"), "was made with sample=False, not True"),
        (run(other, out), "was made with data="),
        (run(prompts, other), "exists without other.jsonl.settings.json"),
    ):
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
    assert out.read_bytes() == whole.read_bytes()
    out.write_text('{"row": 5}\n')
    assert "is not row 0 of such a file" in run(prompts, out).stderr


def test_lines_of_text_and_conversations_are_prompts_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One?\n\n  Two?\n")
    assert run(tmp_path / "a.txt", tmp_path / "a.out").exit_code == 0
    assert [json.loads(line)["answer"] for line in (tmp_path / "a.out").read_text().splitlines()] == ["One?", "Two?"]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    assert run(tmp_path / "b.jsonl", tmp_path / "b.out").exit_code == 0
    assert json.loads((tmp_path / "b.out").read_text())["messages"] == messages[:1]


def test_bad_rows_stop_it_or_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "One?"}\n{"prompt": 3}\n{"prompt": "Two?"}\n')
    stopped = run(tmp_path / "a.jsonl", tmp_path / "a.out")
    assert (stopped.exit_code, "a.jsonl:2" in stopped.stderr) == (2, True), stopped.stderr
    done = run(tmp_path / "a.jsonl", tmp_path / "b.out", "--skip-bad-rows")
    assert (done.exit_code, "1 left out" in done.stderr) == (0, True), done.stderr
    assert [json.loads(line)["answer"] for line in (tmp_path / "b.out").read_text().splitlines()] == ["One?", "Two?"]


def test_sampling_with_a_seed_is_the_same_again_and_greedy_has_no_penalty(
    prompts: Path, tiny_chat_model: Path, tmp_path: Path
) -> None:
    def answers(name: str, *more: str) -> list[str]:
        done = run(
            prompts,
            tmp_path / name,
            *more,
            *("--max-tokens", "8", "--device", "cpu"),
            model=str(tiny_chat_model),
            engine="transformers",
        )
        assert done.exit_code == 0, done.stderr
        return [json.loads(line)["answer"] for line in (tmp_path / name).read_text().splitlines()]

    first = answers("a.jsonl", "--sample", "--seed", "7")
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(content[: len(content) // 2])
    assert answers("a.jsonl", "--sample", "--seed", "7") == first
    assert answers("b.jsonl", "--sample", "--seed", "8") != first
    assert answers("c.jsonl") == answers("d.jsonl", "--repetition-penalty", "1")


def test_several_processes_give_the_same_file(whole: Path, prompts: Path, tmp_path: Path) -> None:
    """From the beginning, and after some answers; none of their own files is left."""
    content = whole.read_bytes()
    out = tmp_path / "answers.jsonl"
    out.write_bytes(b"".join(content.splitlines(keepends=True)[:5])[:-3])  # four, and a piece of one
    shutil.copy(whole.with_name("answers.jsonl.settings.json"), tmp_path / "answers.jsonl.settings.json")
    stale = tmp_path / "answers.jsonl.part-0-of-2-from-0"
    stale.write_text("of a run that was joined already")
    done = run(prompts, out, "--processes", "2")
    assert done.exit_code == 0, done.stderr
    assert out.read_bytes() == content
    assert sorted(each.name for each in tmp_path.iterdir()) == ["answers.jsonl", "answers.jsonl.settings.json"]
    again = run(prompts, out, "--processes", "2")
    assert (again.exit_code, out.read_bytes()) == (0, content)


def test_a_process_that_fails_ends_it_and_parts_of_others_are_refused(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    failed = run(prompts, out, "--processes", "2", model=str(tmp_path / "none"), engine="transformers")
    assert (failed.exit_code, "a process failed" in failed.stderr) == (2, True), failed.stderr
    assert not out.exists()
    (tmp_path / "answers.jsonl.part-0-of-3-from-0").write_text("")
    refused = run(prompts, out, "--processes", "2", model=str(tmp_path / "none"), engine="transformers")
    assert (refused.exit_code, "is of 3 processes" in refused.stderr) == (2, True), refused.stderr
