"""Watch: what may end a request before its model does, and what is counted on the way.

The model runs in a thread that nobody can interrupt. So the watch sits between bot and engine, and looks up after
every token: it ends the work of a client that is gone, and ends an answer whose time is up as `max_tokens` would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from chatbot.api.errors import ApiError, Cancelled
from chatbot.conversation import Conversation
from chatbot.engines.base import ChatModel, Delta, Generation, TokenLogprob, Usage


class Watch:
    """One request on its way. `seconds` is its time, from now on. Times are those of `time.monotonic`."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.cancelled = False
        self.first_token: float | None = None  # when it came
        self.prompt_tokens = 0
        self.completion_tokens = 0

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, not below 0."""
        return max(self.deadline - time.monotonic(), 0.0)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancelled = True

    def hurry(self) -> None:
        """The time is up now: an answer ends with the token at work."""
        self.deadline = min(self.deadline, time.monotonic())

    def check(self) -> None:
        """Raise where there is no point in going on: Cancelled, or ApiError where the time is up."""
        if self.cancelled:
            raise Cancelled
        if self.remaining == 0:
            raise too_late()

    def note_text(self) -> None:
        """A piece of the answer is ready."""
        if self.first_token is None:
            self.first_token = time.monotonic()

    def note_usage(self, usage: Usage, again: bool = False) -> None:
        """Tokens of one answer; `again`: to a prompt that was counted before."""
        self.prompt_tokens += 0 if again else usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens


def too_late() -> ApiError:
    """The answer did not begin within the request's time."""
    return ApiError(408, "the request's time is up; try again, or with a shorter prompt", "timeout")


class WatchedModel:
    """A `ChatModel` under a watch. `take_logprobs` gives what came since it was last asked."""

    def __init__(self, model: ChatModel, watch: Watch) -> None:
        self._model, self._watch = model, watch
        self._logprobs: list[TokenLogprob] = []

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def context_length(self) -> int:
        return self._model.context_length

    def count_tokens(self, conversation: Conversation) -> int:
        return self._model.count_tokens(conversation)

    def render(self, conversation: Conversation) -> str:
        return self._model.render(conversation)

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        """See `ChatModel`."""
        deltas = self._model.stream(conversation, generation)
        return self._watched(deltas, generation, lambda: self._model.count_tokens(conversation))

    def complete(self, prompt: str, generation: Generation) -> Iterator[Delta]:
        """See `ChatModel`."""
        deltas = self._model.complete(prompt, generation)
        return self._watched(deltas, generation, lambda: count_plain(self._model, prompt))

    def take_logprobs(self) -> list[TokenLogprob]:
        """The log-probabilities of the tokens that came since the last call."""
        taken, self._logprobs = self._logprobs, []
        return taken

    def _watched(self, deltas: Iterator[Delta], generation: Generation, count: Callable[[], int]) -> Iterator[Delta]:
        num_pieces = 0
        self._logprobs = []
        try:
            self._watch.check()
            for delta in deltas:
                if self._watch.cancelled:
                    raise Cancelled
                if generation.logprobs is not None and delta.text and not delta.logprobs and not self._logprobs:
                    raise ApiError(400, "this server's engine gives no log-probabilities; leave logprobs out", None)
                self._logprobs.extend(delta.logprobs)
                num_pieces += bool(delta.text)
                yield delta
                if delta.finish_reason is None and self._watch.remaining == 0:
                    # A piece is a token, but for the few that were held back.
                    yield Delta("", "length", Usage(count(), num_pieces))
                    return
        finally:
            if (close := getattr(deltas, "close", None)) is not None:
                close()


def count_plain(model: ChatModel, text: str) -> int:
    """About how many tokens a text is that no template surrounds: at most those of a message, which adds a few."""
    return model.count_tokens(Conversation().add("user", text))
