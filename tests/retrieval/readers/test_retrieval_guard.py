"""The guard: hostile documents, workers that misbehave, limits of time and memory."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from retrieval.documents import GuardedReader, Limits, find_files, read_files
from retrieval.readers.worker import restrict
from retrieval.types import Document, SourceFile
from tools.torture.hostile import SECRET, make_hostile, problems

ROOT = Path(__file__).resolve().parents[3]


def file_at(path: Path, size: int | None = None) -> SourceFile:
    return SourceFile(path, path.name, "", path.stat().st_size if size is None else size, 0)


def fake(code: str, limits: Limits | None = None) -> GuardedReader:
    """A reader whose worker runs `code` for each request, with `say(object)` and `say_raw(bytes)` to answer."""
    frame = (
        "import sys, json, time, os\n"
        "def say_raw(b): sys.stdout.buffer.write(b); sys.stdout.buffer.flush()\n"
        "def say(o): say_raw(json.dumps(o).encode() + b'\\n')\n"
        "num = 0\n"
        "for line in sys.stdin:\n"
        "    num += 1; request = json.loads(line)\n"
    )
    body = "".join(f"    {line}\n" for line in code.strip().split("\n"))
    return GuardedReader(limits or Limits(seconds=5), [sys.executable, "-c", frame + body])


GOOD = '["title", "line", "", {}, [""], [["text", 1, 1, 0]]]'


@pytest.fixture
def file(tmp_path: Path) -> SourceFile:
    (tmp_path / "a.txt").write_text("Some text.")
    return file_at(tmp_path / "a.txt")


# Hostile documents ---------------------------------------------------------------------------------------------------


def test_hostile_documents_are_read_or_reported_and_stop_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    cases = make_hostile(tmp_path, seed=5, count=54, megabytes=0.2)
    limits = Limits(seconds=2, memory_mb=400, max_line_chars=1_000_000)
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own, others = [resource.getrusage(who).ru_maxrss for who in whose]
    skipped: list[tuple[str, str]] = []
    documents: list[Document] = []
    started = time.monotonic()
    files = find_files([tmp_path / "documents"], lambda *skip: skipped.append(skip))
    for document in read_files(files, lambda *skip: skipped.append(skip), limits):
        documents.append(document)
    assert problems(cases, documents, skipped) == []
    assert time.monotonic() - started < 60
    assert len(documents) > 10
    if sys.platform == "linux":
        own_after, others_after = [resource.getrusage(who).ru_maxrss for who in whose]  # kB; the largest so far
        assert own_after - own < 200_000
        assert others_after <= 1.2 * max(others, 400_000)


def test_the_judge_of_hostile_documents_sees_what_went_wrong(tmp_path: Path) -> None:
    cases = make_hostile(tmp_path, seed=1, count=7, megabytes=0.01)
    assert len({case.kind for case in cases}) == 7
    assert [problem.split(": ")[1] for problem in problems(cases, [], [])].count("neither read nor reported") == 7
    leaked = Document("x", (), SECRET, "x")
    assert problems([], [leaked], [("y", ""), ("z", "two\nlines")]) == [
        "x: the secret escaped",
        "y: not a reason: ''",
        "z: not a reason: 'two\\nlines'",
    ]
    read = Document("0", (), "", str(cases[0].path))
    assert any(problem.endswith(": read") for problem in problems(cases[:1], [read], []))


def test_a_file_that_becomes_another_after_it_was_found_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    docs = tmp_path / "docs"
    for name in ("a", "b", "c", "d"):
        (docs / name).mkdir(parents=True)
        (docs / name / "x.txt").write_text("x")
    files = find_files([docs], lambda *_: None)
    (docs / "a" / "x.txt").unlink()
    (docs / "a" / "x.txt").symlink_to(secret)
    (docs / "b" / "x.txt").unlink()
    os.mkfifo(docs / "b" / "x.txt")
    (docs / "c" / "x.txt").unlink()
    (docs / "c").rmdir()
    (tmp_path / "x.txt").write_text(SECRET)
    (docs / "c").symlink_to(tmp_path)
    skipped: list[tuple[str, str]] = []
    documents = list(read_files(files, lambda *skip: skipped.append(skip)))
    assert [document.text for document in documents] == ["x"]
    leads_out = "it is a link that leads out of the folder"
    assert [reason for _, reason in skipped] == [leads_out, "it is not a regular file", leads_out]


# Limits --------------------------------------------------------------------------------------------------------------


def test_memory_is_limited_and_the_reader_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    if sys.platform == "darwin":
        pytest.skip("macOS knows no limit of the address space")
    (tmp_path / "big.txt").write_text("word " * 15_000_000)
    (tmp_path / "small.txt").write_text("Small.")
    with GuardedReader(Limits(memory_mb=250)) as reader:
        for _ in range(2):
            with pytest.raises(ValueError, match="it needs more than 250 MB of memory"):
                list(reader.read(file_at(tmp_path / "big.txt")))
            assert [d.text for d in reader.read(file_at(tmp_path / "small.txt"))] == ["Small."]


def test_a_worker_that_hangs_is_ended_in_time(file: SourceFile) -> None:
    with fake("time.sleep(60)", Limits(seconds=0.5)) as reader:
        started = time.monotonic()
        with pytest.raises(ValueError, match=r"^it took more than 0.5 s$"):
            list(reader.read(file))
        assert time.monotonic() - started < 3


def test_signs_of_life_prolong_the_time_but_only_as_the_size_allows(file: SourceFile) -> None:
    code = (
        f"for i in range(6): time.sleep(0.3); say({{'alive': True}})\nsay({{'document': {GOOD}}}); say({{'done': 1}})"
    )
    with fake(code, Limits(seconds=1, seconds_per_mb=1)) as reader:
        assert len(list(reader.read(file_at(file.path, 5_000_000)))) == 1
        with pytest.raises(ValueError, match=r"^it took more than 1 s$"):
            list(reader.read(file))


def test_an_answer_that_trickles_is_ended_in_time(file: SourceFile) -> None:
    with (
        fake("while True: say_raw(b'x'); time.sleep(0.05)", Limits(seconds=0.5)) as reader,
        pytest.raises(ValueError, match="took more than"),
    ):
        list(reader.read(file))


def test_the_time_of_the_consumer_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": "x" * 30_000}) + "\n" for i in range(20)))
    with GuardedReader(Limits(seconds=0.9, seconds_per_mb=0.001)) as reader:
        list(reader.read(file_at(path)))  # start the process
        started, sizes = time.monotonic(), []
        for document in reader.read(file_at(path)):
            sizes.append(len(document.text))
            time.sleep(0.1)
    assert sizes == [30_000] * 20
    assert time.monotonic() - started > 1.8


def test_what_is_read_ahead_of_the_consumer_is_bounded(file: SourceFile) -> None:
    code = f"""
document = json.loads('{GOOD}')
document[5][0][0] = 'x' * 100_000
for i in range(10_000): say({{'document': document}})
"""
    before = threading.active_count()
    with fake(code) as reader:
        next(iter(documents := reader.read(file)))
        time.sleep(0.5)
        process = reader._process
        assert process is not None
        assert process._pieces.qsize() <= 16
        assert threading.active_count() <= before + 5
        documents.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"seconds": 0}, "seconds is 0; it must be more than 0"), ({"memory_mb": 10}, "memory_mb is 10; a reader needs")],
)
def test_limits_that_make_no_sense(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**values)


# Workers that misbehave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit()", "its reader ended with code 0"),
        (
            "sys.stderr.write('x' * 10**6 + '\\nlast words\\n'); sys.exit(3)",
            "its reader ended with code 3 (last words)",
        ),
        ("sys.stderr.write('MemoryError\\n'); sys.exit(1)", "it needs more than 1024 MB of memory"),
        ("os.abort()", "its reader was ended by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "its reader was ended by SIGKILL, as happens when memory runs out"),
        ("os.kill(os.getpid(), 24)", "it took more than 5 s"),
        ("os.close(1); time.sleep(60)", "its reader stopped answering"),
        ("say_raw(b'junk\\n')", "its reader answered with something else than a document"),
        ("say([1])", "its reader answered with something else than a document"),
        ("say_raw(b'[' * 10**6 + b'\\n')", "its reader answered with something else than a document"),
        ("say({'document': 5})", "its reader answered with something else than a document"),
        ("say({'document': ['t', 'line', '', {}, [''], []]})", "something else"),
        ("say({'document': ['t', 'mile', '', {}, [''], [['x', 1, 1, 0]]]})", "something else"),
        ("say({'document': ['t', 'line', '', {}, [''], [['x', 0, 1, 0]]]})", "something else"),
        ("say({'document': ['t', 'line', '', {}, [''], [['x', 1, 1, 7]]]})", "something else"),
        ("say({'document': ['t', 'line', '', {}, [''], [[chr(0xd800), 1, 1, 0]]]})", "something else"),
        ("say({'document': [5, 'line', '', [], [''], [['x', 1, 1, 0]]]})", "something else"),
        ("say({'error': 'a\\nb\\x1b[2J' + 'c' * 9999, 'kind': 'refused'})", "a b[2Jccc"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="the codes are those of POSIX")
def test_a_worker_that_misbehaves_is_a_reason(file: SourceFile, code: str, message: str) -> None:
    with fake(code) as reader, pytest.raises(ValueError, match=r".") as error:
        list(reader.read(file))
    assert message in str(error.value)
    assert len(str(error.value)) < 600


def test_an_answer_without_end_is_cut(file: SourceFile) -> None:
    limits = Limits(seconds=20, max_text_chars=1000, max_blocks=10)
    with fake("while True: say_raw(b'x' * 10**6)", limits) as reader, pytest.raises(ValueError, match="too long"):
        list(reader.read(file))


def test_a_worker_that_other_files_wore_out_is_replaced(file: SourceFile) -> None:
    say_good = f"say({{'document': {GOOD}}}); say({{'done': True}})"
    worn_out = "say({'error': 'full', 'kind': 'memory'}); sys.exit()"
    for end in ("sys.exit(1)", worn_out):
        with fake(f"if num == 3: {end}\n{say_good}") as reader:
            assert [len(list(reader.read(file))) for _ in range(7)] == [1] * 7


def test_a_file_is_not_blamed_on_others_twice(file: SourceFile) -> None:
    with fake("say({'error': 'full', 'kind': 'memory'})") as reader:
        for _ in range(3):
            with pytest.raises(ValueError, match="full"):
                list(reader.read(file))


def test_a_consumer_may_leave_in_the_middle(tmp_path: Path, file: SourceFile) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": "x" * 1000}) + "\n" for i in range(2000)))
    with GuardedReader() as reader:
        for document in reader.read(file_at(path)):
            assert document.id == "a.jsonl#0"
            break
        gc.collect()
        assert [d.text for d in reader.read(file)] == ["Some text."]


def test_one_file_at_a_time(file: SourceFile) -> None:
    with fake(f"say({{'document': {GOOD}}}); say({{'document': {GOOD}}}); say({{'done': True}})") as reader:
        first = reader.read(file)
        next(first)
        with pytest.raises(RuntimeError, match="still reading"):
            next(reader.read(file))
        assert len(list(first)) == 1


def test_documents_before_an_error_are_kept_and_what_was_left_out_is_noted(tmp_path: Path) -> None:
    lines = [f'{{"text": "{hashlib.sha256(bytes([i % 256, i // 256])).hexdigest()}"}}' for i in range(1000)]
    lines[1] = lines[4] = "broken"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-2000])
    (tmp_path / "b.jsonl").write_text("\n".join(lines[:6]))
    with GuardedReader() as reader:
        assert len(list(reader.read(file_at(tmp_path / "b.jsonl")))) == 4
        documents = reader.read(file_at(tmp_path / "a.jsonl.gz"))
        for _ in range(900):
            next(documents)
        with pytest.raises(ValueError, match="it is cut off: the gzip file ends in the middle"):
            list(documents)
        notes = reader.take_notes()
        assert len(notes) == 2
        assert notes[0] == (
            "2 of 6 records left out (line 2: not JSON: Expecting value; line 5: not JSON: Expecting value)"
        )
        assert reader.take_notes() == []


# The process ---------------------------------------------------------------------------------------------------------


def test_one_process_serves_many_files_and_leaves_with_the_reader(file: SourceFile) -> None:
    code = "say({'document': [str(os.getpid()), 'line', '', {}, [''], [['x', 1, 1, 0]]]}); say({'done': True})"
    with fake(code) as reader:
        pids = {int(document.title) for _ in range(5) for document in reader.read(file)}
        (pid,) = pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_has_no_keys_and_imports_nothing_from_the_current_folder(
    file: SourceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code = "say({'document': [' '.join(os.environ), 'line', '', {}, [''], [['x', 1, 1, 0]]]}); say({'done': True})"
    with fake(code) as reader:
        (document,) = reader.read(file)
    assert "PATH" in document.title.split()
    assert "KEY" not in document.title
    for name in ("json.py", "numpy.py", "sitecustomize.py", "retrieval.py"):
        (file.path.parent / name).write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(file.path.parent)
    with GuardedReader() as reader:
        assert [d.text for d in reader.read(SourceFile(Path("a.txt"), "a.txt", "", 10, 0))] == ["Some text."]


def test_the_process_can_write_no_file_and_use_no_more_memory_than_allowed(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    assert restrict.__module__ == "retrieval.readers.worker"
    code = (
        "from retrieval.readers.worker import restrict, allow_cpu\nfrom retrieval.readers.limits import Limits\n"
        f"restrict(Limits(memory_mb=300))\nfile = open({str(tmp_path / 'x')!r}, 'w', buffering=1)\n"
        "try: file.write('x\\n')\nexcept OSError: print('no file')\n"
        "allow_cpu(0.5)\nwhile True: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0  # ended by the system
    assert (tmp_path / "x").read_text() == ""


def test_the_process_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 100_000)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom retrieval.documents import *\nreader = GuardedReader()\n"
        "documents = reader.read(SourceFile(Path(sys.argv[1]), 'a', '', 1, 0))\nnext(documents)\n"
        "print(reader._process._popen.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.jsonl"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    pid = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().split()[2] if Path("/proc").is_dir() else "R"
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the process is still there")
