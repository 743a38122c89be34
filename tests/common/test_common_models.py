"""Model names: to a local directory, or to one line that says what to do. The hub here is a fake one on 127.0.0.1."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.models import KNOWN_MODELS, loading_errors, resolve_model

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "c0ffee" + "0" * 34


@pytest.fixture
def parley_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    return tmp_path


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_model("~/model") == str(tmp_path / "model")


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_a_known_name_is_its_prepared_directory(name: str, parley_home: Path) -> None:
    folder = parley_home / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    assert resolve_model(name) == str(folder)


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_a_known_name_that_is_not_prepared_says_how_to(name: str, parley_home: Path) -> None:
    (parley_home / "models" / name).mkdir(parents=True)  # no config.json: not whole
    with pytest.raises(ValueError, match=f"not prepared yet; run: python tools/prepare_model.py {name}"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the model name is empty"):
        resolve_model(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match=r"model\.gguf' is a file; a model is a directory"):
        resolve_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    "name", ["/no/such/model", "./model", "../model", "~/no-model", "models/a/b", "two words", "a b/c"]
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match=r"model directory '.*' does not exist"):
        resolve_model(name)


def test_loading_errors_become_one_line_that_names_the_model() -> None:
    with pytest.raises(ValueError, match=r"^cannot load model 'm': first$"), loading_errors("m"):
        raise OSError("first\nsecond")


def test_a_process_that_is_gone_is_not_blamed_on_the_model() -> None:
    with pytest.raises(ConnectionError, match=r"^another process$"), loading_errors("m"):
        raise ConnectionError("another process")


# The hub ------------------------------------------------------------------------------------------------------------

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\x00" * 1000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"pickled",
    "evil.py": b"raise SystemExit",
    "onnx/model.safetensors": b"onnx",
}

# As the real hub says it: 401 for what is not there, too, since it tells nobody what is private.
ERROR_CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Serves FILES for every repository, but cut short for fake/cut; fake/status-N is answered with N."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The two questions that a download asks: which files, and then each of them."""
        path = self.path.partition("?")[0]
        if "status-" in path:
            self._send(int(path.split("status-")[1][:3]))
        elif path.startswith("/api/") and "/tree/" in path:
            entries = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": "0"} for name in FILES]
            self._send(200, json.dumps(entries).encode())
        elif path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(200, json.dumps({"id": "fake/whole", "sha": COMMIT, "siblings": siblings}).encode())
        elif "cut" in path and path.endswith(".safetensors") and self.command == "GET":
            self.close_connection = True
            self._send(200, FILES["model.safetensors"], sent=500)
        else:
            self._send(200, FILES[path.split(f"/resolve/{COMMIT}/")[1]])

    do_HEAD = do_GET  # noqa: N815  # http.server's name

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _send(self, status: int, body: bytes = b"{}", sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body, usedforsecurity=False).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status in ERROR_CODES:
            self.send_header("X-Error-Code", ERROR_CODES[status])
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """The address of a fake hub."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def resolve(names: list[str], hub: str, home: Path, **environment: str) -> dict[str, str]:
    """What becomes of each name in a process of its own: the path, or the error."""
    program = (
        "import json, sys\nfrom common.models import resolve_model\nfound = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = resolve_model(name)\n"
        "    except ValueError as error: found[name] = str(error)\n"
        "print(json.dumps(found))"
    )
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment}
    command = [sys.executable, "-c", program, *names]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, str] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def answers(hub: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    names = ["fake/status-401", "fake/status-403", "fake/status-404", "fake/status-503", "fake/status-500", "a--b/c"]
    return resolve(names, hub, tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fake/status-401", "the hub has no such model, or it is private; check the name and HF_TOKEN"),
        ("fake/status-403", "it asks for its terms to be accepted; accept them on its page and set HF_TOKEN"),
        ("fake/status-404", "the hub has no such model, or it is private; check the name and HF_TOKEN"),
        ("fake/status-500", "the hub answered 500"),
        ("fake/status-503", "the hub answered 503"),
        ("a--b/c", "the hub has no such model, or it is private; check the name and HF_TOKEN"),
    ],
)
def test_a_refusal_of_the_hub_is_explained(name: str, reason: str, answers: dict[str, str]) -> None:
    known = ", ".join(KNOWN_MODELS)
    expected = (
        f"cannot get model '{name}' from the Hugging Face hub: {reason}; or use a local path or a known name ({known})"
    )
    assert answers[name] == expected


def test_a_hub_out_of_reach_is_explained(tmp_path: Path) -> None:
    name = "fake/whole"
    assert "the hub cannot be reached" in resolve([name], "http://127.0.0.1:9", tmp_path)[name]


def test_a_download_fetches_weights_and_configuration_and_nothing_that_runs(hub: str, tmp_path: Path) -> None:
    folder = Path(resolve(["fake/whole"], hub, tmp_path)["fake/whole"])
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    wanted = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    assert found == {name: FILES[name] for name in wanted}


def test_a_download_that_breaks_off_is_explained_and_not_taken_for_a_model(hub: str, tmp_path: Path) -> None:
    online = resolve(["fake/cut"], hub, tmp_path)["fake/cut"]
    offline = resolve(["fake/cut"], hub, tmp_path, HF_HUB_OFFLINE="1")["fake/cut"]
    assert "cannot get model 'fake/cut' from the Hugging Face hub: the connection broke off" in online
    assert "it is not in the cache" in offline


def test_a_downloaded_model_is_found_offline(hub: str, tmp_path: Path) -> None:
    first = resolve(["fake/whole"], hub, tmp_path)
    assert resolve(["fake/whole"], "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1") == first


def test_offline_and_not_in_the_cache_is_explained(hub: str, tmp_path: Path) -> None:
    answer = resolve(["fake/whole"], hub, tmp_path, HF_HUB_OFFLINE="1")["fake/whole"]
    assert "HF_HUB_OFFLINE is set and it is not in the cache" in answer
