"""What doctor finds: each thing once well and once amiss, and how the command ends."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from retrieval.build import cli
from retrieval.encoders import HashEncoder
from retrieval.index.manifest import IndexSettings
from retrieval.measuring.doctor import Finding, examine
from retrieval.passages import SplitSettings
from retrieval.writing.building import build_index
from retrieval.writing.removal import compact_index, delete_documents

NAMES = ["files", "encoder", "lengths", "sources", "duplicates", "room", "leftovers", "floor"]


@pytest.fixture
def docs(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the corpus that a test may change."""
    return Path(shutil.copytree(corpus, tmp_path / "docs"))


@pytest.fixture
def healthy(docs: Path, tmp_path: Path) -> Path:
    """An index of `docs` that has a floor."""
    build_index([docs], tmp_path / "index", "hash", floor=0.3)
    return tmp_path / "index"


def findings(index: Path, encoder: HashEncoder | None = None) -> dict[str, Finding]:
    found = list(examine(index, encoder))
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def amiss(index: Path, encoder: HashEncoder | None = None) -> Finding:
    """The one finding that is not well."""
    (problem,) = [finding for finding in findings(index, encoder).values() if finding.problem]
    return problem


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def test_a_healthy_index_is_well_all_over(healthy: Path) -> None:
    found = findings(healthy)
    assert list(found) == NAMES
    assert not any(finding.problem or finding.remedy for finding in found.values())
    assert found["files"].found.endswith("in 1 segments, all sums right")
    assert found["encoder"].found == "hash, same as at the build; stored vectors agree to 1.0000"
    assert found["sources"].found == "all 20 files are as they were indexed"
    assert found["floor"].found == "0.30, not fitted to these documents"


# Each thing amiss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["passages.jsonl", "vectors.f32", "lexical.bin"])
def test_damage_is_found_even_where_size_and_time_stayed(healthy: Path, name: str) -> None:
    (path,) = healthy.glob(f"*/{name}")
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (only,) = examine(healthy)
    assert only.name == "files"
    assert "is damaged" in only.problem
    assert name in only.problem
    assert only.remedy == f"python -m retrieval build DOCUMENTS --index {healthy}"


def test_another_encoder(healthy: Path) -> None:
    problem = amiss(healthy, HashEncoder(64))
    assert problem.name == "encoder"
    assert "which encoder 'hash' (hash-v1-64) is not" in problem.problem


def test_vectors_that_the_encoder_would_not_make_now(healthy: Path) -> None:
    class Drifted(HashEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.roll(super().encode(texts), 1, axis=1)

    problem = amiss(healthy, Drifted())
    assert problem.name == "encoder"
    assert "a stored vector has a cosine of 0." in problem.problem
    assert problem.remedy == "rebuild the index"


def test_passages_that_are_longer_than_the_encoder_reads(healthy: Path) -> None:
    class Short(HashEncoder):
        max_length = 5

    problem = amiss(healthy, Short())
    assert problem.name == "lengths"
    assert problem.problem == "20 of 20 passages are longer than the 5 tokens the encoder reads"


def test_files_that_changed_came_or_went(docs: Path, healthy: Path) -> None:
    (docs / "doc03.txt").write_text("Another text.")
    (docs / "new.txt").write_text("A new text.")
    (docs / "doc05.txt").unlink()
    problem = amiss(healthy)
    assert problem.name == "sources"
    assert problem.problem.startswith("1 files changed, 1 are new, 1 are gone: ")
    for name in ("doc03.txt", "new.txt", "doc05.txt"):
        assert f"{docs}/{name}" in problem.problem
    assert problem.remedy == f"python -m retrieval update --index {healthy}"
    CliRunner().invoke(cli, ["update", "--index", str(healthy)])
    assert findings(healthy)["sources"].found == "all 20 files are as they were indexed"


def test_relative_sources_seen_from_elsewhere_are_said_and_no_fault(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_index(["docs"], tmp_path / "index", "hash", floor=0.3)
    monkeypatch.chdir(docs)
    found = findings(tmp_path / "index")["sources"]
    assert not found.problem
    assert f"was built from docs in {tmp_path}" in found.found


def test_repeated_passages_are_said_and_no_fault(docs: Path, tmp_path: Path) -> None:
    for i in range(5):
        shutil.copy(docs / "doc00.txt", docs / f"copy{i}.txt")
    build_index([docs], tmp_path / "index", "hash", floor=0.3)
    found = findings(tmp_path / "index")["duplicates"]
    assert not found.problem
    assert found.found.startswith("5 passages repeat the text of another, such as ")
    hits = CliRunner().invoke(
        cli, ["search", "bridge number0", "-k", "20", "--json", "--index", str(tmp_path / "index")]
    )
    assert sum("number0 " in hit["text"] for hit in json.loads(hits.stdout)) == 1


@pytest.mark.parametrize(("num", "is_amiss"), [(5, False), (6, True)])
def test_room_that_deleted_passages_take(healthy: Path, num: int, is_amiss: bool) -> None:
    delete_documents(healthy, [f"*/doc0{i}.txt" for i in range(num)])
    found = findings(healthy)
    assert found["room"].found == f"{num} of 20 passages are deleted; 1 segments"
    assert bool(found["room"].problem) == is_amiss
    if is_amiss:
        assert found["room"].remedy == f"python -m retrieval compact --index {healthy}"
    assert not found["sources"].problem  # what was deleted by name is not new
    compact_index(healthy)
    assert findings(healthy)["room"].found == f"0 of {20 - num} passages are deleted; 1 segments"


def test_many_small_segments(docs: Path, healthy: Path) -> None:
    for i in range(16):
        (docs / f"new{i}.txt").write_text(f"A new text {i}.")
        CliRunner().invoke(cli, ["update", "--index", str(healthy)])
    assert amiss(healthy).problem == "0 of 36 passages are deleted; 17 segments"


def test_what_a_killed_writer_left(healthy: Path) -> None:
    left = healthy / "segment-0123456789ab"
    left.mkdir()
    (left / "passages.jsonl").write_bytes(b"x" * 3_000_000)
    problem = amiss(healthy)
    assert problem.name == "leftovers"
    assert problem.problem == "1 unfinished segments, 3.0 MB, of a command that was killed or still runs"
    compact_index(healthy)
    assert findings(healthy)["leftovers"].found == "none"


def test_an_index_without_a_floor(docs: Path, tmp_path: Path) -> None:
    build_index([docs], tmp_path / "index", "hash", calibrate=False)
    problem = amiss(tmp_path / "index")
    assert problem.name == "floor"
    assert f"tune --index {tmp_path / 'index'}" in problem.remedy


def test_a_floor_that_was_fitted_says_how(make_documents: object, docs: Path, tmp_path: Path) -> None:
    settings = IndexSettings(split=SplitSettings(window=1, stride=1, min_chars=0))
    build_index([docs], tmp_path / "index", "hash", settings)
    found = findings(tmp_path / "index")["floor"]
    assert not found.problem
    assert "questions with an answer, of which it refuses" in found.found


# The command --------------------------------------------------------------------------------------------------------


def test_well_exits_with_0_and_prints_a_line_each(healthy: Path) -> None:
    result = run("--index", healthy)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [["well", name] for name in NAMES]


def test_amiss_exits_with_1_and_prints_the_remedy(docs: Path, healthy: Path) -> None:
    (docs / "doc05.txt").unlink()
    result = run("--index", healthy)
    assert (result.exit_code, result.stderr) == (1, "")
    assert "AMISS  sources     0 files changed, 0 are new, 1 are gone: " in result.stdout
    assert f"remedy: python -m retrieval update --index {healthy}" in result.stdout


def test_json_has_every_finding(docs: Path, healthy: Path) -> None:
    (docs / "doc05.txt").unlink()
    result = run("--index", healthy, "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert [finding["name"] for finding in content] == NAMES
    assert [bool(finding["problem"]) for finding in content] == [name == "sources" for name in NAMES]
    assert set(content[0]) == {"name", "found", "problem", "remedy"}


def test_no_index_exits_with_2(tmp_path: Path) -> None:
    result = run("--index", tmp_path / "none")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no index in" in result.stderr


def test_an_encoder_that_is_gone_is_amiss(docs: Path, tmp_path: Path) -> None:
    class Gone(HashEncoder):
        name = "./gone"

    build_index([docs], tmp_path / "index", Gone(), floor=0.3)
    problem = amiss(tmp_path / "index")
    assert (problem.name, problem.found) == ("encoder", "./gone")
    assert "model directory './gone' does not exist" in problem.problem
