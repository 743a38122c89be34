"""For tests: a service with OpenAI's API on a loopback port, whose answers a function makes of the messages."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What an answer may be instead of a text: a status with a message, or a stream that breaks off after the text.
Refusal = tuple[int, str]


@dataclass
class FakeService:
    """`answer(messages)` gives a text, or (status, message); a text that ends in BREAK is broken off there. `bodies`
    holds what was asked, `most` how many requests were at work at once."""

    answer: Callable[[list[dict[str, str]]], str | Refusal]
    pause: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def flags(self) -> list[str]:
        """Flags for a command that shall ask this service."""
        return ["--engine", "openai", "--model", "judge", "--base-url", self.url, "--api-key", "secret"]

    def users(self) -> list[str]:
        """The newest user's message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


BREAK = "\0BREAK"


def _handler(service: FakeService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send({"data": [{"id": "judge", "max_model_len": 4096}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with service.lock:
                service.bodies.append(body)
                service.running += 1
                service.most = max(service.most, service.running)
            time.sleep(service.pause)
            try:
                self.reply(service.answer(body["messages"]))
            finally:
                with service.lock:
                    service.running -= 1

        def reply(self, answer: str | Refusal) -> None:
            if isinstance(answer, tuple):
                self.send({"error": {"message": answer[1]}}, answer[0])
                return
            text = answer.removesuffix(BREAK)
            events: list[Any] = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}]
            if text == answer:
                events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                events.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
            data = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data.encode())

        def send(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextlib.contextmanager
def serving(answer: Callable[[list[dict[str, str]]], str | Refusal], pause: float = 0.0) -> Iterator[FakeService]:
    """A service that answers so, while the block runs."""
    service = FakeService(answer, pause)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(service))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
