"""Files: whole or as they were, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.files import append_json_line, atomic_write, check_can_write, home, read_json, sha256_of, write_json

ROOT = Path(__file__).resolve().parents[2]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    value = {"text": "Zürich 😀\u2028", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "folder" / "a.json", 1)
    append_json_line(tmp_path / "other" / "a.jsonl", 1)
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.json*")) == [
        "new/folder/a.json",
        "other/a.jsonl",
    ]


@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    old: str | None, error: type[BaseException], tmp_path: Path
) -> None:
    file = tmp_path / "a.txt"
    if old:
        file.write_text(old)

    def write() -> None:
        with atomic_write(file) as new:
            new.write("new")
            new.flush()
            raise error

    with pytest.raises(error):
        write()
    assert (file.read_text() if file.exists() else None) == old
    assert [each.name for each in tmp_path.iterdir()] == (["a.txt"] if old else [])


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", "old")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", ["new", object()])
    assert read_json(tmp_path / "a.json") == "old"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with atomic_write(file) as new:
        new.write("new")
        new.flush()
        assert file.read_text() == "old"
    assert file.read_text() == "new"


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    program = (
        "import itertools, sys\nfrom pathlib import Path\nfrom common.files import write_json\n"
        "for n in itertools.count(): write_json(Path(sys.argv[1]), [n] * 20_000)"
    )
    write_json(file, [-1] * 20_000)
    written = set()
    for delay in (0.0, 0.01, 0.03, 0.05, 0.08, 0.13):
        writer = subprocess.Popen([sys.executable, "-c", program, str(file)], cwd=ROOT)
        before = file.stat().st_ino
        while file.stat().st_ino == before:  # it has begun
            time.sleep(0.005)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        numbers = read_json(file)
        assert len(numbers) == 20_000
        assert len(set(numbers)) == 1
        written.add(numbers[0])
    assert len(written) > 1, "the kills came at different moments"


def test_a_new_file_has_the_usual_permissions_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_json(tmp_path / "new.json", 1)
    assert (tmp_path / "new.json").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "new.json").chmod(0o600)
    write_json(tmp_path / "new.json", 2)
    assert (tmp_path / "new.json").stat().st_mode & 0o777 == 0o600


def test_where_nothing_can_be_written_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write .*/file/a.json: .*; name another file"):
        check_can_write(tmp_path / "file" / "a.json")
    check_can_write(tmp_path / "new" / "a.json")
    assert list((tmp_path / "new").iterdir()) == []


def test_bytes_are_written_too(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.bin", "wb") as file:
        file.write(b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"a\.json: no such file"),
        (b'{\n"a": 1,\n]', r"a\.json:3: not JSON"),
        (b"", r"a\.json:1: not JSON"),
        (b'"\xff"', r"a\.json: not UTF-8 text \(byte 1\)"),
        (b"[" * 100_000, r"a\.json: JSON nested too deeply"),
    ],
    ids=["missing", "line-3", "empty", "not-utf8", "bottomless"],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    content: bytes | None, complaint: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read_json(tmp_path / "a.json")


def test_a_folder_is_no_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Is a directory"):
        read_json(tmp_path)


def lines(file: Path) -> list[object]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]


def test_appended_lines_are_one_object_each(tmp_path: Path) -> None:
    values = [{"text": "two\nlines\u2028 and 😀"}, {}, {"n": 1}]
    for value in values:
        append_json_line(tmp_path / "a.jsonl", value)
    assert lines(tmp_path / "a.jsonl") == values


def test_half_a_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n{"n": ')
    append_json_line(tmp_path / "a.jsonl", {"n": 3})
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"n": 1}\n{"n": \n{"n": 3}\n'


def test_several_may_append_at_once(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom common.files import append_json_line\n"
        "for n in range(30): append_json_line(Path(sys.argv[1]), {'who': sys.argv[2], 'text': 'x' * 20_000})"
    )
    file = tmp_path / "a.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(file), who], cwd=ROOT) for who in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(lines(file)) == 60


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "zeros").write_bytes(bytes(3 << 20))  # more than is read at once
    assert sha256_of(tmp_path / "zeros") == hashlib.sha256(bytes(3 << 20)).hexdigest()


def test_home_is_the_folder_of_the_environment_or_else_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_HOME", "/somewhere")
    assert home() == Path("/somewhere")
    monkeypatch.delenv("PARLEY_HOME")
    assert home() == ROOT
