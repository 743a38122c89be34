"""Where data is -> files: folders, patterns, URLs, saved data sets, and their sums."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import fetching
from training.data.decoding import read_raw
from training.data.sources import find_files, fingerprint


def names(location: Path | str) -> list[str]:
    return [Path(file.name).name for file in find_files(str(location)).files]


def fill(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    return folder


def test_a_folder_is_its_data_files_in_order(tmp_path):
    folder = fill(tmp_path, "b.jsonl", "a.csv.gz", "sub/c.parquet", ".hidden/d.jsonl", ".e.jsonl", "README.md", "x.png")
    found = find_files(str(folder))
    assert [Path(file.name).relative_to(folder).as_posix() for file in found.files] == [
        "a.csv.gz",
        "b.jsonl",
        "sub/c.parquet",
    ]
    assert [Path(name).name for name in found.left_out] == ["README.md", "x.png"]


def test_a_folder_of_texts(tmp_path):
    assert names(fill(tmp_path, "two.md", "one.txt", "cover.png")) == ["one.txt", "two.md"]


def test_patterns_and_names_with_wildcards_in_them(tmp_path):
    fill(tmp_path, "a.jsonl", "sub/b.jsonl", "sub/c.csv", "odd[1].jsonl", "sub.jsonl/d.csv")
    assert names(tmp_path / "*.jsonl") == ["a.jsonl", "odd[1].jsonl"]
    assert names(tmp_path / "**" / "[bc].*") == ["b.jsonl", "c.csv"]
    assert names(tmp_path / "odd[1].jsonl") == ["odd[1].jsonl"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file or folder"),
        ("*.jsonl", "no such file or folder"),
        ("owner/name", "a data set of the Hugging Face hub is hf://owner/name"),
        ("empty", "folder 'empty' holds no data; known: .jsonl"),
        ("a.png", "a.png: its name does not say what it holds; known: .jsonl"),
        ("hf://name", "'hf://name' is no data set; write hf://owner/name"),
        ("hf://owner/name@train[:10%]", "is no data set"),
        ("https://host/data?format=jsonl", "the name of 'data' does not say what it holds"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, monkeypatch, location, message):
    monkeypatch.chdir(fill(tmp_path, "a.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        find_files(location)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_the_sum_is_that_of_sha256sum(tmp_path):
    fill(tmp_path, "a.jsonl", "b.jsonl")

    def printed(*files: Path, given: bytes | None = None) -> bytes:
        return subprocess.run(["sha256sum", *files], input=given, capture_output=True, check=True).stdout

    files = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    one, both = fingerprint(find_files(str(files[0]))), fingerprint(find_files(str(tmp_path)))
    assert one == (printed(files[0])[:64].decode(), 1, len("a.jsonl"))
    assert both == (printed(given=printed(*files))[:64].decode(), 2, 2 * len("a.jsonl"))


class Site(http.server.BaseHTTPRequestHandler):
    """Serves `answers`: path -> (status, body, bytes that are sent of it), and counts requests."""

    answers: dict[str, tuple[int, bytes, int]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status, body, num_sent = self.answers.get(self.path.partition("?")[0], (404, b"", 0))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", body.decode())
            body = b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:num_sent])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[tuple[str, type[Site]]]:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path / "home"))
    serve = type("Serve", (Site,), {"answers": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", serve
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_once_and_checked(site, tmp_path):
    url, serve = site
    body = b'{"text": "a"}\n' * 100_000
    serve.answers = {"/a.jsonl": (200, body, len(body)), "/moved": (302, b"/a.jsonl", 0)}
    (file,) = find_files(f"{url}/a.jsonl?token=secret").files
    assert (file.path.read_bytes(), file.name) == (body, "a.jsonl")
    find_files(f"{url}/a.jsonl?token=secret")
    assert len(serve.asked) == 1
    file.path.write_bytes(body[:-1])  # damaged on disk: fetched anew
    assert find_files(f"{url}/a.jsonl?token=secret").files[0].path.read_bytes() == body
    assert len(serve.asked) == 2
    records = [path.read_text() for path in tmp_path.rglob("download.json")]
    assert [json.loads(record)["num_bytes"] for record in records] == [len(body)]
    assert "secret" not in "".join(records)


def test_a_redirect_and_a_compressed_file(site):
    url, serve = site
    body = gzip.compress(b'{"text": "a"}\n')
    serve.answers = {"/x/a.jsonl.gz": (302, b"/y", 0), "/y": (200, body, len(body))}
    (file,) = find_files(f"{url}/x/a.jsonl.gz").files
    assert [raw.value for raw in read_raw(*file)] == [{"text": "a"}]


def test_a_failed_download_leaves_nothing_that_is_read(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_WAITS", (0.0,))
    url, serve = site
    serve.answers = {"/cut.jsonl": (200, b"x" * 1000, 10), "/err.jsonl": (500, b"", 0)}
    host = url.removeprefix("http://")
    for name, reason in (("cut", "cannot be fetched"), ("err", "the server answered 500"), ("no", "answered 404")):
        with pytest.raises(ValueError, match=f"^http://{host}/{name}.jsonl: .*{reason}"):
            find_files(f"http://user:secret@{host}/{name}.jsonl?key=secret")
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path for path in files if not path.name.startswith(".")] == []
    assert "secret" not in "".join(path.read_text() for path in files)
    serve.answers["/cut.jsonl"] = (200, b"y" * 10, 10)
    assert find_files(f"{url}/cut.jsonl").files[0].path.read_bytes() == b"y" * 10


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/a.jsonl: cannot be fetched"):
        find_files("http://127.0.0.1:9/a.jsonl")


# In processes of their own: importing `datasets` sets up a great deal.
SAVE = """
import sys, datasets
rows = datasets.Dataset.from_list([{"prompt": f"q{i}", "completion": f"r{i}"} for i in range(25)])
rows.save_to_disk(sys.argv[1] + "/one", num_shards=2)
datasets.DatasetDict({"train": rows, "test": rows.select([3, 1])}).save_to_disk(sys.argv[1] + "/two")
"""
READ = """
import sys
from common import fetching
from training.data.decoding import read_raw
from training.data.sources import find_files
for file in find_files(sys.argv[1]).files:
    for raw in read_raw(*file):
        print(raw.place, raw.value["completion"])
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    done = run(SAVE, str(folder), HF_HOME=str(folder / "hf"))
    assert done.returncode == 0, done.stderr
    return folder


def completions(location: Path) -> list[str]:
    return [raw.value["completion"] for file in find_files(str(location)).files for raw in read_raw(*file)]


def test_saved_data_sets(saved):
    assert completions(saved / "one") == [f"r{i}" for i in range(25)]
    assert len(find_files(str(saved / "one")).files) == 2
    assert completions(saved / "two" / "test") == ["r3", "r1"]
    with pytest.raises(ValueError, match=r"holds several splits; name one: \S+two/test, \S+two/train"):
        find_files(str(saved / "two"))


def test_a_data_set_in_the_hub_s_cache(saved, tmp_path):
    """The hub's cache as the `datasets` library lays it out, without network."""
    folder = tmp_path / "hf" / "datasets" / "owner___some_set" / "default" / "0.0.0" / "0123456789abcdef"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(next((saved / "two" / split).glob("*.arrow")), folder / f"some_set-{split}.arrow")
    sizes = {split: {"name": split, "num_examples": num} for split, num in (("train", 25), ("test", 2))}
    about = json.loads((saved / "one" / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(
        json.dumps(about | {"builder_name": "some_set", "dataset_name": "some_set", "config_name": "default"}
                   | {"version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}, "splits": sizes})
    )  # fmt: skip
    here = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = run(READ, "hf://owner/some_set@test", **here)
    assert done.stdout.splitlines() == ["owner/some_set@test row 1 r3", "owner/some_set@test row 2 r1"], done.stderr
    assert len(run(READ, "hf://owner/some_set", **here).stdout.splitlines()) == 25
    for location, reason in (("hf://owner/other", "other"), ("hf://owner/some_set@dev", "dev")):
        failed = run(READ, location, **here)
        assert failed.stderr.splitlines()[-1].startswith(f"ValueError: cannot get '{location}': ")
        assert reason in failed.stderr.splitlines()[-1]
