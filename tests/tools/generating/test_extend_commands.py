"""More prompts, and more scored answers, from a few."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_service import FakeService, serving
from making_data import by_length, rows_of, run, write

from tools import extend_prompts, extend_rewards
from tools.generating.diversity import rouge_l
from training.data.mixture import Source
from training.data.reading import read_rows
from training.data.rows import PromptRow, RankedRow


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept answers and everything else go there."""
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def judge() -> Iterator[FakeService]:
    with serving(by_length) as service:
        yield service


def inventing(messages: list[dict[str, str]]) -> str:
    """Eight prompts that follow from the request; every fourth is like all others."""
    number = sum(map(ord, messages[-1]["content"])) % 9973
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "mu", "nu", "xi"]
    lines = []
    for place in range(8):
        a, b, c = (words[(number // 3**k + place * (k + 1)) % len(words)] for k in range(3))
        lines.append(f"{place + 1}. {a} {b} {number}-{place} {c}?" if place % 4 else f"{place + 1}. The same one again")
    return "\n".join(lines)


@pytest.fixture
def examples() -> Path:
    topics = ["rice", "boats", "stars", "bread", "cats", "maps", "wood", "songs", "chess", "rain", "paint", "tea"]
    return write(
        "rlhf_training_data.json", [{"user_input": f"Tell me {n} things of {t}"} for n, t in enumerate(topics)]
    )


def test_prompts_are_added_that_differ(examples: Path) -> None:
    with serving(inventing) as service:
        said = run(extend_prompts.cli, str(examples), "out.jsonl", "--num_prompts", "60", *service.flags)
    texts = [row["prompt"] for row in rows_of("out.jsonl")]
    assert texts[:12] == [row["user_input"] for row in rows_of(examples)]
    assert (len(texts), "too like another" in said) == (72, True)
    assert texts.count("The same one again") == 1
    new = texts[12:]
    assert max(rouge_l(a, b) for place, a in enumerate(new) for b in texts[: 12 + place]) < 0.7
    assert all(isinstance(row, PromptRow) for _, row in read_rows(Source("out.jsonl"), (PromptRow,)))


def test_prompts_do_not_depend_on_how_many_are_in_the_making(examples: Path) -> None:
    outcomes = []
    for number, at_once in enumerate(("1", "7")):
        with serving(inventing) as service:
            flags = ["--num", "30", "--at-once", at_once, "--cache", f"c{number}"]
            run(extend_prompts.cli, str(examples), f"{number}.jsonl", *flags, *service.flags)
        outcomes.append(Path(f"{number}.jsonl").read_bytes())
    assert outcomes[0] == outcomes[1]


def test_a_model_that_has_no_more_ideas_ends_it(examples: Path) -> None:
    with serving(lambda _: "1. One idea alone\n2. Another thing") as service:
        said = run(extend_prompts.cli, str(examples), "out.jsonl", "--num", "50", *service.flags)
        assert "48 not found, after 24 requests" in said
        assert len(service.bodies) == 32
    with serving(lambda _: "I cannot.") as service:
        said = run(extend_prompts.cli, str(examples), "o.jsonl", "--num", "5", *service.flags, code=2)
        assert "24 answers without a list" in said


def test_too_few_examples_are_refused(judge: FakeService) -> None:
    write("few.jsonl", [{"prompt": f"Question {n % 9}?"} for n in range(30)])
    assert "9 different prompts; give at least 10" in run(
        extend_prompts.cli, "few.jsonl", "o.jsonl", *judge.flags, code=2
    )


def test_scored_answers_are_made_from_a_few() -> None:
    levels = []

    def answer(messages: list[dict[str, str]]) -> str:
        text = messages[-1]["content"]
        if "numbered list" in text:
            return inventing(messages)
        if match := re.search(r"would give ([\d.]+) on a scale from 1 to 4", text):
            levels.append(float(match[1]))
            return f"An answer worth {match[1]} ({len(text)})"
        worth, asked = re.findall(r"worth ([\d.]+)", text), re.findall(r"<user>\n(.*)\n</user>", text)
        return "hm" if sum(map(ord, asked[-1])) % 2 else f"Score: {worth[-1]}"

    rows = [
        {"user_input": "What is rice?", "completion": "A grain.", "score": 4},
        {"user_input": "What is rice?", "completion": "No.", "score": 1},
        {"user_input": "Why rain?", "completion": "Clouds.", "score": 3},
        {"user_input": "Why wind?", "completion": "Air.", "score": None},
    ]
    write("few.json", rows)
    with serving(answer) as service:
        said = run(extend_rewards.cli, "few.json", "more.jsonl", "--num", "12", "--answers", "3", *service.flags)
        judged = [body for body in service.bodies if body["messages"][-1]["content"].endswith("Score:")]
        assert judged
        assert all(body["temperature"] == 0 for body in judged)
        first, score, second, *_ = judged[0]["messages"]
        assert ("<response>\nNo.\n</response>" in first["content"], score["content"]) == (True, "1")
        assert "<response>\nClouds.\n</response>" in second["content"]
    assert sorted(set(levels)) == [1.0, 2.5, 4.0]
    read = [row for _, row in read_rows(Source("more.jsonl"), (RankedRow,)) if isinstance(row, RankedRow)]
    new = read[4:]
    assert [row.scores for row in read[:4]] == [(4.0,), (1.0,), (3.0,), (None,)]
    assert "answers: the judge's answer holds no clear score" in said
    assert 0 < len(new) < 12
    for row in new:
        assert [f"worth {score:g} " in text for score, text in zip(row.scores, row.responses, strict=True)] == [
            True
        ] * 3


def test_examples_for_rewards_must_differ(judge: FakeService) -> None:
    for rows in (
        [{"user_input": "a", "completion": "b", "score": 1}] * 5,
        [{"user_input": "a", "completion": "b", "score": None}],
    ):
        write("few.json", rows)
        assert "give at least 3 answers and 2 scores" in run(
            extend_rewards.cli, "few.json", "o.jsonl", *judge.flags, code=2
        )
