"""Torture in a small form, and that its judges see what they are there for. `make torture` runs all of it."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.index.segment import PASSAGES
from retrieval.index.store import Store

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and sends signals")


def run(tool: str, *arguments: str) -> str:
    """What a tool printed; it must have found no problem."""
    command = [sys.executable, "-m", f"tools.torture.{tool}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kills_at_random_moments_lose_nothing() -> None:
    kinds = ("first build", "build", "update", "delete", "compact")
    said = run("kills", "--kills", "16", "--records", "300", *(part for kind in kinds for part in ("--only", kind)))
    assert re.search(r"^(1[6-9]|2\d) kills in \d+ s, 0 problems$", said, re.MULTILINE)
    assert re.findall(r"^([a-z ]+): [1-9]\d* kills within", said, re.MULTILINE) == list(kinds)


def test_damaged_files_are_refused_and_damaged_leftovers_mended() -> None:
    said = run("mutations", "--files", "80")
    assert "80 damaged indexes, refused: 0 problems" in said
    assert "4 damaged memories of what is sound, ignored: 0 problems" in said
    assert "4 damaged leftovers of killed builds, mended: 0 problems" in said


def test_hostile_documents_do_not_get_into_an_index(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    from tools.torture.documents import build_hostile

    outcome = build_hostile(tmp_path, num=10, seed=3, megabytes=0.1)
    assert outcome.problems == []
    assert outcome.report.num_read >= 3
    assert len(outcome.report.skipped) >= 3


def test_the_judge_of_contents_sees_what_is_lost_doubled_or_left(index: Path) -> None:
    from tools.torture.changes import content, left_over

    before = content(index)
    assert before is not None
    assert len(before["passages"]) == 20
    assert content(index) == before
    assert left_over(index) == []
    (segment,) = index.glob("segment-*")
    (segment / "journal.jsonl").write_text("{}\n")
    (index / ".manifest.json.x.tmp").write_text("")
    (index / "segment-000000000000").mkdir()
    assert left_over(index) == [".manifest.json.x.tmp", f"{segment.name}/journal.jsonl", "segment-000000000000"]
    shutil.rmtree(index)
    assert content(index) is None


def test_the_judge_of_damage_sees_what_is_accepted_crashes_or_hangs(index: Path) -> None:
    from tools.torture.mutations import Opener, judge

    opener = Opener(seconds=20)
    assert judge(opener.open(index)) == "opened"
    (path,) = index.glob(f"segment-*/{PASSAGES}")
    path.write_bytes(path.read_bytes()[:-1])
    assert judge(opener.open(index)) == ""
    assert opener.open(index.with_name("nowhere")).startswith("ValueError: there is no index in")
    opener.close()
    for code, said in (
        ("import os; input(); os.abort()", "crashed (SIGABRT)"),
        ("import time; time.sleep(99)", "hung"),
    ):
        opener = Opener(seconds=1 if said == "hung" else 20, command=[sys.executable, "-c", code])
        assert opener.open(index) == said
        opener.close()
    for said in ("TypeError: x", "ValueError: index 'x' is damaged (y: z)", "ValueError: two\nlines"):
        assert judge(said) == said


def test_every_way_of_damage_changes_a_file(index: Path) -> None:
    from tools.torture.damage import MUTATORS

    names = [path.relative_to(index) for path in index.glob("segment-*/*") if path.stat().st_size]
    assert len(Store(index)) == 20
    for way, mutate in MUTATORS.items():
        for name in names:
            copy = Path(shutil.copytree(index, index.with_name("copy")))
            before = (copy / name).read_bytes()
            mutate(copy / name, copy, random.Random(way))
            assert not (copy / name).is_file() or (copy / name).read_bytes() != before
            shutil.rmtree(copy)
