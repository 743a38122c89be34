"""A real server over a socket: who waits, who is turned away, who leaves, and what comes in the headers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import HELLO, SlowModel, bot_of, running, wait_until

from chatbot.api.service import Caller, Service
from chatbot.engines.echo import EchoModel
from chatbot.server.keys import Key, Keyring

pytest.importorskip("uvicorn", reason="needs the `server` extra")

CHAT = "/v1/chat/completions"


def chat_of(text="hello", **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def error_of(answer):
    status, body, _ = answer
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]


# Waiting ------------------------------------------------------------------------------------------------------------


def test_so_many_run_at_once_and_no_more():
    model = SlowModel(seconds=0.01)
    with running(bot_of(model), concurrent=3) as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: server.chat(f"number {number}"), range(12)))
    assert [status for status, _, _ in answers] == [200] * 12
    assert model.most == 3


def test_requests_are_served_in_the_order_in_which_they_came():
    model = SlowModel(seconds=0.002)
    texts = [f"number {number}" for number in range(12)]
    with running(bot_of(model), concurrent=1) as server:
        connections = []
        for place, text in enumerate(texts):
            connections.append(server.open("POST", CHAT, chat_of(text, stream=place % 2 == 0)))
            wait_until(lambda place=place: len(server.state.jobs) > place or len(model.started) > place)
        for connection in connections:
            assert connection.getresponse().read()
            connection.close()
    assert model.started == texts


def test_when_too_many_wait_the_next_is_told_when_to_come_back():
    model = SlowModel(seconds=0.3, tokens=2)
    with running(bot_of(model), concurrent=1, queued=1) as server:
        first = server.open("POST", CHAT, chat_of("first"))
        wait_until(lambda: model.running == 1)
        second = server.open("POST", CHAT, chat_of("second"))
        wait_until(lambda: server.state.lanes["generation"].waiting == 1)
        answer = server.chat("third")
        status, error = error_of(answer)
        assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert 1 <= int(answer[2]["retry-after"]) <= 60
        # What needs no model is answered meanwhile.
        assert server.ask("GET", "/health")[:2] == (200, {"status": "ok"})
        text = server.ask("GET", "/metrics")[1]
        assert 'parley_waiting{lane="generation"} 1' in text
        assert 'parley_running{lane="generation"} 1' in text
        assert 'parley_rejected_total{reason="queue"} 1' in text
        assert [each.getresponse().status for each in (first, second)] == [200, 200]


# Leaving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_within_a_second(stream):
    model = SlowModel(seconds=0.05, tokens=400)
    with running(bot_of(model), concurrent=1) as server:
        connection = server.open("POST", CHAT, chat_of("leaving", stream=stream))
        wait_until(lambda: model.running == 1)
        if stream:
            with connection.getresponse() as answer:
                assert answer.readline().startswith(b"data: ")
        connection.close()
        assert wait_until(lambda: model.running == 0) < 1
        assert wait_until(lambda: server.state.lanes["generation"].running == 0) < 1
        model.seconds = 0
        assert server.chat("next")[0] == 200
        assert server.state.jobs == set()
        counted = 'status="200"} 2' if stream else 'status="499"} 1'
        assert f'{{route="{CHAT}",{counted}' in server.ask("GET", "/metrics")[1]


def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_slot_too():
    model = SlowModel(prefill=3, tokens=1)
    with running(bot_of(model), concurrent=1) as server:
        lane = server.state.lanes["generation"]
        for number in range(2):
            connection = server.open("POST", CHAT, chat_of("leaving", stream=number == 0))
            wait_until(lambda number=number: len(model.started) == number + 1)
            connection.close()
            if number == 0:
                assert wait_until(lambda: lane.running == 0) < 1
                assert lane.abandoned == 1
        time.sleep(0.7)
        assert (lane.running, lane.abandoned) == (1, 1), "no more are abandoned than there are slots"
        wait_until(lambda: (lane.running, lane.abandoned) == (0, 0))
        model.prefill = 0
        assert server.chat("next")[0] == 200


def test_one_who_leaves_while_waiting_gives_up_the_place():
    model = SlowModel(seconds=0.05, tokens=10)
    with running(bot_of(model), concurrent=1) as server:
        lane = server.state.lanes["generation"]
        first = server.open("POST", CHAT, chat_of("first"))
        wait_until(lambda: model.running == 1)
        waiting = server.open("POST", CHAT, chat_of("leaving"))
        wait_until(lambda: lane.waiting == 1)
        waiting.close()
        assert wait_until(lambda: lane.waiting == 0) < 1
        assert first.getresponse().status == 200
        assert server.chat("last")[0] == 200
    assert model.started == ["first", "last"]


def test_a_client_that_leaves_before_its_body_is_whole():
    with running(bot_of()) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert server.chat()[0] == 200


# Time ---------------------------------------------------------------------------------------------------------------


def test_an_answer_that_takes_too_long_ends_with_what_it_has():
    model = SlowModel(seconds=0.02, tokens=1000)
    with running(bot_of(model), request_seconds=0.3) as server:
        status, body, _ = server.chat(max_tokens=1000)
        assert status == 200
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "length"
        words = choice["message"]["content"].split()
        assert 3 < len(words) <= 16
        assert words == [f"w{number}" for number in range(1, len(words) + 1)]
        assert body["usage"]["completion_tokens"] == len(words)
        stream = server.chat(max_tokens=1000, stream=True)[1]
        assert '"finish_reason":"length"' in stream
        assert stream.endswith("data: [DONE]\n\n")


def test_time_runs_from_the_moment_a_request_came():
    model = SlowModel(seconds=0.1, tokens=20)
    with running(bot_of(model), concurrent=1, request_seconds=0.5) as server:
        first = server.open("POST", CHAT, chat_of("first"))
        wait_until(lambda: model.running == 1)
        time.sleep(0.2)
        second = server.open("POST", CHAT, chat_of("second"))
        assert first.getresponse().status == 200  # cut short at half a second
        wait_until(lambda: model.started == ["first", "second"])
        assert second.getresponse().status == 200
        model.prefill = 1.0  # its first token comes after its time, and is all there is
        status, body, _ = server.chat("slow to begin")
        assert (status, body["choices"][0]["message"]["content"]) == (200, "w1 ")
        assert body["choices"][0]["finish_reason"] == "length"


def test_the_queue_counts_towards_a_requests_time():
    model = SlowModel(prefill=1.5, tokens=1)
    with running(bot_of(model), concurrent=1, request_seconds=0.4) as server:
        first = server.open("POST", CHAT, chat_of("first"))
        wait_until(lambda: model.running == 1)
        started = time.monotonic()
        status, error = error_of(server.chat("second"))
        assert (status, error["type"], error["code"]) == (408, "timeout_error", "timeout")
        assert time.monotonic() - started < 1
        first.close()


# Size, names, keys --------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so():
    with running(bot_of(), body_bytes=1000) as server:
        fits = json.dumps(chat_of("")).encode()
        fits = fits.replace(b'""', b'"' + b"a" * (1000 - len(fits)) + b'"')
        assert len(fits) == 1000
        assert server.ask("POST", CHAT, fits)[0] == 200
        answer = server.ask("POST", CHAT, fits + b" ")
        assert error_of(answer)[0] == 413
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", CHAT, iter([b"x" * 600] * 4), headers, encode_chunked=True)
            assert connection.getresponse().status == 413
        assert server.chat()[0] == 200


def test_an_address_that_is_not_ours_is_refused():
    with running(bot_of(), hosts=frozenset({"127.0.0.1", "localhost", "[::1]"})) as server:
        for host in ("localhost", f"localhost:{server.port}", "LOCALHOST:1", "127.0.0.1", "[::1]:80", "[::1]"):
            assert server.ask("GET", "/health", Host=host)[0] == 200, host
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::2]", "10.0.0.1", ""):
            for path in ("/health", "/v1/models", "/"):
                status, error = error_of(server.ask("GET", path, Host=host))
                assert (status, error["code"]) == (421, "wrong_host"), host


KEYS = Keyring(
    [
        Key(b"alice-has-this-key", Caller("alice")),
        Key(b"bob-has-another-key", Caller("bob", metrics=True)),
    ]
)


def test_without_the_right_key_nothing_is_told():
    with running(bot_of(), KEYS) as server:
        for path in ("/v1/models", CHAT, "/metrics", "/v1/nothing", "/v1", "/nothing", "/v1/../metrics", "/docs"):
            for key in ("", "Bearer", "Bearer wrong", "Bearer alice-has-this-ke", "Basic alice-has-this-key", "\xe4"):
                headers = {"Authorization": key} if key else {}
                for method in ("GET", "POST"):
                    answer = server.ask(method, path, {} if method == "POST" else None, **headers)
                    status, error = error_of(answer)
                    assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
                    assert answer[2]["www-authenticate"] == "Bearer"
        assert server.ask("GET", "/v1/models", Authorization="Bearer alice-has-this-key")[0] == 200
        assert server.ask("GET", "/v1/models", Authorization="bearer  alice-has-this-key")[0] == 200
        assert server.ask("GET", "/health")[0] == 200
        assert server.ask("GET", "/metrics", Authorization="Bearer alice-has-this-key")[0] == 404
        metrics = server.ask("GET", "/metrics", Authorization="Bearer bob-has-another-key")
        assert metrics[0] == 200
        for told in ("alice", "bob", "-key"):
            assert told not in metrics[1]


def test_a_large_body_without_a_key_is_not_taken_in():
    with running(bot_of(), KEYS, body_bytes=1 << 20) as server:
        assert server.ask("POST", CHAT, b"x" * (4 << 20))[0] == 401


# What comes with every answer ----------------------------------------------------------------------------------------


def test_headers_of_every_answer():
    with running(bot_of()) as server:
        answers = [server.chat(), server.ask("GET", "/v1/models"), server.ask("GET", "/nothing"), server.chat(n=0)]
        answers += [server.chat(stream=True), server.ask("GET", "/openapi.json")]
        assert [status for status, _, _ in answers] == [200, 200, 404, 400, 200, 200]
        for _, _, headers in answers:
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in headers
        ids = [headers["x-request-id"] for _, _, headers in answers]
        assert len(set(ids)) == len(ids)


def test_no_page_of_another_origin_may_ask_unless_it_is_named():
    asks = {"Origin": "https://a.example", "Access_Control_Request_Method": "POST"}
    with running(bot_of()) as server:
        assert "access-control-allow-origin" not in server.ask("OPTIONS", CHAT, None, **asks)[2]
    with running(bot_of(), KEYS, cors=("https://a.example",)) as server:
        status, _, headers = server.ask("OPTIONS", CHAT, None, **asks)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://a.example")
        refused = server.ask("GET", "/v1/models", Origin="https://a.example")
        assert (refused[0], refused[2]["access-control-allow-origin"]) == (401, "https://a.example")
        other = server.ask("OPTIONS", CHAT, None, **(asks | {"Origin": "https://b.example"}))
        assert "access-control-allow-origin" not in other[2]


# Failures -----------------------------------------------------------------------------------------------------------


class Broken(EchoModel):
    """Fails in a way that a client must learn nothing about, at once or after a word."""

    def stream(self, conversation, generation):
        if "late" in conversation.last.content:
            yield from super().stream(conversation, generation)
        raise OSError("the disk /secret/path is gone")


def test_a_failure_is_logged_under_an_id_and_not_told(caplog):
    with running(bot_of(Broken())) as server:
        answer = server.chat()
        status, error = error_of(answer)
        assert (status, error["type"], error["code"]) == (500, "server_error", "internal_error")
        assert answer[2]["x-request-id"] in error["message"]
        assert "secret" not in json.dumps(answer[1])
        stream = server.chat("too late", stream=True)
        assert stream[0] == 200
        assert "too" in stream[1]
        assert "secret" not in stream[1]
        assert "Traceback" not in stream[1]
        assert stream[2]["x-request-id"] in stream[1]
        assert stream[1].endswith("data: [DONE]\n\n")
        assert server.ask("GET", "/health")[0] == 200
    for id_ in (answer[2]["x-request-id"], stream[2]["x-request-id"]):
        assert id_ in caplog.text
    assert "/secret/path" in caplog.text


def test_an_error_before_the_first_word_of_a_stream_has_its_own_status():
    with running(bot_of()) as server:
        assert error_of(server.chat("hello", stream=True, max_tokens=9000))[0] == 400


# Draining -----------------------------------------------------------------------------------------------------------


def test_a_server_that_drains_takes_nothing_new_and_finishes_the_rest():
    model = SlowModel(seconds=0.05, tokens=10)
    with running(bot_of(model)) as server:
        first = server.open("POST", CHAT, chat_of("first"))
        wait_until(lambda: model.running == 1)
        server.state.drain()
        answer = server.chat("second")
        status, error = error_of(answer)
        assert (status, error["code"]) == (503, "draining")
        assert "retry-after" in answer[2]
        assert server.ask("GET", "/health")[:2] == (503, {"status": "draining"})
        assert not server.state.drained()
        body = json.loads(first.getresponse().read())
        assert body["choices"][0]["finish_reason"] == "stop"
        wait_until(server.state.drained)


def test_past_its_time_a_draining_server_cuts_answers_short():
    model = SlowModel(seconds=0.02, tokens=1000)
    with running(bot_of(model), drain_seconds=0.2) as server:
        first = server.open("POST", CHAT, chat_of("first", max_tokens=1000))
        wait_until(lambda: model.running == 1)
        server.state.drain()
        wait_until(server.state.drained)
        body = json.loads(first.getresponse().read())
        assert body["choices"][0]["finish_reason"] == "length"


def test_many_at_once_all_get_their_own_answer():
    before = threading.active_count()
    with running(Service(bot_of()), concurrent=4) as server, ThreadPoolExecutor(16) as pool:
        texts = [f"word{number} and more" for number in range(64)]

        def ask(text):
            if hash(text) % 2:
                return server.chat(text)[1]["choices"][0]["message"]["content"]
            chunks = [json.loads(line[6:]) for line in server.chat(text, stream=True)[1].split("\n\n")[:-2]]
            return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

        assert list(pool.map(ask, texts)) == texts
        assert threading.active_count() <= before + 16 + 8 + 1, "clients, workers, and the server itself"
        wait_until(lambda: server.state.lanes["generation"].running == 0)
    wait_until(lambda: threading.active_count() <= before)


def test_hello_is_whole():
    with running(bot_of()) as server:
        assert server.ask("POST", CHAT, {"messages": HELLO})[1]["choices"][0]["message"]["content"] == "hello"
