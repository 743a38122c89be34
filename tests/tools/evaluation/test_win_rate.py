"""Win rates: verdicts and rates by hand, the defects of older judges, equal lengths, and judges of every kind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.conversation import Conversation
from chatbot.engines.base import Delta, Generation
from tools.evaluate import cli
from tools.evaluation.answers import Answered
from tools.evaluation.judging import CRITERIA, Judgement, judge_by_chat, judge_prompt, outcome, verdict
from tools.evaluation.statistics import bootstrap_ratio, length_controlled, length_controlled_interval, wilson
from tools.evaluation.win_rate import win_figures

HI = Conversation().add("user", "Hi")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Answer A is more to the point.\n[[A]]", "A"),
        ("[[B]]", "B"),
        ("Both are equally good. [[C]]", "C"),
        ("Both are equally bad: [[C]]", "C"),  # an older judge only knew 'equally good'
        ("B", "B"),
        ("[A].", "A"),
        ("Answer B is better.", None),  # the letter A in 'Answer' is no verdict
        ("A good question! I like Answer B", None),
        ("[[A]] if A is better, [[B]] if B is", None),  # the instruction, said again
        ("At first I thought [[A]],\nbut it is wrong: [[B]]", "B"),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, said: str | None) -> None:
    assert verdict(reply) == said


def test_both_orders_must_agree() -> None:
    """A is what was shown first: ours, then theirs."""
    table = {("A", "B"): "win", ("B", "A"): "loss", ("A", "A"): "tie", ("B", "B"): "tie", ("C", "C"): "tie"}
    for (first, second), expected in table.items():
        assert outcome(first, second) == expected
    assert outcome("A", "C") == outcome("C", "A") == "tie"  # they disagree
    assert outcome("A", None) == outcome(None, "B") == "unparsed"


class Judge:
    """A chat model that reads two answers out of its prompt and says what its rule says."""

    name, context_length = "judge", 700

    def __init__(self, rule: Any) -> None:
        self.rule, self.asked = rule, 0

    def count_tokens(self, conversation: Conversation) -> int:
        return len(conversation.last.content.split())

    def render(self, conversation: Conversation) -> str:
        return conversation.last.content

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        self.asked += 1
        text = conversation.last.content
        first = text.split("===== Answer A =====\n")[1].split("\n\n===== Answer B")[0]
        second = text.split("===== Answer B =====\n")[1].split("\n\n===== End")[0]
        yield Delta(self.rule(first, second))
        yield Delta("", "stop")

    def complete(self, prompt: str, generation: Generation) -> Iterator[Delta]:
        raise NotImplementedError


def judged(rule: Any, *pairs: tuple[str, str]) -> list[Judgement]:
    rows = [(Answered("a", HI, (ours,)), Answered("b", HI, (theirs,))) for ours, theirs in pairs]
    return list(judge_by_chat(Judge(rule), rows, "union", Generation(max_tokens=50), 3))


def longer(first: str, second: str) -> str:
    return "The longer one. " + (
        "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"
    )


def test_a_judge_is_asked_twice_and_answers_keep_their_order() -> None:
    found = judged(longer, ("abc", "a"), ("a", "abc"), ("ab", "cd"))
    assert [each.outcome for each in found] == ["win", "loss", "tie"]
    assert [each.verdicts for each in found] == [("A", "B"), ("B", "A"), ("C", "C")]
    first = judged(lambda *_: "[[A]]", ("abc", "a"))  # whatever comes first
    assert [each.outcome for each in first] == ["tie"]


def test_a_reply_without_a_verdict_is_asked_for_once_and_counted() -> None:
    """An older judge asked again for ever."""
    judge = Judge(lambda *_: "I cannot say.")
    rows = [(Answered("a", HI, ("x",)), Answered("b", HI, ("y",)))] * 3
    found = list(judge_by_chat(judge, rows, "helpful", Generation(max_tokens=50)))
    assert ([each.outcome for each in found], judge.asked) == (["unparsed"] * 3, 6)
    found = judged(longer, ("abc", "a"), ("word " * 700, "a"), ("a", "abc"))
    assert [each.outcome for each in found] == ["win", "too_long", "loss"]


def test_the_judge_reads_the_conversation_both_answers_and_the_criterion() -> None:
    for name, text in CRITERIA.items():
        said = judge_prompt(HI.add("assistant", "Ho").add("user", "And?"), "one", "other", name).last.content
        assert text in said
        assert "User: Hi\n\nAssistant: Ho\n\nUser: And?" in said
        assert said.index("one\n") < said.index("other\n")
    with pytest.raises(ValueError, match="unknown criterion 'kind'; choose one of: helpful, harmless, union"):
        judge_prompt(HI, "one", "other", "kind")


def record(outcome: str, ours: str = "ab", theirs: str = "cd", verdicts: Any = ()) -> dict[str, Any]:
    return {"outcome": outcome, "ours": ours, "theirs": theirs, "verdicts": list(verdicts)}


def test_rates_by_hand() -> None:
    records = [
        *[record("win", verdicts="AB")] * 3,
        record("tie", verdicts="AA"),
        record("tie", verdicts="CC"),
        record("loss", verdicts="BA"),
        record("unparsed", verdicts=["A", None]),
        record("too_long"),
    ]
    told = win_figures(records)
    assert [told[name] for name in ("rows", "judged", "wins", "ties", "losses", "unparsed", "too_long")] == [
        *(8, 6, 3, 2, 1, 1, 1)
    ]
    assert told["win_rate"] == pytest.approx((3 + 2 / 2) / 6)
    assert told["win_rate_without_ties"] == pytest.approx(3 / 4)
    assert told["length_controlled_win_rate"] == pytest.approx(told["win_rate"])  # all lengths are equal
    assert told["contradictions"] == 1
    assert told["first_preferred"] == pytest.approx(7 / 11)  # A: 3 + 2 + 1 + 1; B: 3 + 1
    assert win_figures([record("tie")])["win_rate_without_ties"] is None
    with pytest.raises(ValueError, match=r"of 2 rows none was judged \(1 replies without a verdict, 1 too long"):
        win_figures(records[-2:])


def test_wilson_by_hand() -> None:
    """5 of 10: 0.5 +- z sqrt(.025 + z^2 / 400) / (1 + z^2 / 10), with z = 1.96."""
    half = 1.96 * math.sqrt(0.025 + 1.96**2 / 400) / (1 + 1.96**2 / 10)
    assert wilson(5, 10) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0, 1.96**2 / (10 + 1.96**2)), abs=1e-5)
    assert wilson(0, 0) is None


def test_a_bootstrap_interval_is_the_normal_one_for_many_independent_rows() -> None:
    values = np.random.default_rng(3).random(2000) < 0.3
    low, high = bootstrap_ratio(values, np.ones(2000)) or (0, 0)
    half = 1.96 * math.sqrt(values.mean() * (1 - values.mean()) / 2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)
    # Rows of ten equal trials are worth one each: the interval is wider by the root of ten.
    low, high = bootstrap_ratio(values[:200] * 10, np.full(200, 10)) or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(values[:200].var() / 200), rel=0.1)
    assert bootstrap_ratio([0, 0], [0, 0]) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-500, 500)), min_size=2, max_size=30))
def test_equal_lengths_are_a_logistic_regression(rows: list[tuple[float, int]]) -> None:
    """scikit-learn's, with a tie as half a win and half a loss, and the same ridge (0.1 = 1 / C) on the length."""
    from sklearn.linear_model import LogisticRegression

    wins, lengths = np.array([each[0] for each in rows]), np.array([float(each[1]) for each in rows])
    if len(set(wins)) == 1:
        expected = wins[0]
    else:
        x = np.tanh(lengths / lengths.std()) if lengths.std() else np.zeros_like(lengths)
        fitted = LogisticRegression(C=10, tol=1e-9, max_iter=2000).fit(
            np.r_[x, x][:, None], np.r_[np.ones(len(x)), np.zeros(len(x))], np.r_[wins, 1 - wins]
        )
        expected = 1 / (1 + math.exp(-fitted.intercept_[0]))
    if len(set(wins)) > 1 or wins[0] != 0.5:
        assert length_controlled(wins, lengths) == pytest.approx(expected, abs=2e-3)


def test_a_judge_that_only_likes_length_finds_equals() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.normal(60, 100, 400)  # ours are longer
    wins = (rng.random(400) < 1 / (1 + np.exp(-4 * np.tanh(lengths / lengths.std())))).astype(float)
    assert wins.mean() > 0.6
    low, high = length_controlled_interval(wins, lengths)
    assert low < 0.5 < high
    # Another order of the same two: the mirrored rate.
    assert length_controlled(1 - wins, -lengths) == pytest.approx(1 - length_controlled(wins, lengths))


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Ours by `generate`, theirs as conversations; and `lengths:score`, a reward."""
    (tmp_path / "lengths.py").write_text("def score(messages, answers):\n    return [len(each) for each in answers]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = [f"Number{'x' * number}" for number in range(6)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    done = CliRunner().invoke(
        cli, ["generate", "echo", str(tmp_path / "prompts.txt"), "--engine", "echo", "--out", str(ours)]
    )
    assert done.exit_code == 0, done.stderr
    rows = [HI.upto(0).add("user", each).add("assistant", "y" * 9) for each in prompts]
    theirs.write_text("".join(json.dumps({"messages": each.to_dicts()}) + "\n" for each in rows))
    return ours, theirs


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["win_rate", *map(str, arguments)])


def test_a_reward_model_judges_and_a_report_is_written(answers: tuple[Path, Path], tmp_path: Path) -> None:
    out, folder = tmp_path / "judged.jsonl", tmp_path / "report"
    done = run(*answers, "--reward", "lengths:score", "--out", out, "--report", folder)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    # Ours have 6 to 11 characters, beside nine.
    assert (report["wins"], report["ties"], report["losses"]) == (2, 1, 3)
    assert report["win_rate"] == pytest.approx(2.5 / 6)
    assert report == json.loads((folder / "report.json").read_text())
    assert "| win rate | 0.4167 |" in (folder / "report.md").read_text()
    assert (folder / "win_rate.png").read_bytes().startswith(b"\x89PNG")
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:10])
    again = run(*answers, "--reward", "lengths:score", "--out", out)
    assert (again.exit_code, out.read_text()) == (0, "".join(lines))
    assert "going on after 3 of 6 rows" in again.stderr


def test_a_judge_that_says_nothing_is_an_error_with_counts(answers: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(*answers, "--judge", "echo", "--engine", "echo", "--out", tmp_path / "judged.jsonl")
    assert (done.exit_code, "none was judged (6 replies without a verdict" in done.stderr) == (2, True), done.stderr


def test_what_cannot_be_compared_is_refused(answers: tuple[Path, Path], tmp_path: Path) -> None:
    ours, theirs = answers
    out = tmp_path / "judged.jsonl"
    short, other = tmp_path / "short.jsonl", tmp_path / "other.jsonl"
    lines = theirs.read_text().splitlines(keepends=True)
    short.write_text("".join(lines[:4]))
    other.write_text("".join([*lines[:4], lines[5], lines[4]]))
    for arguments, message in (
        ((ours, theirs, "--out", out), "name one judge"),
        ((ours, theirs, "--out", out, "--judge", "echo", "--reward", "lengths:score"), "name one judge"),
        ((ours, short, "--out", out, "--reward", "lengths:score"), "different numbers of answers"),
        ((ours, other, "--out", tmp_path / "o", "--reward", "lengths:score"), "answer different prompts"),
        ((ours, theirs, "--out", out, "--reward", "lengths:nothing"), "nothing"),
    ):
        done = run(*arguments)
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
