"""Many clients of the server at once, for minutes: no errors, steady memory, and nobody is overtaken.

Run: python -m tools.bench.clients [--clients 64] [--seconds 300] [-- FLAGS OF THE SERVER]

Each client asks, waits for the answer, and asks again. The wait of each request is measured from the moment it is sent;
since the server answers in order of arrival, no request waits much longer than it takes to answer as many as there are
clients. The server's memory is read after a warm-up of a fifth of the time, and at the end.
"""

from __future__ import annotations

import collections
import contextlib
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import httpx

from common.cli import OneLineCommand
from tools.torture.requests import memory_mib, server, small_server

QUESTIONS = ("What is Zurich?", "When did Zurich join the Swiss Confederation?", "What do people in Zurich speak?")


class Clients:
    """What the clients saw: how many answers of each status, and how long each took in seconds, in order."""

    def __init__(self, port: int, seconds: float, max_tokens: int) -> None:
        self.statuses: collections.Counter[int] = collections.Counter()
        self.waits: list[float] = []
        self.per_client: collections.Counter[int] = collections.Counter()
        self._port, self._max_tokens = port, max_tokens
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()

    def run(self, num: int) -> None:
        """All of them, until the time is up."""
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(num)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=600) as client:
            asked = 0
            while time.monotonic() < self._end:
                question = QUESTIONS[(number + asked) % len(QUESTIONS)]
                body: dict[str, Any] = {"messages": [{"role": "user", "content": question}]}
                started = time.monotonic()
                response = client.post("/v1/chat/completions", json=body | {"max_tokens": self._max_tokens})
                asked += 1
                with self._lock:
                    self.statuses[response.status_code] += 1
                    self.waits.append(time.monotonic() - started)
                    self.per_client[number] += 1


@click.command(cls=OneLineCommand)
@click.option("--clients", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=1), default=300.0, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1), default=16, show_default=True)
@click.argument("flags", nargs=-1)
def cli(clients: int, seconds: float, max_tokens: int, flags: tuple[str, ...]) -> None:
    """Keep the server busy and print what came of it."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port, process, log = stack.enter_context(server(folder, list(flags) or small_server(folder, "echo", None)))
        memory = []

        def watch() -> None:
            time.sleep(seconds / 5)
            memory.append(memory_mib(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        seen = Clients(port, seconds, max_tokens)
        seen.run(clients)
        watcher.join()
        memory.append(memory_mib(process.pid))
        broken = "Traceback" in log.read_text()
    waits = sorted(seen.waits)
    shown = ", ".join(f"{status}: {number}" for status, number in sorted(seen.statuses.items()))
    fewest, most = min(seen.per_client.values()), max(seen.per_client.values())
    click.echo(
        f"{clients} clients, {seconds:.0f} s: {len(waits)} answers ({shown}), {len(waits) / seconds:.1f} a second"
    )
    click.echo(
        f"wait: median {waits[len(waits) // 2]:.2f} s, longest {waits[-1]:.2f} s; a client got {fewest} to {most}"
    )
    click.echo(f"memory: {memory[0]:.0f} MiB after a fifth of the time, {memory[1]:.0f} at the end ", nl=False)
    click.echo(f"({memory[1] / memory[0] - 1:+.1%}); tracebacks in the log: {'YES' if broken else 'none'}")


if __name__ == "__main__":
    cli()
