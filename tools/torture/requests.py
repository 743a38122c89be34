"""Send a server whatever may come over the net, and see that it refuses what it should and stays well.

    python -m tools.torture.requests --num 100000 --seed 0
    python -m tools.torture.requests --num 1000 --engine llamacpp --model smollm2-135m

Most requests are made from the server's own /openapi.json and then damaged: other types, missing and unknown fields,
huge and tiny numbers, half characters, deep nesting, cut and swapped bytes, wrong content types, methods, paths and
headers; some clients leave before the answer. No answer may be a 5xx or show a traceback, every error must have
OpenAI's shape, every stream must end as streams do, and at the end the server must answer as at the beginning. Exits
with 1 where anything else happens. The server has a small index, and answers in at most 16 tokens unless a request
asks for more; arguments after `--` are given to it last.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from tools.torture.messages import Message, Messages

STARTING = 120.0  # seconds that a server may take to start
ANSWERING = 330.0  # seconds for an answer: a server ends it after 300 (--request-seconds)


@dataclass
class Outcome:
    """What came of all requests. `wrong` holds the first few that should not have come."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, status: str, problem: str | None, message: Message) -> None:
        """One answer."""
        with self.lock:
            self.statuses[status] += 1
            if problem and len(self.wrong) < 20:
                self.wrong.append(f"{problem}: {message}")


class Client:
    """One connection, opened anew when the server closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def send(self, message: Message) -> tuple[str, str | None]:
        """(status, what is wrong with the answer or None)."""
        if message.leave:
            return self._leave(message), None
        for attempt in range(2):  # an idle connection may have been closed meanwhile
            connection = self._connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWERING)
            fresh, self._connection = self._connection is None, connection
            try:
                connection.request(message.method, message.path, message.body, message.headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._connection = None
                if fresh or attempt:
                    return "no answer", f"no answer ({type(error).__name__})"
                continue
            if answer.will_close:
                connection.close()
                self._connection = None
            kind = answer.headers.get("Content-Type", "")
            return str(answer.status), wrong_with(answer.status, kind, content, message.method)
        raise AssertionError

    def close(self) -> None:
        """No more requests."""
        if self._connection is not None:
            self._connection.close()

    def _leave(self, message: Message) -> str:
        """Send the request and go."""
        head = "".join(f"{name}: {value}\r\n" for name, value in message.headers.items())
        start = f"{message.method} {message.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}"
        start += f"Content-Length: {len(message.body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self._port), timeout=ANSWERING) as connection:
            connection.sendall(start.encode("latin-1", "replace") + message.body[: message.leave])
        return "left"


def wrong_with(status: int, kind: str, content: bytes, method: str) -> str | None:
    """What must not be in an answer, or None."""
    if status >= 500:
        return f"status {status}: {content[:200]!r}"
    if b"Traceback" in content:
        return "a traceback"
    if status >= 400 and method != "HEAD" and content.strip() != b"Invalid HTTP request received.":
        try:
            error = json.loads(content)["error"]
        except (ValueError, KeyError, TypeError):
            return f"status {status}, an error of another shape: {content[:200]!r}"
        if set(error) != {"message", "type", "param", "code"} or not error["message"]:
            return f"status {status}, an error with other fields: {content[:200]!r}"
    if kind.startswith("text/event-stream") and not content.endswith(b"data: [DONE]\n\n"):
        return "a stream without an end"
    return None


def torture(port: int, num: int, seed: int, num_clients: int, schema: dict[str, Any]) -> Outcome:
    """Send `num` requests over `num_clients` connections at once."""
    outcome = Outcome()
    shares = [num // num_clients + (i < num % num_clients) for i in range(num_clients)]

    def one(i: int) -> None:
        messages = Messages(schema, seed * 1000 + i)
        with contextlib.closing(Client(port)) as client:
            for _ in range(shares[i]):
                message = messages.next()
                outcome.count(*client.send(message), message)

    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(one, range(num_clients)))
    return outcome


def small_server(folder: Path, engine: str, model: str | None) -> list[str]:
    """The arguments of a server with an index of one passage, which is built, and short answers."""
    from retrieval.writing.building import build_index

    text = "# The harbour\n\nThe harbour bridge was opened in 1932.\n"
    (folder / "harbour.md").write_text(text, encoding="utf-8")
    build_index([folder / "harbour.md"], folder / "index", "hash")
    given = ["--engine", engine, *(["--model", model] if model else []), "--index", str(folder / "index")]
    return [*given, "--no-moderation", "--feedback", str(folder / "feedback.jsonl"), "--max-tokens", "16"]


@contextlib.contextmanager
def server(folder: Path, arguments: list[str]) -> Iterator[tuple[int, subprocess.Popen[str], Path]]:
    """A server of its own, ready; (port, process, its stderr). Ended with SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "chatbot.server", "--port", str(port), *arguments]
    log = folder / "stderr"
    with open(log, "w", encoding="utf-8") as stderr:
        process = subprocess.Popen(command, stderr=stderr, text=True)
        try:
            _wait(process, port, log)
            yield port, process, log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait(process: subprocess.Popen[str], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTING
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if get(port, "/health")["status"] == "ok":
                return
        except OSError:
            time.sleep(0.1)
    raise ValueError(f"the server did not start: {log.read_text(encoding='utf-8')[-500:]}")


def get(port: int, path: str, body: Any = None) -> Any:
    """The JSON of a good answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWERING)
    with contextlib.closing(connection):
        method, data = ("POST", json.dumps(body)) if body is not None else ("GET", None)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())


def memory_mib(pid: int) -> float:
    """Resident memory of a process; 0 where the system does not say."""
    statm = Path(f"/proc/{pid}/statm")
    pages = int(statm.read_text().split()[1]) if statm.is_file() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20 if pages else 0.0


@click.command()
@click.option("--num", type=click.IntRange(min=1), default=100_000, show_default=True, help="Requests.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which ones.")
@click.option("--clients", type=click.IntRange(min=1), default=4, show_default=True, help="Connections at once.")
@click.option("--engine", default="echo", show_default=True, help="Of the server: llamacpp, transformers ...")
@click.option("--model", help="Of the server, for an engine that has one.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def cli(num: int, seed: int, clients: int, engine: str, model: str | None, arguments: tuple[str, ...]) -> None:
    """Torture a server with requests."""
    question = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 8}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started_with = [*small_server(folder, engine, model), *arguments]
        port, process, log = stack.enter_context(server(folder, started_with))
        schema = get(port, "/openapi.json")
        torture(port, min(num // 10 + 1, 1000), seed + 1, clients, schema)  # to warm up
        before, started = memory_mib(process.pid), time.monotonic()
        outcome = torture(port, num, seed, clients, schema)
        seconds = time.monotonic() - started
        after = memory_mib(process.pid)
        answered = get(port, "/v1/chat/completions", question)
        alive = process.poll() is None and answered["choices"][0]["message"]["role"] == "assistant"
        errors = log.read_text(encoding="utf-8")
    click.echo(f"{num} requests in {seconds:.0f} s ({num / seconds:.0f}/s), seed {seed}")
    for status, count in sorted(outcome.statuses.items()):
        click.echo(f"  {status:>9}: {count}")
    click.echo(f"memory: {before:.0f} MiB before, {after:.0f} MiB after; the server is {'well' if alive else 'ill'}")
    traceback = "Traceback" in errors
    if traceback:
        click.echo(errors[-3000:])
    for problem in outcome.wrong:
        click.echo(f"WRONG {problem}"[:1000])
    sys.exit(1 if outcome.wrong or traceback or not alive else 0)


if __name__ == "__main__":
    cli()
