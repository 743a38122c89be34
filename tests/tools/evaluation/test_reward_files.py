"""Rewards of files: agreement by hand, the model's own scores, going on after a kill; calibration of files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.evaluate import cli
from tools.evaluation.rewards import Agreement


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def sure(difference: float) -> float:
    return 1 / (1 + math.exp(-abs(difference)))


def test_agreement_by_hand() -> None:
    agreement = Agreement()
    agreement.add([2.0, 1.0, 0.0], [3, 2, 1])  # three pairs, all right
    agreement.add([0.0, 1.0, 5.0, 0.5], [0.5, None, -2.0, -2.0])  # 0 over 5: wrong; 0 over 0.5: wrong
    agreement.add([1.0, 1.0], [1, 0])  # not told apart: wrong
    agreement.add([4.0], None)
    told = agreement.figures([1], "uniform")
    assert [told[name] for name in ("rows", "answers", "pairs")] == [4, 10, 6]
    assert told["pair_accuracy"] == pytest.approx(3 / 6)
    assert told["first_two_accuracy"] == pytest.approx(1 / 2)  # rows 1 and 3: the second answer of row 2 has no score
    differences = [1, 2, 1, -5, -0.5, 0]
    assert told["margin"] == pytest.approx(sum(differences) / 6)
    assert told["ece_1"] == pytest.approx(abs(sum(map(sure, differences)) / 6 - 3 / 6))
    assert told["mean_score"] == pytest.approx(15.5 / 10)


def test_intervals_of_independent_pairs_are_wilsons_and_hold_the_rate() -> None:
    agreement = Agreement()
    for number in range(20):
        agreement.add([1.0, 0.0], [1, 0] if number else [0, 1])
    told = agreement.figures([5], "uniform")
    z2 = 1.96**2
    middle = (0.95 + z2 / 40) / (1 + z2 / 20)
    assert sum(told["pair_accuracy_ci"]) / 2 == pytest.approx(middle, abs=1e-4)
    told = Agreement([[0.0, 1.0]]).figures([5], "uniform")
    assert "pair_accuracy" not in told  # nobody scored them: no rate of nothing (an older system divided 0 by 0)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-3, 3), st.none() | st.integers(-2, 2)), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_each_pair_counts_once_and_equal_scores_never(rows: list[list[tuple[float, int | None]]]) -> None:
    agreement = Agreement()
    expected = []
    for row in rows:
        agreement.add([score for score, _ in row], [given for _, given in row])
        for i in range(len(row)):
            for j in range(i):
                (one, better), (other, worse) = row[i], row[j]
                if better is not None and worse is not None and better != worse:
                    expected.append(one - other if better > worse else other - one)
    assert sorted(agreement.differences) == pytest.approx(sorted(expected))


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A reward: the number of characters, over ten."""
    (tmp_path / "rules.py").write_text(
        "def score(messages, answers):\n    return [len(each) / 10 for each in answers]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "rules:score"


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Question {number}", "responses": ["a" * (number + 1), "bb", "c"], "scores": [2, 1, None]}
        for number in range(5)
    ]
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_are_data_for_training_and_a_report_is_written(lengths: str, ranked: Path, tmp_path: Path) -> None:
    from training.data.mixture import Source
    from training.data.reading import read_rows
    from training.data.rows import RankedRow

    out, folder = tmp_path / "scores.jsonl", tmp_path / "report"
    done = run(
        "reward", lengths, ranked, "--out", out, "--bins", 2, "--bins", 4, "--by", "quantile", "--report", folder
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    # Of lengths 1 to 5 beside 2: wrong, equal, right, right, right.
    assert (report["rows"], report["pairs"], report["pair_accuracy"]) == (5, 5, 0.6)
    assert report["ece_4"] >= report["ece_2"] >= 0
    assert report == json.loads((folder / "report.json").read_text())
    for name in ("scores", "reliability_2", "reliability_4"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "| pair accuracy | 0.6 |" in (folder / "report.md").read_text()
    found = [row for _, row in read_rows(Source(str(out)), (RankedRow,))]
    assert next(row.scores for row in found if isinstance(row, RankedRow)) == (0.1, 0.2, 0.1)
    again = run("ece", out, "--bins", 2, "--bins", 4, "--by", "quantile")
    assert [json.loads(again.stdout)[key] for key in ("ece_2", "ece_4")] == [report["ece_2"], report["ece_4"]]


def test_after_a_kill_it_goes_on_to_the_same_file(lengths: str, ranked: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    first = run("reward", lengths, ranked, "--out", whole)
    shutil.copy(f"{whole}.settings.json", f"{cut}.settings.json")
    for size in (0, 10, len(whole.read_bytes()) // 2, len(whole.read_bytes()) - 1):
        cut.write_bytes(whole.read_bytes()[:size])
        done = run("reward", lengths, ranked, "--out", cut)
        assert cut.read_bytes() == whole.read_bytes()
        assert json.loads(done.stdout) | {"scores": ""} == json.loads(first.stdout) | {"scores": ""}
    refused = run("reward", "rules:other", ranked, "--out", cut)
    assert (refused.exit_code, "was made with model='rules:score'" in refused.stderr) == (2, True)


def test_answers_of_several_runs_become_lists(lengths: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One?\nTwo?\n")
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for file in files:
        assert run("generate", "echo", tmp_path / "prompts.txt", "--engine", "echo", "--out", file).exit_code == 0
    done = run("reward", lengths, *files, "--out", tmp_path / "scores.jsonl")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["responses"] for row in rows] == [["One?", "One?"], ["Two?", "Two?"]]
    assert [row["prompt"][0]["content"] for row in rows] == ["One?", "Two?"]
    assert "pair_accuracy" not in json.loads(done.stdout)
    again = run("reward", lengths, tmp_path / "scores.jsonl", "--out", tmp_path / "again.jsonl")  # as ranked data
    assert [json.loads(line)["given"] for line in (tmp_path / "again.jsonl").read_text().splitlines()] == [
        row["scores"] for row in rows
    ], again.stderr
    files[1].write_bytes(files[1].read_bytes()[:-9])
    cut = run("reward", lengths, *files, "--out", tmp_path / "cut.jsonl")
    assert (cut.exit_code, "b.jsonl ends within a line" in cut.stderr) == (2, True), cut.stderr


def test_a_model_of_transformers_gives_its_own_scores(tiny_chat_model: Path, ranked: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_chat_model, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_model)
    folder = tmp_path / "reward"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    written, lengths = tmp_path / "scores.jsonl", []
    for most in (512, None):  # None: one token less than the longest has
        limit = most or max(lengths) - 1
        flags = () if most else ("--max-length", limit)
        if flags:
            refused = run("reward", folder, ranked, "--out", written, "--device", "cpu", *flags)
            assert (refused.exit_code, "max_length" in refused.stderr) == (2, True), "other scores than those there"
            written.unlink()
        done = run("reward", folder, ranked, "--out", written, "--device", "cpu", *flags)
        assert done.exit_code == 0, done.stderr
        for line in written.read_text().splitlines():
            row = json.loads(line)
            for answer, score in zip(row["responses"], row["scores"], strict=True):
                turns = [*row["prompt"], {"role": "assistant", "content": answer}]
                text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
                ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
                lengths.append(ids.shape[1])
                with torch.no_grad():
                    assert score == pytest.approx(float(model(ids[:, :limit]).logits[0, 0]), abs=1e-5)


def test_a_server_scores_too(ranked: Path, tmp_path: Path) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Lengths(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
            rewards = [[float(len(answer)) for answer in item["responses"]] for item in items]
            body = json.dumps({"rewards": rewards, "model": "lengths"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Lengths)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = run("reward", f"http://127.0.0.1:{server.server_port}", ranked, "--out", tmp_path / "scores.jsonl")
    finally:
        server.shutdown()
        server.server_close()
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["scores"] for row in rows] == [[number + 1, 2, 1] for number in range(5)]


# Calibration of files -----------------------------------------------------------------------------------------------


def test_calibration_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "said.csv").write_text("p,hit\n0.9,true\n0.9,1\n0.9,True\n0.9,0\n")
    done = run("ece", tmp_path / "said.csv", "--confidence", "p", "--correct", "hit", "--report", tmp_path / "report")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ece_5"] == pytest.approx(0.15)
    assert (report["predictions"], report["accuracy"]) == (4, 0.75)
    assert (tmp_path / "report" / "reliability_5.png").is_file()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"confidence": 1.2, "correct": True}, "a.jsonl:2: the confidence is 1.2; it must be a number from 0 to 1"),
        ({"confidence": None, "correct": True}, "a.jsonl:2: the confidence is None"),
        ({"confidence": math.nan, "correct": True}, "the confidence is nan"),
        ({"confidence": True, "correct": True}, "the confidence is True"),
        ({"confidence": 0.5, "correct": "maybe"}, "a.jsonl:2: the outcome is 'maybe'"),
        ({"p": 0.5}, "a.jsonl:2: no columns 'confidence' and 'correct', only p; name them with --confidence"),
        ({"scores": [1, 2], "given": [1]}, "a.jsonl:2: `scores` must be numbers"),
        ([1], "a.jsonl:2: not an object"),
    ],
)
def test_rows_that_are_no_predictions_are_named(row: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"confidence": 0.5, "correct": 1}) + "\n" + json.dumps(row) + "\n")
    done = run("ece", path)
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr


def test_a_model_that_says_how_sure_it_is_has_no_calibration_error() -> None:
    """Outcomes drawn with the confidence as their probability."""
    from common.calibration import expected_calibration_error

    rng = np.random.default_rng(0)
    confidence = rng.random(50_000)
    right = rng.random(50_000) < confidence
    assert expected_calibration_error(confidence, right, 10) < 0.01
    assert expected_calibration_error(confidence, right, 10, "quantile") < 0.01
    assert expected_calibration_error(confidence**3, right, 10) > 0.2
