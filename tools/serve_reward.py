"""Serve a reward model over HTTP: batched scores for evaluation, rejection sampling and RL on other machines.

Run: python tools/serve_reward.py runs/reward --port 8010
     curl http://127.0.0.1:8010/reward -H 'Content-Type: application/json' \\
          -d '{"items": [{"prompt": "Hi", "responses": ["Hello!", "What?"]}]}'

training/remote_reward.py is its client, and says what requests and answers hold. Requests that come together are
scored together, by one thread that owns the model. It listens on this machine only, unless --host says otherwise, and
then asks for a key (PARLEY_API_KEY).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, cast

import click

from chatbot.api.errors import ApiError
from chatbot.conversation import Conversation
from common.cli import OneLineCommand

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from chatbot.server.state import State

MAX_RESPONSES = 1024  # of one request
_AT_ONCE = 256  # responses that are taken off the queue together
_ALLOWED = {"prompt", "responses"}


class Scorer(Protocol):
    """What a reward model must do: see training.scoring.RewardModel."""

    def examples(self, prompt: Conversation | None, responses: Sequence[str]) -> list[Any]:
        """What is scored for each response. Raises ValueError where the prompt leaves no room for any."""
        ...

    def scores_of(self, examples: list[Any]) -> list[float]:
        """A score for each."""
        ...


Result = tuple[float | None, str | None]  # a score, or the reason why there is none


@dataclass(frozen=True)
class Item:
    """A prompt, None where the responses are whole texts, and responses to it."""

    prompt: Conversation | None
    responses: tuple[str, ...]


@dataclass
class Job:
    """A request; `done` becomes the results for its responses, in order."""

    items: list[Item]
    done: Future[list[Result]] = field(default_factory=Future)

    @property
    def num_responses(self) -> int:
        """Of all items."""
        return sum(len(item.responses) for item in self.items)


class Batcher:
    """Scores jobs, together where several wait. `max_waiting` responses may wait; more are refused."""

    def __init__(self, model: Scorer, max_waiting: int = 8 * MAX_RESPONSES) -> None:
        self._model, self._max_waiting = model, max_waiting
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="parley-reward", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue it. ApiError where too much waits already."""
        with self._lock:
            if self._waiting and self._waiting + job.num_responses > self._max_waiting:
                problem = f"{self._waiting} responses wait, and this server's limit is {self._max_waiting}; try later"
                raise ApiError(429, problem, "queue_full", headers={"Retry-After": "1"})
            self._waiting += job.num_responses
        self._jobs.put(job)

    def close(self) -> None:
        """No more jobs."""
        self._jobs.put(None)
        self._thread.join(5)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while sum(each.num_responses for each in jobs) < _AT_ONCE:
                try:
                    another = self._jobs.get_nowait()
                except Empty:
                    break
                if another is None:
                    self._jobs.put(None)
                    break
                jobs.append(another)
            self._score(jobs)

    def _score(self, all_jobs: list[Job]) -> None:
        jobs = [job for job in all_jobs if job.done.set_running_or_notify_cancel()]  # the others' clients are gone
        try:
            found = iter(_scored(self._model, [item for job in jobs for item in job.items]))
            for job in jobs:
                job.done.set_result([next(found) for _ in range(job.num_responses)])
        except Exception as error:  # the thread must live on; every request is told
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)
        finally:
            with self._lock:
                self._waiting -= sum(job.num_responses for job in all_jobs)


def _scored(model: Scorer, items: list[Item]) -> list[Result]:
    """(score, None) or (None, reason) for every response; those of like length run together."""
    found: list[Result] = []
    examples: dict[int, Any] = {}
    for item in items:
        try:
            examples |= enumerate(model.examples(item.prompt, item.responses), start=len(found))
            found += [(None, None)] * len(item.responses)
        except ValueError as error:
            found += [(None, str(error))] * len(item.responses)
    by_length = sorted(examples, key=lambda number: len(examples[number].ids))
    scores = model.scores_of([examples[number] for number in by_length])
    for number, score in zip(by_length, scores, strict=True):
        finite = math.isfinite(score)
        found[number] = (score, None) if finite else (None, f"the model gave {score}, which is no finite number")
    return found


def read_items(body: bytes) -> list[Item]:
    """The items of a request. ApiError, which names the item, for anything that is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the request's body is no JSON", "invalid_json") from None
    given = value.get("items") if isinstance(value, dict) else None
    if not isinstance(given, list) or not given:
        raise ApiError(400, 'the request must be {"items": [{"prompt": ..., "responses": [...]}]}', param="items")
    items = [_item(number, each) for number, each in enumerate(given)]
    if (num := sum(len(item.responses) for item in items)) > MAX_RESPONSES:
        raise ApiError(413, f"{num} responses; a request may hold {MAX_RESPONSES}: send several", param="items")
    return items


def _item(number: int, given: Any) -> Item:
    place = f"items[{number}]"
    if not isinstance(given, Mapping) or not isinstance(given.get("responses"), list):
        raise ApiError(400, f"{place} must be an object with prompt and responses, a list of texts", param=place)
    if unknown := given.keys() - _ALLOWED:
        raise ApiError(400, f"{place} has an unknown field '{min(unknown)}'; it has prompt and responses", param=place)
    try:
        # A text is what the user said, whatever it looks like; Conversation checks that it is text at all.
        responses = Conversation.from_dicts({"role": "assistant", "content": each} for each in given["responses"])
        return Item(_prompt(given.get("prompt")), tuple(each.content for each in responses))
    except (TypeError, ValueError) as error:
        raise ApiError(400, f"{place}: {error}", param=place) from None


def _prompt(given: Any) -> Conversation | None:
    if given is None or isinstance(given, str):
        return None if given is None else Conversation().add("user", given)
    if not isinstance(given, list):
        raise ValueError(f"the prompt must be text, a list of messages or null, not {type(given).__name__}")
    prompt = Conversation.from_dicts(given)
    if prompt.last.role != "user":
        raise ValueError("the prompt must end with the user's message")
    return prompt


def create_app(name: str, batcher: Batcher, state: State) -> Starlette:
    """The application: POST /reward and GET /health, behind the chat server's gate and door."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    from chatbot.server.errors import error_response, to_json
    from chatbot.server.gate import Door, Gate

    def answer(value: Any) -> Response:
        return Response(to_json(value), media_type="application/json")

    async def reward(request: Request) -> Response:
        job = Job(read_items(await request.body()))
        batcher.submit(job)
        scored: list[Result] = await asyncio.wrap_future(job.done)
        results = iter(scored)
        by_item = [[next(results) for _ in item.responses] for item in job.items]
        value: dict[str, Any] = {"rewards": [[score for score, _ in each] for each in by_item], "model": name}
        problems = [
            {"item": number, "response": place, "message": reason}
            for number, each in enumerate(by_item)
            for place, (_, reason) in enumerate(each)
            if reason
        ]
        return answer(value | {"problems": problems} if problems else value)

    async def health(_: Request) -> Response:
        return answer({"status": "ok", "model": name})

    async def refused(request: Request, error: Exception) -> Response:
        response: Response = error_response(error, request.scope["parley.id"])
        return response

    async def no_such_place(request: Request, error: Exception) -> Response:
        status, detail = getattr(error, "status_code", 404), str(getattr(error, "detail", error))
        return await refused(request, ApiError(status, detail))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = Starlette(
        routes=[Route("/reward", reward, methods=["POST"]), Route("/health", health)],
        exception_handlers={ValueError: refused, 404: no_such_place, 405: no_such_place},
        lifespan=lifespan,
    )
    app.add_middleware(Door, state=state)
    app.add_middleware(Gate, state=state)  # the last added is the first that a request meets
    return app


def open_state(host: str, body_bytes: int) -> State:
    """Who may ask, and how much. Raises ValueError where others are let in without a key."""
    from chatbot.server.gate import LOCAL_HOSTS
    from chatbot.server.keys import is_loopback, open_keyring
    from chatbot.server.limits import Limits
    from chatbot.server.state import State

    keyring = open_keyring(None, os.environ.get("PARLEY_API_KEY"), [])
    if not is_loopback(host) and not len(keyring):
        raise ValueError(f"--host {host} lets other machines in, and nobody would need a key; set PARLEY_API_KEY")
    hosts = LOCAL_HOSTS | {host.lower()} if is_loopback(host) else None
    return State(cast(Any, None), keyring, Limits(body_bytes=body_bytes), hosts)  # no chatbot behind this gate


@click.command(cls=OneLineCommand, context_settings={"show_default": True})
@click.argument("model")
@click.option("--host", default="127.0.0.1", help="Address to listen on; others than this machine's need a key.")
@click.option("--port", type=click.IntRange(min=0, max=65535), default=8010, help="Port to listen on.")
@click.option("--device", help="cpu, cuda:1 ...  [default: the first GPU, else the CPU]")
@click.option(
    "--max-length", type=click.IntRange(min=2), help="Tokens of prompt and answer.  [default: as in training]"
)
@click.option("--body-bytes", type=click.IntRange(min=1), default=8 << 20, help="Largest request.")
def cli(model: str, host: str, port: int, device: str | None, max_length: int | None, body_bytes: int) -> None:
    """Serve MODEL, a run of method=reward or any sequence classifier with one label, until a signal ends it. Clients
    send the key in PARLEY_API_KEY, where that is set here."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ValueError("the server needs more packages; install them with: pip install 'parley[server]'") from None
    from chatbot.server.commands import check_can_listen
    from chatbot.server.serving import serve
    from training.scoring import open_reward_model

    state = open_state(host, body_bytes)
    check_can_listen(host, port)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    batcher = Batcher(open_reward_model(model, device, max_length))
    click.echo(f"Scores on http://{host}:{port}/reward (Ctrl-C ends)", err=True)
    serve(cast(Any, create_app(model, batcher, state)), state, host, port)


if __name__ == "__main__":
    cli()
