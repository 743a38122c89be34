"""For tests: a real server on a loopback port, in a thread; and a chat model that answers as slowly as it is told."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from chatbot.api.service import Service
from chatbot.core import Bot
from chatbot.engines.base import Delta, Generation, TokenLogprob, Usage
from chatbot.engines.echo import EchoModel
from chatbot.prompting import PromptAssembler
from chatbot.server.app import create_app
from chatbot.server.keys import Keyring
from chatbot.server.limits import Limits
from chatbot.server.state import State

HELLO = [{"role": "user", "content": "hello"}]


class SlowModel(EchoModel):
    """Says `tokens` words (or max_tokens, where that is less), `seconds` apart, the first after `prefill` seconds.
    `running` counts the generations at work, `most` the most at once, `started` the last messages in order, `ended`
    those that ran out or were closed. With `logprobs` the nth word's log-probability is -n."""

    def __init__(self, seconds: float = 0.0, tokens: int = 5, prefill: float = 0.0, logprobs: bool = False) -> None:
        super().__init__("slow")
        self.seconds, self.tokens, self.prefill, self.logprobs = seconds, tokens, prefill, logprobs
        self.running = self.most = self.ended = 0
        self.started: list[str] = []
        self.generations: list[Generation] = []
        self.lock = threading.Lock()

    def stream(self, conversation, generation):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.started.append(conversation.last.content)
            self.generations.append(generation)
        try:
            time.sleep(self.prefill)
            num = min(self.tokens, generation.max_tokens)
            for number in range(1, num + 1):
                time.sleep(self.seconds)
                top = tuple((f"other{rank}", -number - rank) for rank in range(generation.logprobs or 0))
                told = self.logprobs and generation.logprobs is not None
                yield Delta(f"w{number} ", logprobs=(TokenLogprob(f"w{number} ", -number, top),) if told else ())
            reason = "length" if num < self.tokens else "stop"
            yield Delta("", reason, Usage(self.count_tokens(conversation), num))
        finally:
            with self.lock:
                self.running -= 1
                self.ended += 1


def bot_of(model: Any = None, **changes: Any) -> Bot:
    """A bot around a model, by default the echo."""
    model = model or EchoModel("parrot")
    return Bot(model, PromptAssembler(model.count_tokens, model.context_length), **changes)


class Running:
    """A server that runs; `state` can be looked into."""

    def __init__(self, port: int, state: State) -> None:
        self.port, self.state = port, state
        self.opened = contextlib.ExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
        """A connection with a request on its way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.opened.callback(connection.close)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"Content-Type": "application/json"} | names)
        return connection

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text), and headers in lower case."""
        with contextlib.closing(self.open(method, path, body, **headers)) as connection:
            answer = connection.getresponse()
            text = answer.read().decode()
            found = {name.lower(): value for name, value in answer.headers.items()}
            is_json = found.get("content-type", "").startswith("application/json")
            return answer.status, json.loads(text) if is_json else text, found

    def chat(self, text: str = "hello", **more: Any) -> tuple[int, Any, dict[str, str]]:
        """One chat completion."""
        body = {"messages": [{"role": "user", "content": text}], **more}
        return self.ask("POST", "/v1/chat/completions", body)


@contextlib.contextmanager
def running(service: Service | Bot, keyring: Keyring | None = None, **more: Any) -> Iterator[Running]:
    """A server around a service or a bot; `more` are fields of `Limits` and of `State`."""
    import uvicorn

    if isinstance(service, Bot):
        service = Service(service)
    limits = Limits(**{name: more.pop(name) for name in list(more) if name in Limits.__dataclass_fields__})
    state = State(service, keyring or Keyring([], tuple(service.collections)), limits, **more)
    config = uvicorn.Config(create_app(state, page=False), port=0, log_level="error", http="h11", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    client = Running(server.servers[0].sockets[0].getsockname()[1], state)
    try:
        yield client
    finally:
        client.opened.close()
        for job in list(state.jobs):
            job.watch.cancel()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_until(condition: Any, seconds: float = 10.0) -> float:
    """Seconds until it is so; fails where it never is."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it never came"
        time.sleep(0.005)
    return time.monotonic() - start
