"""The commands that make, change and measure an index: what they print, and one line for every bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner, Result

from retrieval.build import cli
from retrieval.index.manifest import read_manifest
from retrieval.index.store import Store
from retrieval.writing.building import build_index


def run(*arguments: str | int | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


def sources(index: Path) -> set[str]:
    return {Path(passage.source).name for _, passage in Store(index).live_passages()}


@pytest.fixture(scope="module")
def index(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the corpus that no test of this file changes."""
    folder = tmp_path_factory.mktemp("shared") / "index"
    build_index([corpus], folder, "hash", calibrate=False)
    return folder


@pytest.fixture
def docs(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the corpus that a test may change."""
    return Path(shutil.copytree(corpus, tmp_path / "docs"))


# What the commands do -----------------------------------------------------------------------------------------------


def test_build_says_in_one_line_what_it_did(docs: Path, tmp_path: Path) -> None:
    built = run("build", docs, "--index", tmp_path / "index", "--encoder", "hash")
    assert (built.exit_code, built.stdout) == (0, "")
    assert built.stderr.startswith(f"{tmp_path / 'index'}: 20 files read; 20 documents, 20 passages (20 new, ")
    assert built.stderr.endswith("; 0 skipped\n")
    assert built.stderr.count("\n") == 1


def test_each_flag_of_build_is_in_the_index(docs: Path, tmp_path: Path) -> None:
    flags = "--window 2 --stride 1 --max-chars 400 --max-tokens 50 --language german --fusion rrf --weight 0.4"
    flags += " --factory SQ8 --floor 0.5 --max-memory 300 --max-seconds 9 --workers 2"
    built = run("build", docs, "--index", tmp_path / "index", "--encoder", "hash", *flags.split())
    assert built.exit_code == 0, built.stderr
    manifest = read_manifest(tmp_path / "index")
    split, fusion = manifest.settings.split, manifest.settings.fusion
    assert (split.window, split.stride, split.max_chars, split.max_tokens) == (2, 1, 400, 50)
    assert (manifest.settings.lexical.language, fusion.method, fusion.weight) == ("german", "rrf", 0.4)
    assert (manifest.settings.factory, manifest.floor, manifest.calibration) == ("SQ8", 0.5, None)
    assert manifest.encoder.name == "hash"


@pytest.mark.parametrize(("flag", "is_fitted"), [("--calibrate", True), ("--no-calibrate", False)])
def test_a_build_finds_the_floor_unless_told_not_to(docs: Path, tmp_path: Path, flag: str, is_fitted: bool) -> None:
    assert run("build", docs, "--index", tmp_path / "index", "--encoder", "hash", flag).exit_code == 0
    manifest = read_manifest(tmp_path / "index")
    assert (manifest.calibration is not None) == is_fitted == (manifest.floor > 0)


def test_a_floor_that_may_refuse_more_is_higher(docs: Path, tmp_path: Path) -> None:
    index, floors = tmp_path / "index", []
    for share in ("0", "0.1", "0.3", "0.5"):
        assert run("build", docs, "--index", index, "--encoder", "hash", "--false-refusals", share).exit_code == 0
        manifest = read_manifest(index)
        floors.append(manifest.floor)
        assert manifest.calibration is not None
        assert manifest.calibration.target_false_refusal == float(share)
        assert run("tune", "--index", index, "--false-refusals", "0.2").exit_code == 0
        tuned = read_manifest(index).calibration
        assert tuned is not None
        assert tuned.target_false_refusal == 0.2
    assert floors == sorted(floors)
    assert floors[0] < floors[-1]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("docs/doc0[12].txt", {"doc01.txt", "doc02.txt"}),
        ("docs/*9.txt", {"doc09.txt", "doc19.txt"}),
        ("**/doc1?.txt", {f"doc1{i}.txt" for i in range(10)}),
        ("docs/doc03.txt", {"doc03.txt"}),
    ],
)
def test_patterns_name_documents(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    built = run("build", pattern, "--index", "index", "--encoder", "hash")
    assert built.exit_code == 0, built.stderr
    assert sources(tmp_path / "index") == expected


def test_stdin_is_a_document(tmp_path: Path) -> None:
    built = run("build", "-", "--index", tmp_path / "index", "--encoder", "hash", stdin="A text about cheese.\n")
    assert built.exit_code == 0, built.stderr
    found = run("search", "cheese", "--index", tmp_path / "index")
    assert found.stdout.splitlines()[1:] == ["   stdin:1", "   A text about cheese.", ""]


def test_update_delete_and_compact_say_what_they_did(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    run("build", docs, "--index", index, "--encoder", "hash")
    (docs / "doc00.txt").unlink()
    (docs / "doc01.txt").write_text("A text that has changed.")
    (docs / "new.txt").write_text("A new text.")
    updated = run("update", "--index", index)
    assert "2 files read, 18 unchanged, 1 removed; 20 documents, 20 passages (2 new, " in updated.stderr
    assert "0 files read, 20 unchanged, 0 removed; 20 documents" in run("update", "--index", index).stderr
    deleted = run("delete", "*/doc1?.txt", f"{docs}/new.txt", "--index", index)
    assert "11 documents removed; 9 documents, 9 passages in " in deleted.stderr
    assert "0 removed; 9 documents" in run("update", "--index", index).stderr
    compacted = run("compact", "--index", index)
    assert "13 deleted passages cleared away; 9 documents, 9 passages in " in compacted.stderr
    assert sources(index) == {f"doc0{i}.txt" for i in range(1, 10)}
    named = run("update", docs / "new.txt", "--index", index)  # what is named comes back
    assert "1 files read" in named.stderr
    assert "new.txt" in sources(index)


def test_skipped_files_are_shown_each_on_its_line(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "good.txt").write_text("Text.")
    (docs / "bad.txt").write_bytes(b"\0\1\2\0")
    (docs / "a.zip").write_bytes(b"PK")
    built = run("build", docs, "--index", tmp_path / "index", "--encoder", "hash")
    assert built.stderr.split("\n")[0].endswith("2 skipped")
    assert f"skipped {docs}/a.zip: unknown kind '.zip'; known kinds: " in built.stderr
    assert f"skipped {docs}/bad.txt: " in built.stderr
    for i in range(60):
        (docs / f"{i}.zip").write_bytes(b"PK")
    built = run("build", docs, "--index", tmp_path / "index", "--encoder", "hash")
    assert "62 skipped" in built.stderr
    assert built.stderr.strip().endswith("skipped 12 more")


def test_a_damaged_index_is_one_line_and_a_build_mends_it(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    run("build", docs, "--index", index, "--encoder", "hash")
    (path,) = index.glob("*/passages.jsonl")
    os.truncate(path, 10)
    for command in (["search", "bridge"], ["info"], ["explain", "bridge"], ["tune"], ["update"], ["delete", "*"]):
        result = run(*command, "--index", index)
        assert (result.exit_code, result.stdout) == (2, ""), command
        assert "is damaged (" in result.stderr
        assert "passages.jsonl" in result.stderr
        assert f"rebuild it with: python -m retrieval build DOCUMENTS --index {index}" in result.stderr
        assert result.stderr.count("\n") == 1
    assert run("build", docs, "--index", index, "--encoder", "hash").exit_code == 0
    assert run("search", "bridge", "--index", index).exit_code == 0


# evaluate -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A collection of 30 documents and three questions, each with the one document that has its number."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": f"T{i}", "text": f"The tower number{i} stands."} for i in range(30)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    queries = [{"_id": f"q{i}", "text": f"where is number{i}"} for i in range(3)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(3))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


def test_evaluate_measures_each_way_and_writes_a_run(beir: Path, tmp_path: Path) -> None:
    pytest.importorskip("ir_measures")
    result = run("evaluate", beir, "--encoder", "hash", "--run-file", tmp_path / "run.txt")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"3 questions, {beir}"
    assert lines[1].split() == ["nDCG@10", "Recall@10", "Recall@100", "MRR@10"]
    assert [line[:10].strip() for line in lines[2:]] == ["words", "vectors", "rrf", "in use"]
    assert lines[2].split()[1:] == ["1.000"] * 4
    first = [line.split() for line in (tmp_path / "run.txt").read_text().splitlines()]
    assert [row[2] for row in first if row[3] == "1"] == ["d0", "d1", "d2"]
    assert {row[5] for row in first} == {"parley"}


def test_evaluate_with_an_index_of_the_corpus(beir: Path, tmp_path: Path) -> None:
    pytest.importorskip("ir_measures")
    run("build", beir / "corpus.jsonl", "--index", tmp_path / "index", "--encoder", "hash", "--no-calibrate")
    content = json.loads(run("evaluate", beir, "--index", tmp_path / "index", "--json").stdout)
    assert content == json.loads(run("evaluate", beir, "--encoder", "hash", "--json").stdout)
    assert list(content) == ["words", "vectors", "rrf", "in use"]
    assert content["words"]["MRR@10"] == 1.0


def test_evaluate_with_an_index_of_something_else(beir: Path, docs: Path, tmp_path: Path) -> None:
    run("build", docs, "--index", tmp_path / "index", "--encoder", "hash", "--no-calibrate")
    result = run("evaluate", beir, "--index", tmp_path / "index")
    assert result.exit_code == 2
    assert "holds none of the documents that" in result.stderr


# Bad input ----------------------------------------------------------------------------------------------------------

HAS_RAY = importlib.util.find_spec("ray") is not None
BUILD = "build {docs} --index {new} --encoder hash"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("build --index {new}", "Missing argument 'PATHS...'"),
        ("build {docs}", "Missing option '--index'"),
        ("build {tmp}/nothing --index {new} --encoder hash", "nothing' does not exist"),
        ("build {tmp}/*.nothing --index {new} --encoder hash", "*.nothing' matches no file"),
        ("build {tmp}/empty --index {new} --encoder hash", "holds no document that can be read; known kinds: "),
        ("build {tmp}/odd.xyz --index {new} --encoder hash", "unknown kind '.xyz'; known kinds: "),
        ("build - --index {new} --encoder hash", "cannot read 'stdin': it holds no text"),
        ("build {docs} --index {docs} --encoder hash", "is not empty and holds no index"),
        ("build {docs} --index {docs}/doc00.txt --encoder hash", "is a file; an index is a folder"),
        ("build {docs} --index {new} --encoder ./nowhere", "model directory './nowhere' does not exist"),
        ("build {docs} --index {new} --encoder no-such-model-here", "model 'no-such-model-here'"),
        ("build {docs} --index {new} --encoder ./x --device toaster", "device 'toaster'"),
        (f"{BUILD} --window 0", "window is 0; it must be at least 1"),
        (f"{BUILD} --window x", "Invalid value for '--window'"),
        (f"{BUILD} --stride 4", "stride is 4; it must be from 1 to the window (3)"),
        (f"{BUILD} --max-chars 10", "max_chars is 10; it must be at least 50"),
        (f"{BUILD} --max-tokens 1", "max_tokens is 1; it must be at least 16"),
        (f"{BUILD} --floor 2", "floor is 2.0; "),
        (f"{BUILD} --workers 0", "--workers 0 must be at least 1"),
        (f"{BUILD} --weight 2", "weight is 2.0; the cosine's share must be from 0 to 1"),
        (f"{BUILD} --fusion both", "'both' is not one of 'weighted', 'rrf', 'dense', 'lexical'"),
        (f"{BUILD} --language klingon", "error: no stemmer for the language 'klingon'; known: none, arabic"),
        (f"{BUILD} --max-memory 1", "memory_mb is 1; a reader needs at least"),
        (f"{BUILD} --max-seconds 0", "seconds is 0; it must be more than 0"),
        (f"{BUILD} --bogus", "No such option"),
        ("update --index {new}", "there is no index in"),
        ("update {tmp}/nothing --index {index}", "nothing' does not exist"),
        ("update --index {index} --workers 0", "--workers 0 must be at least 1"),
        ("delete --index {index}", "Missing argument 'NAMES...'"),
        ("delete nothing --index {index}", "'nothing' fits no document of index"),
        ("delete x --index {new}", "there is no index in"),
        ("compact --index {new}", "there is no index in"),
        ("search bridge", "Missing option '--index'"),
        ("search --index {index}", "Missing argument 'QUERY...'"),
        ("search bridge --index {new}", "there is no index in"),
        ("search bridge --index {docs}", "there is no index in"),
        ("search bridge --index {index} -k 0", "k is 0; it must be at least 1"),
        ("search bridge --index {index} -k x", "Invalid value for '-k'"),
        ("search bridge --index {index} --encoder ./nowhere", "model directory './nowhere' does not exist"),
        ("search bridge --index {index} --where nonsense", "'nonsense' is no condition; write FIELD=VALUE"),
        ("search bridge --index {index} --expand -1", "expand is -1; the number of neighbours must be at least 0"),
        ("search bridge --index {index} --rerank ./nowhere", "model directory './nowhere' does not exist"),
        ("explain bridge --index {index} -k 0", "k is 0; it must be at least 1"),
        ("explain bridge --index {index} --near -1", "near is -1; the number of near misses must be at least 0"),
        ("explain --index {index}", "Missing argument 'QUERY...'"),
        ("info --index {new}", "there is no index in"),
        ("info", "Missing option '--index'"),
        ("evaluate {tmp}/none", "is no BEIR collection"),
        ("evaluate {docs}", "is no BEIR collection: it has no corpus.jsonl"),
        ("tune", "Missing option '--index'"),
        ("tune --index {index} --windows x", "--windows x: write whole numbers with commas, as in 2,3,5"),
        ("tune --index {index} --windows 0", "window is 0; it must be at least 1"),
        ("tune --index {new}", "there is no index in"),
        ("tune --index {index} --false-refusals 0.6", "0.6 is not in the range 0<=x<=0.5"),
        ("tune {docs} --index {new} --windows 2, --encoder hash", "--windows 2,: write whole numbers"),
        ("doctor --index {new}", "there is no index in"),
        ("nonsense", "No such command 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    corpus: Path, index: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.xyz").write_text("Text.")
    before = (index / "manifest.json").read_bytes()
    filled = [part.format(docs=corpus, index=index, tmp=tmp_path, new=tmp_path / "new") for part in arguments.split()]
    result = run(*filled)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (tmp_path / "new").exists()
    assert (index / "manifest.json").read_bytes() == before


def test_an_unknown_factory_is_one_line(corpus: Path, tmp_path: Path) -> None:
    result = run("build", corpus, "--index", tmp_path / "new", "--encoder", "hash", "--factory", "nonsense")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Faiss cannot build an index 'nonsense' of 256 dimensions (")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_ray_must_be_installed(corpus: Path, tmp_path: Path) -> None:
    result = run("build", corpus, "--index", tmp_path / "new", "--encoder", "hash", "--ray", "local")
    assert result.exit_code == 2
    assert 'Ray is not installed; get it with: pip install "parley[ray]"' in result.stderr


@pytest.mark.parametrize("command", ["search", "explain"])
def test_an_empty_query_is_an_error(index: Path, command: str) -> None:
    result = run(command, " ", "--index", index)
    assert (result.exit_code, result.stderr) == (2, "error: the query is empty; say what to search for\n")


# On a terminal ------------------------------------------------------------------------------------------------------


def test_a_terminal_sees_progress(corpus: Path, tmp_path: Path) -> None:
    arguments = ["-m", "retrieval", "build", str(corpus), "--index", str(tmp_path / "index"), "--encoder", "hash"]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", dimensions=(40, 200), timeout=60)
    child.expect("20 passages, [0-9]+/s, [0-9]+ MB")
    child.expect("20 files read; 20 documents, 20 passages")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
