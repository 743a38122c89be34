"""Many prompts through any chat model, several at a time: for evaluation and for making data."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from chatbot.conversation import Conversation
from chatbot.engines.base import ChatModel, FinishReason, Generation, TokenLogprob, Usage


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
    if num_threads < 1:
        raise ValueError(f"num_threads={num_threads} must be at least 1")
    return _generate_all(model, conversations, generation, num_threads)


def _generate_all(
    model: ChatModel, conversations: Iterable[Conversation], generation: Generation, num_threads: int
) -> Iterator[Answer]:
    stopped = threading.Event()
    begun: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="parley-many") as pool:
        try:
            for conversation in conversations:
                begun.append(pool.submit(_answer, model, conversation, generation, stopped))
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
