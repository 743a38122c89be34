"""The server as its clients see it: the real program on a free port, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import json
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

from chatbot.api import read_request
from chatbot.core import Bot
from chatbot.engines.echo import EchoModel
from chatbot.prompting import PromptAssembler
from chatbot.server import _events
from retrieval.build import build_index

pytest.importorskip("uvicorn", reason="needs the `server` extra")

DOCUMENT = "# The harbour\n\nThe harbour bridge was opened in 1932. It carries eight lanes of traffic.\n"


class Server:
    """The program with the echo engine, ready when made."""

    def __init__(self, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "chatbot.server", "--engine", "echo", "--port", str(self.port)]
        command += map(str, arguments)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": kind})
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

    def end(self) -> tuple[int, str, str]:
        """Exit status, stdout and stderr after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
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
    assert [(each["id"], each["object"]) for each in body["data"]] == [("parrot", "model")]


def test_a_completion_has_the_shape_of_openais_and_sources(server):
    status, body = server.post(model="parrot", say="When was the harbour bridge opened?")
    assert status == 200
    theirs = {"id", "object", "created", "model", "choices", "usage"}
    assert set(body) == theirs | {"sources", "withheld", "notices", "verdicts"}
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert set(choice) == {"index", "message", "finish_reason"}
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert choice["message"]["role"] == "assistant"
    assert "The harbour bridge was opened in 1932." in choice["message"]["content"]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert min(usage.values()) > 10
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
    status, body = server.post(messages=messages)
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
BAD = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": ["hello"]}, "message 1"),
    ({"messages": [{"role": "robot", "content": "hello"}]}, "unknown role 'robot'"),
    ({"messages": [*HELLO, {"role": "assistant"}]}, "message 2 lacks content"),
    ({"messages": [{"role": "user", "content": None}]}, "message 1"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "only text parts"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "message 1"),
    ({"messages": [{"role": "user", "content": "hello", "passages": [1]}]}, "message 1"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "Hello."}]}, "the last message must be the user's"),
    ({"messages": HELLO, "n": 2}, "n=2"),
    ({"messages": HELLO, "temperature": -1}, "temperature=-1"),
    ({"messages": HELLO, "temperature": "warm"}, "temperature='warm'"),
    ({"messages": HELLO, "temperature": True}, "temperature=True"),
    ({"messages": HELLO, "top_p": 0}, "top_p=0"),
    ({"messages": HELLO, "max_tokens": 0}, "max_tokens=0"),
    ({"messages": HELLO, "max_tokens": 1.5}, "max_tokens=1.5"),
    ({"messages": HELLO, "max_tokens": 9000}, "max_tokens=9000"),
    ({"messages": HELLO, "seed": 2**70}, "seed="),
    ({"messages": HELLO, "stop": 3}, "stop"),
    ({"messages": HELLO, "stop": [""]}, "stop"),
    ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools="),
    ({"messages": HELLO, "logprobs": True}, "logprobs=True"),
    ({"messages": HELLO, "stream_options": "all"}, "stream_options='all'"),
    ({"messages": HELLO, "stream": True, "temperature": -1}, "temperature=-1"),
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
    running = Server("--host", "0.0.0.0")  # noqa: S104
    with socket.socket() as other:
        other.settimeout(5)
        other.connect(("127.0.0.2", running.port))
    running.end()


def test_ctrl_c_ends_it_cleanly():
    running = Server()
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
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(server.port) in done.stderr
    assert "in use" in done.stderr


class Refusing(EchoModel):
    """A model that finds only while it answers that it cannot."""

    def stream(self, conversation, generation):
        yield from ()
        raise ValueError("a message's text forms a special token")


def test_a_failure_in_the_middle_of_a_stream_is_told():
    model = Refusing()
    bot = Bot(model, PromptAssembler(model.count_tokens, model.context_length))
    request = read_request(bot, {"messages": HELLO, "stream": True})

    async def collect():
        return [event async for event in _events(request, asyncio.Lock())]

    events = asyncio.run(collect())
    assert events[-1] == "data: [DONE]\n\n"
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert error["message"] == "a message's text forms a special token"


def test_many_waiting_requests_do_not_starve_the_one_at_work():
    """Requests that wait must not hold the threads that the answer at work needs."""
    import httpx2

    from chatbot.server import create_app

    model = EchoModel()
    app = create_app(Bot(model, PromptAssembler(model.count_tokens, model.context_length)))

    async def ask(client, number, stream):
        body = {"messages": [{"role": "user", "content": f"number {number} of many"}], "stream": stream}
        return (await client.post("/v1/chat/completions", json=body)).text

    async def many():
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = 2
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = [ask(client, number, number % 2 == 0) for number in range(12)]
            answers = await asyncio.wait_for(asyncio.gather(*asked), timeout=30)
            return answers, (await client.get("/health")).json()

    answers, health = asyncio.run(many())
    assert health == {"status": "ok"}
    for number, answer in enumerate(answers):
        assert str(number) in answer


@pytest.mark.parametrize(
    ("field", "value"),
    [("frequency_penalty", 0.5), ("top_k", 5), ("tools", [{"type": "function"}]), ("stream", "false"), ("n", 2)],
)
def test_what_cannot_be_followed_is_refused(field, value):
    model = EchoModel()
    bot = Bot(model, PromptAssembler(model.count_tokens, model.context_length))
    with pytest.raises(ValueError, match=field):
        read_request(bot, {"messages": HELLO, field: value})


def test_fields_that_ask_for_nothing_are_accepted():
    model = EchoModel()
    bot = Bot(model, PromptAssembler(model.count_tokens, model.context_length))
    request = read_request(bot, {"messages": HELLO, "frequency_penalty": 0, "n": 1, "tools": [], "top_p": 0.5})
    assert request.bot.generation.sample, "top_p asks for sampling"
