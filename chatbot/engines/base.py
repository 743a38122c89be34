"""What every chat engine is: ChatModel, and the values that go in (Generation) and come out (Delta, Usage)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from chatbot.conversation import Conversation

FinishReason = Literal["stop", "length"]
MAX_LOGPROBS = 20  # as OpenAI's API has it


@dataclass(frozen=True)
class Generation:
    """How an answer is generated. Every field is checked; ValueError names value and limit.

    `sample` off means greedy: the most likely token each time. `temperature`, `top_k` (0: no limit) and `top_p`
    (1.0: no limit) act only when sampling. `repetition_penalty` 1.0 means none (Keskar et al. 2019, section 4.1); it
    counts the answer's own tokens, not the prompt's.
    `seed` None draws a new one each time. `stop` strings end the answer and are not part of it. `logprobs` asks for
    the log-probability of each token, and of that many of the likeliest beside it (0 to MAX_LOGPROBS); None: for none.
    """

    max_tokens: int = 256
    sample: bool = False
    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature:g} must be 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g} must be above 0 and at most 1 (no limit)")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty:g} must be above 0 (1 means none)")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must be a whole number of 64 bits, such as 1234")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs={self.logprobs} must be from 0 to {MAX_LOGPROBS}")

    @property
    def greedy(self) -> bool:
        """True where the outcome does not depend on chance."""
        return not self.sample or self.temperature == 0


@dataclass(frozen=True)
class Usage:
    """Tokens read and tokens written; `cached_tokens` of those read were in the key-value cache already."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer as text, its natural log-probability before sampling settings act, and the likeliest
    tokens in its place, as (text, log-probability), best first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. The last one carries `finish_reason` (stop, or length at max_tokens) and `usage`.

    `logprobs` are those of the tokens that ended in this piece, where the generation asked for them.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class ChatModel(Protocol):
    """A chat engine with a model loaded.

    Every method may be called from several threads at once. An engine that can runs their generations together; one
    that cannot runs them one after the other, in the order in which they came.
    """

    @property
    def name(self) -> str:
        """The model's name, as the user gave it."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    def count_tokens(self, conversation: Conversation) -> int:
        """Tokens of the prompt that `stream` would run."""
        ...

    def render(self, conversation: Conversation) -> str:
        """The prompt as the model sees it, for people to read."""
        ...

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        """The assistant's next message, piece by piece. Closing the iterator stops the work."""
        ...

    def complete(self, prompt: str, generation: Generation) -> Iterator[Delta]:
        """Plain continuation of `prompt`: no chat template."""
        ...


def check_fits(prompt_tokens: int, generation: Generation, context_length: int) -> None:
    """Raise ValueError where prompt and answer together exceed the context."""
    if prompt_tokens + generation.max_tokens > context_length:
        raise ValueError(
            f"a prompt of {prompt_tokens} tokens and max_tokens={generation.max_tokens} exceed the model's context "
            f"of {context_length}; shorten the prompt or lower --max-tokens"
        )
