"""Many prompts through any chat model, several at a time: for evaluation and for making data."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from chatbot.conversation import Conversation
from chatbot.engines.base import ChatModel, FinishReason, Generation, TokenLogprob, Usage

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


def generate_all(
    model: ChatModel, conversations: Iterable[Conversation], generation: Generation, num_threads: int = 8
) -> Iterator[Answer]:
    """The answers to `conversations`, in their order; at most `num_threads` are in the making.

    `conversations` may be endless: it is read only a little ahead. An error is raised at the place of the answer that
    it prevented, and ends the work; so does closing the iterator. ValueError for num_threads below 1.
    """
    stopped = threading.Event()
    return in_order(lambda each: _answer(model, each, generation, stopped), conversations, num_threads, stopped)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int, stopped: threading.Event
) -> Iterator[Result]:
    """`work(item)` for each of `items`, in threads, in their order; else as `generate_all`. `stopped` is set when
    nothing more is wanted, so that work that goes on can end."""
    if num_threads < 1:
        raise ValueError(f"num_threads={num_threads} must be at least 1")
    return _in_order(work, items, num_threads, stopped)


def _in_order(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int, stopped: threading.Event
) -> Iterator[Result]:
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="parley-many") as pool:
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > 2 * num_threads:  # the slowest must not leave the others idle
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            stopped.set()
            for each in begun:
                each.cancel()


def _answer(model: ChatModel, conversation: Conversation, generation: Generation, stopped: threading.Event) -> Answer:
    pieces: list[str] = []
    logprobs: list[TokenLogprob] = []
    reason: FinishReason = "stop"
    usage = None
    stream = model.stream(conversation, generation)
    try:
        for delta in stream:
            pieces.append(delta.text)
            logprobs += delta.logprobs
            reason, usage = delta.finish_reason or reason, delta.usage or usage
            if stopped.is_set():
                break
    finally:
        if close := getattr(stream, "close", None):
            close()
    return Answer("".join(pieces), reason, usage, tuple(logprobs))
