"""One answer of llama.cpp as an iterator over pieces of text: requests to a server in this process, no socket used.

A repetition penalty should count the answer's own tokens alone. llama.cpp has no such setting: it counts the newest
`repeat_last_n` tokens, be they the prompt's or the answer's. So where a penalty is set an answer is made by several
requests, each of an eighth of what was said so far (at least one token), which count just what was said when they
began. That is exact for the first 16 tokens; later the oldest ninth of the answer goes uncounted, and a word of the
prompt never counts. The key-value cache makes a request cost little (a millisecond or so).
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from chatbot.engines.base import Generation, TokenLogprob

_SEEDS = 2**32 - 1  # llama.cpp takes 32 bits, of which the highest number means any seed
_SHARE = 8  # a request makes 1/_SHARE of what was said so far
_LONGEST_CHARACTER = 8  # tokens, amply: a character has 4 bytes at most


class Turnstile:
    """Lets `places` callers in at a time, in the order in which they came."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Wait for a place and hold it."""
        mine = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                mine.set()
            else:
                self._waiting.append(mine)
        try:
            mine.wait()
            yield
        finally:
            with self._lock:
                if not mine.is_set():
                    self._waiting.remove(mine)  # interrupted while it waited
                elif self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._free += 1


@dataclass(frozen=True)
class _Step:
    """A piece of text, how many tokens ended in it, their ids as far as known, and their log-probabilities."""

    text: str
    count: int
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


class Answer:
    """Iterates over pieces of text. Meanwhile `count` tokens were made, `cached` of the prompt's were not run again,
    `ended` by an end-of-text token; `logprobs` are those of the newest piece. Closing the iterator stops llama.cpp."""

    def __init__(
        self,
        server: Any,
        encode: Callable[[str], list[int]],
        prompt_ids: Sequence[int],
        generation: Generation,
        lora: Sequence[dict[str, float]] = (),
    ) -> None:
        self.count = 0
        self.cached = 0
        self.ended = False
        self.logprobs: tuple[TokenLogprob, ...] = ()
        self._server, self._encode, self._generation = server, encode, generation
        self._prompt_ids = list(prompt_ids)
        self._lora = list(lora)  # a scale for each loaded adapter
        self._chance = random.Random(generation.seed)  # noqa: S311  # no secret

    def __iter__(self) -> Iterator[str]:
        limit = self._generation.max_tokens
        said: list[int] = []
        while self.count < limit and not self.ended:
            before, length = self.count, limit - self.count
            if self._generation.repetition_penalty != 1:
                length = min(length, max(1, before // _SHARE))
            body = self._body(said)
            steps = 0
            for step in self._steps(body, length):
                steps += 1
                yield self._take(step, said)
            if self.count - before < self._made and before + self._made < limit and not self.ended:
                # It ended within a character, whose first tokens are not told: the same again, a little longer.
                longer = min(length + _LONGEST_CHARACTER, limit - before)
                for number, step in enumerate(self._steps(body, longer)):
                    if number >= steps:
                        yield self._take(step, said)
            if self.count == before:
                break  # not even one whole character before the limit
        self.logprobs = ()

    def _take(self, step: _Step, said: list[int]) -> str:
        said.extend(step.ids)
        self.count += step.count
        self.logprobs = step.logprobs
        return step.text

    def _body(self, said: Sequence[int]) -> dict[str, Any]:
        """The request that goes on after `said`."""
        chosen = self._generation
        body: dict[str, Any] = {
            "prompt": [*self._prompt_ids, *said],
            "stream": True,
            "return_progress": True,  # a sign of life while the prompt is read, at which it can be stopped
            "timings_per_token": True,
            "samplers": ["penalties", "temperature", "top_k", "top_p"],
            "temperature": 0.0 if chosen.greedy else chosen.temperature,
            "top_k": chosen.top_k,
            "top_p": chosen.top_p,
            "min_p": 0.0,
            "repeat_penalty": chosen.repetition_penalty,
            "repeat_last_n": len(said),
            "seed": self._chance.randrange(_SEEDS),
        }
        if chosen.logprobs is not None or chosen.repetition_penalty != 1:  # these carry the tokens' ids too
            body["n_probs"] = max(chosen.logprobs or 0, 1)
        if self._lora:
            body["lora"] = self._lora
        return body

    def _steps(self, body: dict[str, Any], length: int) -> Iterator[_Step]:
        """Run one request. Afterwards `_made` is how many tokens it made, the last ones possibly without text."""
        self._made = told = 0
        for chunk in _chunks(self._server, body | {"max_tokens": length}):
            choice = chunk["choices"][0]
            timings = chunk.get("timings", {})
            self._made = timings.get("predicted_n", self._made)
            if choice["finish_reason"]:
                self.ended = choice["finish_reason"] == "stop"
                if self.ended:  # by a token that is no text
                    self.count += self._made - told
            elif "prompt_progress" in chunk:
                if body["prompt"] == self._prompt_ids:  # the first request; later ones find all of it
                    self.cached = chunk["prompt_progress"]["cache"]
            else:
                yield self._step(choice, self._made - told)
                told = self._made

    def _step(self, choice: dict[str, Any], count: int) -> _Step:
        text = choice["text"]
        entries = (choice.get("logprobs") or {}).get("content", [])
        ids = [entry["id"] for entry in entries]
        # llama.cpp tells the last token of a character that took several: the usual ones stand for all of them.
        ids = ids if len(ids) == count else self._encode(text)
        num_top = self._generation.logprobs
        if num_top is None:
            return _Step(text, count, tuple(ids), ())
        logprobs = tuple(
            TokenLogprob(
                entry["token"],
                entry["logprob"],
                tuple((other["token"], other["logprob"]) for other in entry["top_logprobs"][:num_top]),
            )
            for entry in entries
        )
        return _Step(text, count, tuple(ids), logprobs)


def _chunks(server: Any, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The server's answers to one request, as they come. Closing the iterator cancels it at its next token."""
    received: SimpleQueue[dict[str, Any] | Exception | None] = SimpleQueue()
    cancelled = threading.Event()

    def receive(chunk: dict[str, Any]) -> bool:
        received.put(chunk)
        return cancelled.is_set()

    def run() -> None:
        try:
            server.handle_completions(body, receive)
        except Exception as error:
            received.put(error)
        received.put(None)

    # A daemon: the program may end while llama.cpp still reads a prompt that nobody waits for.
    threading.Thread(target=run, name="llama.cpp request", daemon=True).start()
    try:
        while (chunk := received.get()) is not None:
            if isinstance(chunk, Exception):
                raise chunk
            if "error" in chunk:
                raise ValueError(f"llama.cpp: {chunk['error'].get('message', chunk['error'])}")
            yield chunk
    finally:
        cancelled.set()
