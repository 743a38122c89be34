"""Training rows are what the bot would be given, word for word; the command as a whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from qa_documents import asked, passages, question, rows_of, write_rows

from chatbot.assembly import open_bot
from chatbot.attribution.attributing import Attributor
from chatbot.conversation import Conversation
from chatbot.core import NOT_IN_DOCUMENTS
from chatbot.options import bot_options, check_options
from retrieval.types import Hit, Passage
from tools.evaluate import cli as evaluate
from tools.evaluation.asked import read_asked
from tools.evaluation.rag import is_refusal
from tools.make_qa import cli
from tools.questions.library import Library
from tools.questions.rows import UNKNOWN, Making, bot_prompt, reply, training_rows
from tools.questions.splitting import split
from tools.questions.types import document_of, stands_in
from training.data.mixture import Source
from training.data.reading import read_rows
from training.data.rows import ChatRow

ROOT = Path(__file__).parents[3]


class Finds:
    """A searcher that finds what it is told."""

    floor = 0.0

    def __init__(self, hits: Sequence[Hit]) -> None:
        self.hits = list(hits)

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        return [self.hits[:k] for _ in queries]


def bot(hits: Sequence[Hit], *flags: str) -> Any:
    """The bot that the shell's flags open, searching in `hits`."""
    found: dict[str, Any] = {}

    @bot_options
    def command(**values: Any) -> None:
        check_options(values)
        found.update(values)

    click.command()(command).main(["--engine", "echo", "--no-moderation", *flags], standalone_mode=False)
    return open_bot(found).searching(Finds(hits))


@pytest.mark.parametrize("num", [1, 2, 3])
@pytest.mark.parametrize("system", ["", "You speak of towns alone."])
def test_a_prompt_is_the_running_bots_word_for_word(library: Library, num: int, system: str) -> None:
    odd = Passage("x#0", "Text with <|im_start|>user\nmarks, [2] numbers and {braces}.", "", "x y.md", 1, 1)
    hits = [Hit(each, 0.5) for each in (odd, *passages(library))][:num]
    text = "When was the bridge <|im_end|> opened?"
    turn = bot(hits, "--k", str(num), "--system", system).prepare(Conversation().add("user", text))
    assert turn.sources == tuple(hits)
    assert bot_prompt(text, hits, system).to_dicts() == turn.prompt.conversation.to_dicts()


def test_the_reply_without_an_answer_is_the_bots_own_and_known_as_a_refusal() -> None:
    assert NOT_IN_DOCUMENTS.startswith(UNKNOWN)
    assert is_refusal(UNKNOWN)


@pytest.mark.parametrize(
    ("style", "answer", "expected"),
    [
        ("short", "May 18, 2018", "May 18, 2018 [2]."),
        ("short", "Raymond Unwin,", "Raymond Unwin [2]."),
        ("sentence", "1932", "It was opened in 1932 [2]."),
        ("sentence", "eight", "It has eight lanes [2]."),
    ],
)
def test_replies_cite_by_number(style: Any, answer: str, expected: str) -> None:
    text = "It was opened in 1932 [7]. It has eight lanes! Raymond Unwin, who left May 18, 2018."
    assert reply(question("When?", answer, Passage("b#0", text, "B", "b.md", 1, 1)), 2, style) == expected


@pytest.mark.parametrize("order", ["random", "found"])
@pytest.mark.parametrize("k", [1, 3])
def test_training_rows_hold_their_answer_or_say_that_nothing_does(library: Library, order: Any, k: int) -> None:
    by_text = {each.text: each for each in passages(library)}
    questions = []
    for row in asked():
        answer = row.get("answer") or row["answers"][0]
        holds = next(each for each in by_text.values() if stands_in(answer, each.text))
        questions.append(question(row["question"], answer, holds))
    twins = library.twins([each.passage for each in questions])
    parts = split(questions, twins, 0.25, 0)
    counts: Counter[str] = Counter()
    making = Making(k=k, order=order, without_gold=0.4)
    rows = list(training_rows(parts, library, twins, making, counts))
    assert rows == list(training_rows(parts, library, twins, making, Counter()))
    asked_for = {each.text: each for each in parts.train}
    places, refusals = Counter[int](), 0
    for row in rows:
        prompt, answer = row["messages"][-2]["content"], row["messages"][-1]["content"]
        shown = [each for each in passages(library) if each.id in row["about"]["passages"]]
        assert len(row["about"]["passages"]) == len(shown) <= k
        assert all(each.text in prompt for each in shown)
        assert not any(parts.is_held_out(each.id) for each in shown)
        if answer == UNKNOWN:
            refusals += 1
            own = asked_for.get(row["about"]["question"])
            assert own is None or not any(stands_in(own.answers[0], each.text) for each in shown)
            continue
        own = asked_for[row["about"]["question"]]
        place = row["about"]["passages"].index(own.passage.id)
        places[place] += 1
        assert answer == f"{own.answers[0]} [{place + 1}]."
        (judged,) = Attributor([Hit(each, 1.0).passage for each in shown][:1] if k == 1 else shown).attribute(answer)
        assert judged.supported
    assert refusals / len(rows) == pytest.approx(0.4, abs=0.03)
    assert counts["rows without the passage that answers"] == refusals
    assert len(places) == (k if order == "random" else len(places))


def run(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def test_a_whole_run_is_repeatable_and_read_by_training_and_evaluation(towns_index: Path, tmp_path: Path) -> None:
    unknown = {"question": "Who is the mayor of Paris?"}
    mine = write_rows(tmp_path / "mine.jsonl", [*asked(), asked()[0], unknown])
    flags = ("--questions", mine, "--test-share", "0.5", "--unanswerable", "0.3", "--k", "2")
    report = json.loads(run(towns_index, "--out", tmp_path / "one", *flags))
    run(towns_index, "--out", tmp_path / "two", *flags)
    for name in ("test.jsonl", "train.jsonl", "questions.jsonl", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (report["questions"], report["left_out"]) == (24, {"questions that were asked before": 1})
    assert report["test"]["outside questions"] == 1
    train = [row for _, row in read_rows(Source(str(tmp_path / "one" / "train.jsonl")), (ChatRow,))]
    assert len(train) == sum(report["train"].values())
    tests = read_asked(tmp_path / "one" / "test.jsonl")
    assert len(tests) == sum(report["test"].values())
    held_out = {document_of(each.passage) for each in tests if each.passage}
    rows = rows_of(tmp_path / "one" / "train.jsonl")
    assert held_out.isdisjoint(document_of(name) for row in rows for name in row["about"]["passages"])
    again = run(towns_index, "--out", tmp_path / "three", "--questions", tmp_path / "one" / "questions.jsonl")
    assert json.loads(again)["questions"] == 24, "what it lists it reads"
    _check_evaluation(towns_index, tmp_path)


def _check_evaluation(index: Path, folder: Path) -> None:
    flags = ["--engine", "echo", "--no-moderation", "--floor", "0", "--k", "10", "--report", str(folder / "report")]
    done = CliRunner().invoke(evaluate, ["rag", str(index), str(folder / "one" / "test.jsonl"), *flags])
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "report" / "report.json").read_text())
    # The echo engine says its whole prompt: with ten passages it holds what was found, the right one among it.
    assert report["figures"]["passage_recall"] == report["figures"]["answer_contained"] == 1
    hidden = [row for row in rows_of(folder / "one" / "test.jsonl") if row["kind"] == "hidden"]
    assert hidden
    replies = {row["question"]: row["reply"] for row in report["rows"]}
    answers = {row["question"]: row["answers"] for row in rows_of(folder / "one" / "questions.jsonl")}
    for row in hidden:
        assert not stands_in(answers[row["question"]][0], replies[row["question"]])


def test_mistakes_are_one_line(towns_index: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    for line, reason in (
        ("{", "not a line of JSON"),
        ("[]", "needs `question`"),
        ('{"question": "Q", "answer": 1}', "text"),
    ):
        bad.write_text(f"\n{line}\n")
        said = run(towns_index, "--out", tmp_path / "out", "--questions", bad, code=2)
        assert "bad.jsonl:2: " in said
        assert reason in said
    echo = ("--engine", "echo", "--free", "--min-chars", "20", "--max-tokens", "2000", "--cache", tmp_path / "answers")
    said = run(towns_index, "--out", tmp_path / "out", *echo, code=2)
    assert "no question was kept" in said
    assert "replies without a question and an answer" in said
    assert not (tmp_path / "out" / "test.jsonl").exists()
    assert "no index" in run(tmp_path / "nowhere", "--out", tmp_path / "out", code=2)


def test_a_dry_run_asks_nothing_and_writes_nothing(towns_index: Path, tmp_path: Path) -> None:
    said = run(towns_index, "--out", tmp_path / "out", "--num", "5", "--min-chars", "20", "--dry-run")
    assert "at least 10 requests" in said
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_to_the_same_files(towns_index: Path, tmp_path: Path) -> None:
    mine = write_rows(tmp_path / "mine.jsonl", asked())
    run(towns_index, "--out", tmp_path / "whole", "--questions", mine)
    command = [sys.executable, "tools/make_qa.py", towns_index, "--out", tmp_path / "out", "--questions", mine]
    for seconds in (0.6, 1.2, 1.8):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(towns_index, "--out", tmp_path / "out", "--questions", mine)
    for name in ("test.jsonl", "train.jsonl", "questions.jsonl", "report.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
