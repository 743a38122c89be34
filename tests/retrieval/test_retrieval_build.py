"""The command line: what it prints, and one line for every bad input."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pexpect
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from retrieval.build import build_index, cli
from retrieval.encoders import HashEncoder
from retrieval.passages import SplitSettings
from retrieval.store import Store


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_build_search_info(corpus: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    (corpus_copy := tmp_path / "docs").symlink_to(corpus)
    built = run(
        "build", corpus_copy, "--index", index, "--encoder", "hash", "--window", 2, "--stride", 1, "--floor", 0.5
    )
    assert built.exit_code == 0, built.stderr
    assert built.stdout == ""
    assert "20 files, 20 passages in" in built.stderr
    assert built.stderr.count("\n") == 1

    found = run("search", "the", "castle", "number4", "--index", index, "-k", 2)
    assert found.exit_code == 0, found.stderr
    first = found.stdout.split("\n")
    assert first[0].startswith("1. 0.")
    assert first[0].endswith("  Doc04")
    assert first[1] == f"   {corpus_copy}/doc04.txt:1"
    assert first[2] == "   The castle number4 was planned in 1804."
    assert "\n2. 0." in found.stdout

    (hit,) = json.loads(run("search", "castle number4", "--index", index, "-k", 1, "--json").stdout)
    assert (hit["rank"], hit["title"], hit["start"], hit["end"]) == (1, "Doc04", 1, 5)
    assert hit["source"] == f"{corpus_copy}/doc04.txt"

    shown = run("info", "--index", index)
    for part in ("documents  20", "encoder    hash (256 dimensions)", "window 2, stride 1", "floor      0.50"):
        assert part in shown.stdout
    assert json.loads(run("info", "--index", index, "--json").stdout)["num_passages"] == 20


def test_a_search_below_the_floor_says_so(corpus: Path, tmp_path: Path) -> None:
    build_index([corpus], tmp_path / "index", "hash", floor=0.9)
    found = run("search", "unheard", "words", "--index", tmp_path / "index")
    assert found.exit_code == 0
    assert "no hit reaches the floor, 0.90" in found.stderr


def test_skipped_files_are_shown_each_on_its_line(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "good.txt").write_text("Text.")
    (docs / "bad.txt").write_bytes(b"\0")
    (docs / "a.pdf").write_bytes(b"%PDF")
    built = run("build", docs, "--index", tmp_path / "index", "--encoder", "hash")
    assert built.stderr.split("\n")[0].endswith("2 files skipped")
    assert f"skipped {docs}/a.pdf: unknown kind '.pdf'; known kinds: " in built.stderr
    assert f"skipped {docs}/bad.txt: it is not text" in built.stderr

    for i in range(60):
        (docs / f"{i}.zip").write_bytes(b"PK")
    built = run("build", docs, "--index", tmp_path / "index", "--encoder", "hash")
    assert "62 files skipped" in built.stderr
    assert built.stderr.strip().endswith("skipped 12 more")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("build --index {new}", "Missing argument 'PATHS...'"),
        ("build {docs}", "Missing option '--index'"),
        ("build {tmp}/nothing --index {new} --encoder hash", "nothing' does not exist"),
        ("build {index} --index {new} --encoder hash", "holds no document that can be read"),
        ("build {docs} --index {docs} --encoder hash", "is not empty and holds no index"),
        ("build {docs} --index {docs}/doc00.txt --encoder hash", "is a file; an index is a folder"),
        ("build {docs} --index {new} --encoder ./nowhere", "model directory './nowhere' does not exist"),
        ("build {docs} --index {new} --encoder no-such-model-here", "model 'no-such-model-here'"),
        ("build {docs} --index {new} --encoder hash --window 0", "window is 0; it must be at least 1"),
        ("build {docs} --index {new} --encoder hash --window x", "Invalid value for '--window'"),
        ("build {docs} --index {new} --encoder hash --stride 4", "stride is 4; it must be from 1 to the window (3)"),
        ("build {docs} --index {new} --encoder hash --max-chars 10", "max_chars is 10; it must be at least 50"),
        ("build {docs} --index {new} --encoder hash --floor 2", "floor is 2.0; it is a cosine, from -1 to 1"),
        ("build {docs} --index {new} --encoder ./x --device toaster", "device 'toaster' cannot be used"),
        ("search bridge", "Missing option '--index'"),
        ("search --index {index}", "Missing argument 'QUERY...'"),
        ("search bridge --index {new}", "there is no index in"),
        ("search bridge --index {docs}", "there is no index in"),
        ("search bridge --index {index} -k 0", "k is 0; it must be at least 1"),
        ("search bridge --index {index} --encoder ./nowhere", "model directory './nowhere' does not exist"),
        ("info --index {new}", "there is no index in"),
        ("info", "Missing option '--index'"),
        ("tune", "No such command 'tune'"),
        ("build {docs} --index {new} --bogus", "No such option"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    corpus: Path, index: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    filled = arguments.format(docs=corpus, index=index, tmp=tmp_path, new=tmp_path / "new")
    result = run(*filled.split())
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (tmp_path / "new").exists()


def test_an_empty_query_is_an_error(index: Path) -> None:
    assert "the query is empty" in run("search", " ", "--index", index).stderr


def test_a_damaged_index_is_one_line(index: Path) -> None:
    (path,) = index.glob("*/passages.jsonl")
    os.truncate(path, 10)
    for command in (["search", "bridge"], ["info"]):
        result = run(*command, "--index", index)
        assert result.exit_code == 2
        assert "is damaged (passages.jsonl: 10 bytes" in result.stderr


def test_a_terminal_sees_progress(corpus: Path, tmp_path: Path) -> None:
    arguments = ["-m", "retrieval", "build", str(corpus), "--index", str(tmp_path / "index"), "--encoder", "hash"]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", dimensions=(40, 200), timeout=60)
    child.expect("20 passages, [0-9]+/s")
    child.expect("20 files, 20 passages in")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_build_index_streams_and_reports(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    class Counting(HashEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            batches.append(len(texts))
            return super().encode(texts)

    monkeypatch.setattr("retrieval.build.BATCH_PASSAGES", 16)
    progress: list[tuple[int, int, int]] = []
    settings = SplitSettings(window=1, stride=1, min_chars=0)
    report = build_index(
        [corpus], tmp_path / "index", Counting(), settings, on_progress=lambda *now: progress.append(now)
    )
    assert (report.num_documents, report.num_passages, report.skipped) == (20, 60, ())
    assert report.passages_per_second == pytest.approx(60 / report.seconds)
    assert batches == [16, 16, 16, 12]
    assert [num for _, _, num in progress] == [16, 32, 48, 60]
    assert progress[-1][0] == progress[-1][1] == sum(file.stat().st_size for file in corpus.iterdir())
    assert Store(tmp_path / "index").manifest.settings == settings
