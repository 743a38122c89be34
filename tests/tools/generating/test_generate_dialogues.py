"""Dialogues of two speakers: what each sees and remembers, how they end, and that a kill costs nothing."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_service import FakeService, serving
from making_data import by_length, rows_of, run, start, wait_for, write

from tools import generate_dialogues
from training.data.mixture import Source
from training.data.reading import read_rows
from training.data.rows import ChatRow


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept answers and everything else go there."""
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def judge() -> Iterator[FakeService]:
    with serving(by_length) as service:
        yield service


def test_a_killed_run_of_dialogues_goes_on_to_the_same_file() -> None:
    def talk(messages: list[dict[str, str]]) -> str:
        return f"Word {len(messages)} to {messages[-1]['content'][-20:]}"

    flags = ["--num", "12", "--turns", "4", "--memory", "1", "--at-once", "3"]
    with serving(talk, pause=0.02) as service:
        run(generate_dialogues.cli, "--out", "whole.jsonl", "--cache", "other", *flags, *service.flags)
        num = len(service.bodies)
        killed = start("generate_dialogues", "--out", "a.jsonl", *flags, *service.flags)
        wait_for(service, num + num // 2)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert not Path("a.jsonl").exists()
        run(generate_dialogues.cli, "--out", "a.jsonl", *flags, *service.flags)
        assert Path("a.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
        assert len(service.bodies) < 2 * num + 6, "at most what was in the making is asked again"


def test_two_speakers_see_the_conversation_from_their_own_sides() -> None:
    def talk(messages: list[dict[str, str]]) -> str:
        if "Write down" in messages[-1]["content"]:
            return "NOTES of " + ",".join(re.findall(r"[pa]\d+", messages[-1]["content"]))
        person = messages[0]["content"].startswith("You play")
        count = sum(len(re.findall(r"\b[pa]\d+", message["content"])) for message in messages)
        return f"{'User: p' if person else 'a'}{count}"

    with serving(talk) as service:
        said = run(
            generate_dialogues.cli, "--out", "d.jsonl", "--num", "2", "--turns", "5", "--memory", "1", *service.flags
        )
        assert "2 dialogues" in said
        (row, _) = rows_of("d.jsonl")
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 5
        assert row["messages"][0]["content"] == "p0", "the label before it is none of its words"
        asked = [body["messages"] for body in service.bodies]
        first = next(messages for messages in asked if messages[0]["content"].startswith("You play"))
        assert [message["role"] for message in first] == ["system", "user"]
        for messages in asked:
            roles = [message["role"] for message in messages if message["role"] != "system"]
            assert roles == [("user", "assistant")[n % 2] for n in range(len(roles))]
            assert len(roles) <= 4, "two exchanges at most word for word, and what is being said"
        assert any("<notes>\nNOTES of" in messages[0]["content"] for messages in asked)
    kinds = [type(row) for _, row in read_rows(Source("d.jsonl"), (ChatRow,))]
    assert kinds == [ChatRow, ChatRow]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [("[END]", "the person had nothing more to say"), ("  ", "a message was empty"), ((400, "no"), "refused.*400: no")],
)
def test_dialogues_that_end_at_once_are_left_out_and_counted(reply: Any, reason: str) -> None:
    with serving(lambda _: reply) as service:
        said = run(generate_dialogues.cli, "--out", "d.jsonl", "--num", "2", *service.flags, code=2)
        assert re.search(f"2 left out, without an exchange: .*{reason}", said)
        assert not Path("d.jsonl").exists()


def test_persons_topics_and_templates_are_told(judge: FakeService) -> None:
    Path("persons.txt").write_text("Zoë\n\nMax {braces}\n")
    Path("topics.txt").write_text("knots\n")
    write("t.json", {"actor": "They are on a boat."})  # type: ignore[arg-type]
    flags = ["--persons", "persons.txt", "--topics", "topics.txt", "--templates", "t.json", "--assistant", "You sail."]
    run(generate_dialogues.cli, "--out", "d.jsonl", "--num", "2", "--turns", "1", *flags, *judge.flags)
    systems = [body["messages"][0]["content"] for body in judge.bodies]
    assert all(system.endswith("They are on a boat.") for system in systems)
    assert sum(system.startswith("You sail.") for system in systems) == 2
    assert any("You play Max {braces}, who talks to an assistant about knots" in system for system in systems)
    assert [row["person"] for row in rows_of("d.jsonl")] == ["Zoë", "Max {braces}"]
    Path("topics.txt").write_text("\n")
    assert "topics.txt: is empty" in run(generate_dialogues.cli, "--out", "e.jsonl", *flags, *judge.flags, code=2)


def test_the_echo_engine_is_enough_to_try_it() -> None:
    said = run(generate_dialogues.cli, "--out", "d.json", "--num", "3", "--engine", "echo")
    assert "3 ended early: the person repeated a message" in said
    assert len(rows_of("d.json")) == 3
