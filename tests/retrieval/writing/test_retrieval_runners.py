"""Several processes and Ray: the same content, errors in one line, and what an interrupt or a kill leaves."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from retrieval.build import cli
from retrieval.encoders import HashEncoder
from retrieval.index.store import Store
from retrieval.writing.building import build_index
from retrieval.writing.runners import RunInProcesses, RunOnRay, run_here

ROOT = Path(__file__).parents[3]
HAS_PROC = Path("/proc/self/task").is_dir()


def content(index: Path) -> dict[str, tuple[str, bytes]]:
    """By passage id its text and its vector."""
    store = Store(index)
    found = {p.id: (p.text, store.segments[n].vectors[i].tobytes()) for (n, i), p in store.live_passages()}
    assert len(found) == len(store)
    return found


def many_records(folder: Path, num: int) -> Path:
    """Two files of `num` records each."""
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        rows = ({"id": i, "title": f"T{i}", "text": f"The {name} tower number{i} was opened."} for i in range(num))
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


# Processes -----------------------------------------------------------------------------------------------------------


def test_progress_ends_with_all_bytes_and_all_passages(corpus: Path, tmp_path: Path) -> None:
    total = sum(path.stat().st_size for path in corpus.iterdir())
    calls: list[tuple[int, int, int]] = []
    for number, run in enumerate((run_here, RunInProcesses(2))):
        calls.clear()
        index = tmp_path / str(number)
        build_index([corpus], index, "hash", calibrate=False, run=run, on_progress=lambda *call: calls.append(call))
        assert {num_bytes for _, num_bytes, _ in calls} == {total}
        assert [call[0] for call in calls] == sorted(call[0] for call in calls)
        assert calls[-1][2] == 20
        if number:  # alone, the last batch is counted before its file is
            assert calls[-1][0] == total


def test_fewer_than_one_worker_are_refused() -> None:
    with pytest.raises(ValueError, match="--workers 0 must be at least 1"):
        RunInProcesses(0)


def test_workers_with_another_encoder_are_refused_in_one_line(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a worker's encoder 'hash' is not the one of this build.*same files$"):
        build_index([corpus], tmp_path / "index", HashEncoder(64), calibrate=False, run=RunInProcesses(2))
    assert not (tmp_path / "index").exists()


def test_an_error_in_a_worker_is_one_line_of_the_command(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    missing = tmp_path / "model"
    done = CliRunner().invoke(
        cli, ["build", str(corpus), "--index", str(tmp_path / "index"), "--encoder", str(missing), "--workers", "2"]
    )
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_worker_that_is_ended_from_outside_is_told_and_its_work_not_lost(tmp_path: Path) -> None:
    docs = many_records(tmp_path / "docs", 8000)
    index = tmp_path / "index"

    def kill_one() -> None:
        while not any(path.stat().st_size for path in index.glob("segment-*/journal.jsonl")):
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(ValueError, match=r"^one of 2 workers was ended from outside.*fewer --workers, and it goes on"):
        build_index([docs], index, "hash", calibrate=False, run=RunInProcesses(2))
    killer.join()
    at = time.monotonic()
    while multiprocessing.active_children():
        assert time.monotonic() - at < 10
        time.sleep(0.02)
    left = sum(path.stat().st_size for path in index.glob("segment-*/vectors.f32"))
    assert left >= 1024 * 1024  # a batch
    report = build_index([docs], index, "hash", calibrate=False, run=RunInProcesses(2))
    assert report.num_passages == 16000 == len(content(index))
    assert len(list(index.glob("segment-*"))) == 2


def _children(pid: int) -> list[int]:
    """Processes that a process has started, and that they have."""
    try:
        own = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*own, *(below for each in own for below in _children(each))]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not HAS_PROC, reason="looks into /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_command(tmp_path: Path, sent: signal.Signals) -> None:
    docs, index = many_records(tmp_path / "docs", 60_000), tmp_path / "index"
    arguments = ["build", docs, "--index", index, "--encoder", "hash", "--workers", "2", "--no-calibrate"]
    with subprocess.Popen(
        [sys.executable, "-m", "retrieval", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while len([path for path in index.glob("segment-*/vectors.f32") if path.stat().st_size]) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        started = _children(process.pid)
        assert len(started) >= 4  # two workers and their readers
        at = time.monotonic()
        process.send_signal(sent)
        code = process.wait(20)
        while any(map(_is_running, started)):
            assert time.monotonic() - at < 20
            time.sleep(0.02)
        said = process.stderr.read()
    assert time.monotonic() - at < 10
    if sent == signal.SIGINT:
        assert (code, said.split()) == (130, ["interrupted"])


# Ray -----------------------------------------------------------------------------------------------------------------


class FakeRay(ModuleType):
    """As much of Ray as a runner uses, in this process."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.log: list[str] = []
        self.exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=OverflowError)
        self.lost = False

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.log.append(f"init {options['address']}")

    def shutdown(self) -> None:
        self.log.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **_: Any) -> Callable[[Callable[..., Any]], Any]:
        def run(function: Callable[..., Any], *arguments: Any) -> Any:
            if self.lost:
                return OverflowError("the node\nis gone")
            return function(*arguments)

        return lambda function: SimpleNamespace(remote=lambda *arguments: _Once(run(function, *arguments)))

    def put(self, value: Any) -> Any:
        return value

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, references: list[Any]) -> list[Any]:
        for each in references:
            if isinstance(each.value, Exception):
                raise each.value
        return [each.value for each in references]

    def cancel(self, reference: Any, force: bool) -> None:
        self.log.append("cancel")


class _Once:
    """A reference: equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_the_command_starts_and_stops_ray(fake_ray: FakeRay, corpus: Path, tmp_path: Path) -> None:
    arguments = ["build", str(corpus), "--index", str(tmp_path / "index"), "--encoder", "hash", "--no-calibrate"]
    assert CliRunner().invoke(cli, [*arguments, "--ray", "ray://there:10001"]).exit_code == 0
    assert fake_ray.log == ["init ray://there:10001", "shutdown"]
    assert len(content(tmp_path / "index")) == 20
    fake_ray.lost = True
    arguments[3] = str(tmp_path / "other")
    done = CliRunner().invoke(cli, [*arguments, "--ray", "local"])
    assert (done.exit_code, done.stderr) == (
        2,
        "error: a Ray worker was lost (the node is gone); start this again, and it goes on where it was\n",
    )
    assert fake_ray.log[2:] == ["init local", "cancel", "cancel", "shutdown"]
    done = CliRunner().invoke(cli, [*arguments, "--ray", "local", "--workers", "3"])
    assert "--workers 3 and --ray contradict" in done.stderr


def test_without_ray_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'Ray is not installed; get it with: pip install "parley\[ray\]"'):
        RunOnRay()


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def on_ray() -> Iterator[RunOnRay]:
    """Ray on this machine; starting it takes some seconds."""
    with RunOnRay("local") as run:
        yield run


DRIVER = """
import os, sys
from pathlib import Path
from retrieval.writing.building import build_index
from retrieval.writing.runners import RunOnRay
def kill(done, total, num):
    if any(Path(sys.argv[2]).glob("segment-*/segment.json")): os.kill(os.getpid(), 9)
build_index([sys.argv[1]], sys.argv[2], "hash", calibrate=False, run=RunOnRay("local"), on_progress=kill)
"""


@needs_ray
@pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_ray_builds_what_is_built_alone_also_after_a_kill(on_ray: RunOnRay, tmp_path: Path) -> None:
    docs = many_records(tmp_path / "docs", 3000)
    alone, together, killed = (tmp_path / name for name in ("alone", "together", "killed"))
    build_index([docs], alone, "hash", calibrate=False)
    calls: list[tuple[int, int, int]] = []
    build_index([docs], together, "hash", calibrate=False, run=on_ray, on_progress=lambda *call: calls.append(call))
    assert content(together) == content(alone)
    total = sum(path.stat().st_size for path in docs.iterdir())
    assert calls[-1] == (total, total, 6000)

    done = subprocess.run([sys.executable, "-c", DRIVER, docs, killed], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = [path.parent for path in killed.glob("segment-*/segment.json")]
    stamps = {folder.name: (folder / "vectors.f32").stat().st_mtime_ns for folder in whole}
    assert stamps
    build_index([docs], killed, "hash", calibrate=False, run=on_ray)
    assert content(killed) == content(alone)
    now = {path.parent.name: path.stat().st_mtime_ns for path in killed.glob("segment-*/vectors.f32")}
    assert stamps.items() <= now.items()  # not made again


@needs_ray
@pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_an_error_on_ray_is_one_line(
    on_ray: RunOnRay, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus.parent)  # its workers are in another folder
    with pytest.raises(ValueError, match=r"^a worker's encoder 'hash' is not the one of this build.*same files$"):
        build_index([corpus.name], os.path.relpath(tmp_path / "index"), HashEncoder(64), calibrate=False, run=on_ray)
    build_index([corpus.name], os.path.relpath(tmp_path / "index"), "hash", calibrate=False, run=on_ray)
    assert len(content(tmp_path / "index")) == 20
