"""The server as its clients see it: the real program on a free port, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from click.testing import CliRunner

from chatbot.server import cli
from retrieval.writing.building import build_index

pytest.importorskip("uvicorn", reason="needs the `server` extra")

DOCUMENT = "# The harbour\n\nThe harbour bridge was opened in 1932. It carries eight lanes of traffic.\n"


class Server:
    """The program with the echo engine, ready when made."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "chatbot.server", "--engine", "echo", "--port", str(self.port)]
        command += ["--no-moderation", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.key = environment.get("PARLEY_API_KEY", "")
        self.process = subprocess.Popen(command, env=os.environ | environment, **pipes)
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                assert self.get("/health") == (200, {"status": "ok"})
                return
            except OSError:  # not listening yet
                time.sleep(0.05)
        self.process.kill()
        raise AssertionError(self.process.communicate()[1])

    def request(self, path: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, str, str]:
        """Status, content type and body; GET without data, else POST."""
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                return response.status, response.headers["Content-Type"], response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()

    def get(self, path: str) -> tuple[int, Any]:
        status, _, body = self.request(path)
        return status, json.loads(body)

    def post(self, **body: object) -> tuple[int, Any]:
        """One chat completion; `say` is short for a single user message."""
        if "say" in body:
            body["messages"] = [{"role": "user", "content": body.pop("say")}]
        status, _, answer = self.request("/v1/chat/completions", json.dumps(body).encode())
        return status, json.loads(answer)

    def events(self, **body: object) -> list[Any]:
        """The chunks of a streamed completion, `[DONE]` checked and left out."""
        body["messages"] = [{"role": "user", "content": body.pop("say")}]
        data = json.dumps({**body, "stream": True}).encode()
        status, kind, text = self.request("/v1/chat/completions", data)
        assert status == 200
        assert kind.startswith("text/event-stream")
        assert text.endswith("\n\n")
        events = text.removesuffix("\n\n").split("\n\n")
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        assert events.pop() == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def end(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        """Exit status, stdout and stderr after Ctrl-C, or another signal."""
        self.process.send_signal(how)
        try:
            out, err = self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "harbour.md").write_text(DOCUMENT)
    build_index([folder / "harbour.md"], folder / "index", "hash")
    running = Server("--index", folder / "index", "--system", "Be brief.", "--model", "parrot")
    yield running
    _, _, err = running.end()
    assert "Traceback" not in err


def test_models_are_listed(server):
    status, body = server.get("/v1/models")
    assert status == 200
    assert body["object"] == "list"
    assert [(each["id"], each["object"]) for each in body["data"]] == [("parrot", "model"), ("hash", "model")]


def test_a_completion_has_the_shape_of_openais_and_sources(server):
    status, body = server.post(model="parrot", say="When was the harbour bridge opened?")
    assert status == 200
    theirs = {"id", "object", "created", "model", "choices", "usage"}
    assert set(body) == theirs | {"sources", "withheld", "notices", "verdicts", "attribution"}
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert choice["message"]["role"] == "assistant"
    assert "The harbour bridge was opened in 1932." in choice["message"]["content"]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert min(usage["prompt_tokens"], usage["completion_tokens"]) > 10
    (source,) = body["sources"]
    assert (source["number"], source["title"]) == (1, "The harbour")
    assert source["location"].endswith("harbour.md:3")
    assert source["text"] == "The harbour bridge was opened in 1932. It carries eight lanes of traffic."
    assert 0 < source["score"] <= 1


def test_a_conversation_and_a_system_message_of_the_clients_own(server):
    messages = [
        {"role": "system", "content": "Speak up."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": "thank "}, {"type": "text", "text": "you"}]},
    ]
    status, body = server.post(messages=messages, parley={"retrieval": False})
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "thank you"
    assert body["sources"] == []
    # "system: Speak up. user: hello assistant: Hello. user: thank you assistant:" in words
    assert body["usage"]["prompt_tokens"] == 11


def test_the_settings_of_a_request_count(server):
    status, body = server.post(say="hello hello", max_tokens=1)
    assert (status, body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == (200, "length", 1)
    assert server.post(say="hello hello", max_completion_tokens=1)[1]["choices"] == body["choices"]
    assert server.post(say="thanks, bye", stop="bye")[1]["choices"][0]["message"]["content"] == "thanks, "
    assert server.post(say="thanks, bye", stop=["x", " b"])[1]["choices"][0]["message"]["content"] == "thanks,"
    # What asks for nothing special is accepted, from clients that send every field.
    plain = {
        "n": 1,
        "temperature": 0,
        "top_p": 1,
        "seed": 3,
        "tools": None,
        "user": "ada",
        "stream": False,
        "stop": None,
    }
    assert server.post(say="hello", **plain)[0] == 200


def test_a_stream_joins_to_the_same_text(server):
    question = "When was the harbour bridge opened?"
    _, whole = server.post(say=question)
    first, *chunks = server.events(say=question)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in chunks} == {first["id"]}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert len(chunks) > 10
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["sources"] == whole["sources"]
    *_, last = server.events(say=question, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]


def test_text_of_every_script_survives(server):
    text = "Grüße, 世界 😀 \u2028 \x1b[2J"
    assert server.post(say=f"hello {text}")[1]["choices"][0]["message"]["content"].count(text) == 1
    chunks = server.events(say=f"hello {text}")
    assert text in "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


HELLO = [{"role": "user", "content": "hello"}]
# A few of each kind; tests/chatbot/api has the rest.
BAD = [
    ({}, "messages is missing"),
    ({"messages": [{"role": "robot", "content": "hello"}]}, "messages.0.role='robot'"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a character"),
    ({"messages": HELLO, "temperature": -1}, "temperature=-1"),
    ({"messages": HELLO, "max_tokens": 9000}, "max_tokens=9000"),
    ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools and functions are not supported"),
    ({"messages": HELLO, "logprobs": True}, "no log-probabilities"),
    ({"messages": HELLO, "stream": True, "temperature": -1}, "temperature=-1"),
    ({"messages": HELLO, "stream": True, "max_tokens": 9000}, "max_tokens=9000"),
]


def refusal(status: int, body: Any) -> str:
    """The message of an error as OpenAI's clients expect it."""
    assert status == 400
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    return body["error"]["message"]


@pytest.mark.parametrize(("body", "named"), BAD, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_request_is_refused_with_a_reason(server, body, named):
    assert named in refusal(*server.post(**body))


@pytest.mark.parametrize("data", [b"hello", b"{", b"", b"[1]", b'"text"', b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_refused(server, data):
    status, _, body = server.request("/v1/chat/completions", data)
    assert "JSON" in refusal(status, json.loads(body))


def test_a_form_of_some_web_page_is_refused(server):
    # A browser sends this to any address without asking; JSON it does not.
    data = json.dumps({"messages": HELLO}).encode()
    status, _, body = server.request("/v1/chat/completions", data, "text/plain")
    assert "application/json" in refusal(status, json.loads(body))


def test_wrong_addresses_get_an_error_of_the_same_shape(server):
    for path, expected in (("/v1/nothing", 404), ("/v1/chat/completions", 405)):
        status, body = server.get(path)
        assert status == expected
        assert set(body["error"]) == {"message", "type", "param", "code"}


def test_the_server_is_well_after_bad_requests(server):
    assert server.post(say="hello")[1]["choices"][0]["message"]["content"] == "hello"


def test_requests_at_the_same_time_are_all_answered_right(server):
    names = ["harbour", "bridge", "traffic", "lanes"]

    def ask(name: str) -> tuple[str, str]:
        text = f"Tell me of the {name} please"
        if name in names[:2]:
            whole = server.post(say=text)[1]["choices"][0]["message"]["content"]
        else:
            whole = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in server.events(say=text))
        return text, whole

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, names * 3))
    assert len(answers) == 12
    for text, whole in answers:
        assert text in whole
        assert sum(f"Tell me of the {name} please" in whole for name in names) == 1


def test_it_listens_on_this_machine_only(server):
    # All of 127.0.0.0/8 is this machine: a server on 0.0.0.0 would answer here, one on 127.0.0.1 does not.
    with socket.socket() as other:
        other.settimeout(5)
        with pytest.raises(OSError, match=r"refused|timed out|unreachable|assign"):
            other.connect(("127.0.0.2", server.port))


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 exists on Linux only")
def test_another_address_can_be_chosen():
    running = Server("--host", "0.0.0.0", PARLEY_API_KEY="a-key-that-is-long")  # noqa: S104
    with socket.socket() as other:
        other.settimeout(5)
        other.connect(("127.0.0.2", running.port))
    running.end()


def test_ctrl_c_ends_it_cleanly():
    running = Server("--no-page")
    assert running.post(say="hello")[0] == 200
    code, out, err = running.end()
    assert code in (0, 130)
    assert out == ""
    assert err.splitlines()[0] == f"Parley on http://127.0.0.1:{running.port}/v1 (Ctrl-C ends)"
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2


def test_a_port_in_use_is_one_line(server):
    command = [sys.executable, "-m", "chatbot.server", "--engine", "echo", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(server.port) in line
    assert "in use" in line


def refused_start(*arguments: object, **environment: str) -> str:
    """The one line that the program ends with."""
    given = ["--engine", "echo", "--no-moderation", *map(str, arguments)]
    done = CliRunner().invoke(cli, given, env=environment)
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_other_machines_are_not_let_in_without_a_key():
    for host in ("0.0.0.0", "::", "192.0.2.1", "some.example", ""):  # noqa: S104
        assert "PARLEY_API_KEY" in refused_start("--host", host, PARLEY_API_KEY="")
    assert "16" in refused_start("--host", "0.0.0.0", PARLEY_API_KEY="short")  # noqa: S104


def test_keys_from_a_file(tmp_path):
    for name in ("hills", "rivers"):
        (tmp_path / f"{name}.txt").write_text(f"All about the {name} of the north. They are old.")
        build_index([tmp_path / f"{name}.txt"], tmp_path / name, "hash", floor=0.05)
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "alice-has-this-key: {name: alice, indexes: [rivers, hills], metrics: true}\n"
        "bob-has-another-key: {name: bob, indexes: [hills]}\n"
    )
    indexes = [f"--index=hills={tmp_path / 'hills'}", f"--index=rivers={tmp_path / 'rivers'}"]
    running = Server(*indexes, "--keys", keys, PARLEY_API_KEY="")
    assert running.get("/v1/models")[0] == 401
    sources = {}
    for running.key in ("alice-has-this-key", "bob-has-another-key"):
        _, body = running.post(say="What is old in the north?")
        sources[running.key] = [source["source"].rsplit("/", 1)[1] for source in body["sources"]]
    assert sources == {"alice-has-this-key": ["rivers.txt"], "bob-has-another-key": ["hills.txt"]}
    assert running.post(say="What is old?", parley={"index": "rivers"})[0] == 404
    code, out, err = running.end()
    assert code in (0, 130)
    assert out == ""
    assert "key" not in err.replace("keyboard", "")

    keys.write_text("alice-has-this-key: {name: alice, indexes: [lakes]}\n")
    assert "there is no index 'lakes' (there are: hills, rivers)" in refused_start(*indexes, "--keys", keys)
    assert "alice-has-this-key" not in refused_start(*indexes, "--keys", keys)


def test_sigterm_ends_it_with_0_once_all_is_answered():
    running = Server("--drain-seconds", 20)
    with ThreadPoolExecutor(8) as pool:
        long = " ".join(f"word{number}" for number in range(4000))
        answers = [pool.submit(running.post, say=long, max_tokens=4100) for _ in range(8)]
        deadline = time.monotonic() + 20
        while running.request("/metrics")[2].count('parley_running{lane="generation"} 0') and not answers[0].done():
            assert time.monotonic() < deadline
        code, _, err = running.end(signal.SIGTERM)
        done = [answer.result() for answer in answers]
    assert code == 0
    assert "Traceback" not in err
    # Those that were let in got their whole answer; those that came after were told to go elsewhere.
    for status, body in done:
        assert status in (200, 503)
        if status == 200:
            assert body["choices"][0]["message"]["content"] == long
    assert [status for status, _ in done].count(200) >= 1


def test_sigterm_with_nothing_to_do_is_quick():
    running = Server()
    start = time.monotonic()
    assert running.end(signal.SIGTERM)[0] == 0
    assert time.monotonic() - start < 5
