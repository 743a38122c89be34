"""Uploads: whole or not to be taken for whole, whatever the target and the moment."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

from training.upload import UPLOADED, Uploader, cli, open_url

ROOT = Path(__file__).resolve().parents[2]
NOW = (0.0, 0.0, 0.0)  # three more tries, at once


class Flaky(MemoryFileSystem):
    """A file system in memory that fails, loses the end of files, or waits, as a test asks."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False
    failures: ClassVar[dict[str, int]] = {}  # end of a path -> how many times writing it fails
    truncations: ClassVar[dict[str, int]] = {}
    gate: ClassVar[threading.Event] = threading.Event()  # writing waits for it
    arrived: ClassVar[threading.Event] = threading.Event()  # something waits to be written
    seen: ClassVar[list[bool]] = []  # after each change: whether what a reader takes for whole is whole
    message = "connection reset"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _due(self, counts: dict[str, int], path: str) -> bool:
        for end in counts:
            if path.endswith(end) and counts[end] > 0:
                counts[end] -= 1
                return True
        return False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.arrived.set()
        self.gate.wait()
        if self._due(self.failures, path):
            raise ConnectionError(self.message)
        super().pipe_file(path, value[: len(value) // 2] if self._due(self.truncations, path) else value)
        self._look()

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def rm_file(self, path: str) -> None:
        super().rm_file(path)
        self._look()

    def _look(self) -> None:
        for path in [path for path in self.store if path.endswith(f"/{UPLOADED}")]:
            self.seen.append(is_whole(self, path.removesuffix(f"/{UPLOADED}")))


def is_whole(fs: Any, target: str) -> bool:
    """What a careful reader does."""
    files = json.loads(fs.cat_file(f"{target}/{UPLOADED}"))["files"]
    return all(
        fs.exists(f"{target}/{name}") and hashlib.sha256(fs.cat_file(f"{target}/{name}")).hexdigest() == each["sha256"]
        for name, each in files.items()
    )


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    for each in (Flaky.store, Flaky.failures, Flaky.truncations, Flaky.seen):
        each.clear()
    Flaky.gate.set()
    Flaky.arrived.clear()
    yield Flaky
    Flaky.gate.set()


def checkpoint(folder: Path, seed: int = 0, sizes: tuple[int, ...] = (5000, 10, 0)) -> Path:
    content = random.Random(seed)
    for number, size in enumerate(sizes):
        path = folder / ("training" if number % 2 else ".") / f"file-{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.randbytes(size))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def upload(url: str, *folders: Path, **settings: Any) -> tuple[list[Any], list[str]]:
    told: list[str] = []
    uploader = Uploader(url, delays=settings.pop("delays", NOW), tell=told.append, **settings)
    for folder in folders:
        uploader.enqueue(folder)
    return uploader.close(), told


def test_a_folder_gets_every_file_and_the_list_of_them(tmp_path):
    source = checkpoint(tmp_path / "run" / "step-1")
    assert upload(str(tmp_path / "target"), source) == ([], [])
    there = contents(tmp_path / "target" / "step-1")
    listed = json.loads(there.pop(UPLOADED))
    assert there == contents(source)
    assert {name: each["bytes"] for name, each in listed["files"].items()} == {n: len(c) for n, c in there.items()}
    assert is_whole(fsspec.filesystem("file"), str(tmp_path / "target" / "step-1"))


@pytest.mark.parametrize("url", ["memory://bucket/run", "file://{tmp}/target", "{tmp}/a b/ü/"])
def test_urls(url, tmp_path):
    url = url.format(tmp=tmp_path)
    assert upload(url, checkpoint(tmp_path / "step-2"))[0] == []
    fs, root = fsspec.url_to_fs(url)
    assert is_whole(fs, f"{root.rstrip('/')}/step-2")


def test_enqueue_returns_at_once_and_close_waits(flaky, tmp_path):
    source = checkpoint(tmp_path / "step-1")
    flaky.gate.clear()
    uploader = Uploader("flaky://bucket")
    uploader.enqueue(source)
    assert uploader.busy(source)
    assert not uploader.busy(tmp_path / "step-2")
    threading.Timer(0.2, flaky.gate.set).start()
    assert uploader.close() == []
    assert not uploader.busy(source)
    assert is_whole(flaky(), "/bucket/step-1")
    with pytest.raises(ValueError, match="closed"):
        uploader.enqueue(source)


@pytest.mark.parametrize("where", ["file-0.bin", "file-1.bin", UPLOADED])
def test_failures_and_lost_ends_are_tried_again(flaky, where, tmp_path):
    source = checkpoint(tmp_path / "step-1")
    flaky.failures[where] = 2
    flaky.truncations[where] = 1 if where != UPLOADED else 0
    assert upload("flaky://bucket", source) == ([], [])
    assert is_whole(flaky(), "/bucket/step-1")
    assert all(flaky.seen)


def test_tries_come_later_and_later(flaky, tmp_path):
    flaky.failures["file-0.bin"] = 2
    started = time.monotonic()
    assert upload("flaky://bucket", checkpoint(tmp_path / "step-1"), delays=(0.1, 0.3))[0] == []
    assert 0.4 <= time.monotonic() - started < 30


def test_what_fails_for_good_is_told_and_the_next_goes_on(flaky, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    monkeypatch.setattr(Flaky, "message", "denied for very-secret-key")
    bad, good = checkpoint(tmp_path / "step-1"), checkpoint(tmp_path / "step-2")
    flaky.failures["step-1/file-0.bin"] = 99
    failures, told = upload("flaky://bucket", bad, good)
    assert [failure.folder for failure in failures] == [bad]
    assert "denied" in failures[0].reason
    assert len(told) == 1
    assert "very-secret-key" not in failures[0].reason + told[0]
    assert not flaky().exists(f"/bucket/step-1/{UPLOADED}")
    assert is_whole(flaky(), "/bucket/step-2")


def test_leaving_the_block_says_what_failed_and_raises_nothing(flaky, tmp_path):
    told: list[str] = []
    flaky.failures["file-0.bin"] = 99
    with Uploader("flaky://bucket", delays=(), tell=told.append) as uploader:
        uploader.enqueue(checkpoint(tmp_path / "step-1"))
    assert len(told) == 2
    assert told[-1].startswith("not uploaded to flaky://bucket: ")


def test_a_second_upload_of_other_content_is_never_half_there(flaky, tmp_path):
    source = checkpoint(tmp_path / "step-1", seed=1)
    assert upload("flaky://bucket", source)[0] == []
    checkpoint(source, seed=2, sizes=(6000, 20))
    (source / "file-2.bin").unlink()
    flaky.failures["file-1.bin"] = 1
    assert upload("flaky://bucket", source)[0] == []
    assert flaky.seen
    assert all(flaky.seen)
    there = {path.removeprefix("/bucket/step-1/"): file.getvalue() for path, file in flaky.store.items()}
    assert there.pop(UPLOADED)
    assert there == contents(source)


def test_what_is_there_already_is_not_sent_again(flaky, tmp_path):
    source = checkpoint(tmp_path / "step-1")
    assert upload("flaky://bucket", source)[0] == []
    flaky.seen.clear()
    assert upload("flaky://bucket", source)[0] == []
    assert flaky.seen == []


def test_a_directory_that_went_away_or_changed_is_a_failure(flaky, tmp_path):
    failures, _ = upload("flaky://bucket", tmp_path / "gone")
    assert "no longer there" in failures[0].reason
    source = checkpoint(tmp_path / "step-1")
    flaky.gate.clear()
    uploader = Uploader("flaky://bucket", delays=NOW, tell=lambda _: None)
    uploader.enqueue(source)
    assert flaky.arrived.wait(60)  # it has read the sums
    (source / "file-0.bin").write_bytes(b"other")
    flaky.gate.set()
    (failure,) = uploader.close()
    assert "changed" in failure.reason
    assert not flaky().exists(f"/bucket/step-1/{UPLOADED}")


def test_only_the_newest_are_kept_there(flaky, tmp_path):
    folders = [checkpoint(tmp_path / f"step-{number}", seed=number) for number in range(5)]
    assert upload("flaky://bucket", *folders, keep=2)[0] == []
    assert {path.split("/")[2] for path in flaky.store} == {"step-3", "step-4"}
    assert all(flaky.seen)


def test_close_gives_up_in_time(flaky, tmp_path):
    flaky.gate.clear()
    uploader = Uploader("flaky://bucket")
    uploader.enqueue(checkpoint(tmp_path / "step-1"))
    started = time.monotonic()
    (failure,) = uploader.close(timeout=0.2)
    assert time.monotonic() - started < 30
    assert "not finished" in failure.reason


def test_an_upload_onto_itself_is_refused(tmp_path):
    source = checkpoint(tmp_path / "step-1")
    failures, _ = upload(str(tmp_path), source)
    assert "itself" in failures[0].reason
    assert UPLOADED not in contents(source)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://key:secret@bucket/x", "password"),
        ("nowhere://bucket", "nowhere"),
        ("", "must be a folder"),
        ("simplecache::s3://x", "must be a folder"),
    ],
)
def test_urls_that_cannot_be_used(url, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        open_url(url)
    assert "key:secret" not in str(refused.value)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match="pip install s3fs"):
        Uploader("s3://bucket/x")


def test_command(tmp_path):
    source = checkpoint(tmp_path / "step-1")
    dry = CliRunner().invoke(cli, [str(source), str(tmp_path / "target"), "--dry-run"])
    assert dry.exit_code == 0
    assert "3 files" in dry.output
    assert not (tmp_path / "target").exists()
    done = CliRunner().invoke(cli, [str(source), str(tmp_path / "target")])
    assert done.exit_code == 0
    assert UPLOADED in contents(tmp_path / "target" / "step-1")
    failed = CliRunner().invoke(cli, [str(source), str(tmp_path)])
    assert failed.exit_code == 2
    assert "1 of 1 not uploaded" in failed.output


SLOW = """
import sys, time
from pathlib import Path
import fsspec
from fsspec.implementations.local import LocalFileSystem
class Slow(LocalFileSystem):
    def put_file(self, path1, path2, **kwargs):
        data = Path(path1).read_bytes()
        with open(path2, "wb") as file:
            for at in range(0, len(data), 1000):
                file.write(data[at : at + 1000]); file.flush(); time.sleep(0.004)
fsspec.register_implementation("file", Slow, clobber=True)
from training.upload import Uploader
print("begun", flush=True)
uploader = Uploader(sys.argv[2]); uploader.enqueue(Path(sys.argv[1])); print(uploader.close(), flush=True)
"""


def test_a_kill_in_the_middle_leaves_nothing_that_looks_whole(tmp_path):
    source, target = checkpoint(tmp_path / "step-1", sizes=(20_000, 9_000, 3_000)), tmp_path / "target"
    moments = random.Random(7)
    whole = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(source), str(target)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"
            time.sleep(moments.uniform(0, 0.25))
            os.kill(child.pid, signal.SIGKILL)
        if (target / "step-1" / UPLOADED).exists():
            whole += 1
            assert is_whole(fsspec.filesystem("file"), str(target / "step-1"))
            (target / "step-1" / UPLOADED).unlink()
    assert whole < 6
    assert upload(str(target), source)[0] == []
    assert is_whole(fsspec.filesystem("file"), str(target / "step-1"))
