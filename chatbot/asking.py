"""One question to a chat model, one answer: what `moderation` needs of a chat engine, behind `parley.asker`."""

from __future__ import annotations

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import ChatModel, Generation


class ChatAsker:
    """Asks a chat model one thing at a time, greedily. As safe for several threads as the model is."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model

    def reply(self, text: str, max_tokens: int) -> str:
        """The answer to a user's message of this text. The engine's rendering keeps it from forging a turn."""
        deltas = self.model.stream(_conversation(text), Generation(max_tokens=max_tokens))
        return "".join(delta.text for delta in deltas)

    def complete(self, prompt: str, max_tokens: int, stop: str) -> str:
        """The plain continuation of `prompt`, without a template, up to the first `stop`."""
        deltas = self.model.complete(prompt, Generation(max_tokens=max_tokens, stop=(stop,)))
        return "".join(delta.text for delta in deltas)

    def fits(self, text: str, max_tokens: int) -> bool:
        """Whether a user's message of this text and an answer fit into the model's context."""
        return self.model.count_tokens(_conversation(text)) + max_tokens <= self.model.context_length


def open_asker(engine: str, model: str, device: str | None) -> ChatAsker:
    """The chat model `model`, loaded with the engine of that name. Raises ValueError where it cannot be."""
    return ChatAsker(open_engine(engine, model, LoadOptions(device=device)))


def _conversation(text: str) -> Conversation:
    return Conversation().add("user", text)
