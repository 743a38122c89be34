"""Many requests to a chat model, none of them paid for twice: answers are kept on disk under the hash of their request.

So a command that was killed, run again, asks only for what is missing, and comes to the file that an unkilled run
would have written. What is drawn by chance is drawn with a seed that follows from the request's number.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

from chatbot.conversation import Conversation
from chatbot.engines import many
from chatbot.engines.base import ChatModel, Delta, Generation, Usage
from chatbot.engines.openai_transport import BrokenOffError, RefusedError
from common.files import read_json, write_json

TRIES, FIRST_WAIT = 4, 0.5  # for answers that broke off; seconds, doubled each time
_SECONDS = 5.0  # between two lines of progress
_REFUSED = (400, 413, 422)  # by a service: this request, and not all
_FIELDS = {"text", "cut", "prompt_tokens", "completion_tokens"}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reply:
    """An answer, `cut` where it came to the limit of tokens; or the `problem` that prevented it."""

    text: str
    cut: bool = False
    problem: str | None = None


@dataclass
class Tally:
    """What was asked: requests that went to the model, those whose answers were there already, tokens of the former."""

    asked: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count; several threads may."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def line(self, price_in: float, price_out: float) -> str:
        """For people; prices are of a million tokens."""
        said = (
            f"{self.asked + self.kept:,} requests, {self.kept:,} of them answered before; "
            f"{self.prompt_tokens:,} tokens read, {self.completion_tokens:,} written"
        )
        cost = (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6
        return said + (f"; cost {cost:,.4f}" if price_in or price_out else "")


class Stopped(Exception):  # noqa: N818  # no error: nobody waits for the answer any more
    """The work was ended from outside."""


class Generator:
    """Asks a model that `open_model` opens when the first answer is missing. `identity` is all that answers depend on,
    besides request and generation; `cache` the folder of answers."""

    def __init__(
        self,
        open_model: Callable[[], ChatModel],
        identity: Mapping[str, Any],
        generation: Generation,
        cache: Path,
        num_threads: int = 8,
    ) -> None:
        self._open, self._identity, self._cache = open_model, dict(identity), cache
        self.generation, self.num_threads, self.tally = generation, num_threads, Tally()
        self._stopped, self._opening = threading.Event(), threading.Lock()

    @cached_property
    def _opened(self) -> ChatModel:
        return self._open()

    @property
    def model(self) -> ChatModel:
        """The model, opened."""
        with self._opening:  # a cached property alone may run twice
            return self._opened

    def ask(self, conversation: Conversation, number: int = 0, greedy: bool = False) -> Reply:
        """The model's answer. Requests that are alike but for their `number` are different draws, where it samples;
        with `greedy` it does not.

        What concerns this request alone (too long for the context, refused by the service) is the reply's problem;
        everything else is raised.
        """
        generation = replace(self.generation, sample=False) if greedy else self.generation
        if not generation.greedy:
            generation = replace(generation, seed=((generation.seed or 0) * 1_000_003 + number) % 2**31)
        path = self._path(conversation, generation)
        if path.is_file():
            self.tally.add(kept=1)
            return _read(path)
        model = self.model
        if (num := model.count_tokens(conversation)) + generation.max_tokens > model.context_length:
            limit = f"the model's context of {model.context_length:,}"
            return Reply("", problem=f"{num:,} tokens and {generation.max_tokens:,} to answer with exceed {limit}")
        try:
            reply, usage = self._answer(conversation, generation)
        except RefusedError as refused:
            if refused.status not in _REFUSED:
                raise
            return Reply("", problem=str(refused))
        used = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        self.tally.add(asked=1, **used)
        write_json(path, {"text": reply.text, "cut": reply.cut, **used})
        return reply

    def in_order(
        self, work: Callable[[Item], Result], items: Iterable[Item], total: int | None = None
    ) -> Iterator[Result]:
        """`work(item)` for all items, several at a time, in their order; says now and then how far it is."""
        self._stopped = threading.Event()
        begun = told = time.monotonic()
        for number, result in enumerate(many.in_order(work, items, self.num_threads, self._stopped), start=1):
            if (now := time.monotonic()) - told > _SECONDS:
                told, of = now, f" of {total:,}" if total else ""
                click.echo(f"{number:,}{of} done, {number / (now - begun):.2f} a second", err=True)
            yield result

    def _path(self, conversation: Conversation, generation: Generation) -> Path:
        request = [self._identity, asdict(generation), conversation.to_dicts()]
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return self._cache / key[:2] / f"{key}.json"

    def _answer(self, conversation: Conversation, generation: Generation) -> tuple[Reply, Usage]:
        for number in range(TRIES):
            try:
                return self._whole(self.model.stream(conversation, generation))
            except BrokenOffError:
                if number + 1 == TRIES:
                    raise
                self._stopped.wait(FIRST_WAIT * 2**number)
        raise AssertionError("at least one try")

    def _whole(self, stream: Iterator[Delta]) -> tuple[Reply, Usage]:
        pieces, cut, usage = [], False, Usage(0, 0)
        for delta in stream:
            if self._stopped.is_set():
                raise Stopped
            pieces.append(delta.text)
            cut, usage = delta.finish_reason == "length", delta.usage or usage
        return Reply("".join(pieces), cut), usage


def _read(path: Path) -> Reply:
    kept = read_json(path)
    if not isinstance(kept, dict) or kept.keys() != _FIELDS or not isinstance(kept["text"], str):
        raise ValueError(f"{path} is no answer that was kept; remove it")
    return Reply(kept["text"], bool(kept["cut"]))
