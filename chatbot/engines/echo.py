"""The echo engine: a fake that answers with the newest user message. For tests and dry runs; loads nothing.

A token is a word with the white space before it. It renders `role: content` lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions
from chatbot.engines.base import Delta, FinishReason, Generation, Usage, check_fits
from chatbot.streaming import until_stop


class EchoModel:
    """Repeats the newest user message word by word."""

    def __init__(self, name: str = "echo", context_length: int = 8192) -> None:
        self.name = name
        self.context_length = context_length

    def count_tokens(self, conversation: Conversation) -> int:
        """Words of the rendered prompt."""
        return len(_words(self.render(conversation)))

    def render(self, conversation: Conversation) -> str:
        """`role: content`, a line a message, and `assistant:` at the end."""
        return "".join(f"{message.role}: {message.content}\n" for message in conversation) + "assistant:"

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        """The newest user message."""
        users = [message.content for message in conversation if message.role == "user"]
        yield from self._say(users[-1] if users else "", self.count_tokens(conversation), generation)

    def complete(self, prompt: str, generation: Generation) -> Iterator[Delta]:
        """The prompt itself."""
        yield from self._say(prompt, len(_words(prompt)), generation)

    def _say(self, text: str, prompt_tokens: int, generation: Generation) -> Iterator[Delta]:
        check_fits(prompt_tokens, generation, self.context_length)
        words = _words(text)
        said = words[: generation.max_tokens]
        for piece in until_stop(said, generation.stop):
            yield Delta(piece)
        reason: FinishReason = "length" if len(words) > len(said) else "stop"
        yield Delta("", reason, Usage(prompt_tokens, len(said)))


def load(model: str, options: LoadOptions) -> EchoModel:
    """Nothing to load; `options` are for other engines."""
    del options
    return EchoModel(model)


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)
