"""Message and Conversation: what was said, immutable; to and from OpenAI dicts and JSON Lines.

The one data shape of Parley is `{"messages": [{"role": ..., "content": ...}]}`: a server request, a saved chat and a
training row are all this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.files import atomic_write
from moderation.types import Verdict
from retrieval.types import Passage

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One thing said. `passages` are what retrieval found for it; they are shown to the model but are not its words.
    `verdicts`, of an answer, are what moderation said while it was made: (direction, verdict) pairs."""

    role: str
    content: str
    passages: tuple[Passage, ...] = ()
    verdicts: tuple[tuple[str, Verdict], ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"unknown role '{self.role}'; choose one of: {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(f"a message's content must be text, not {type(self.content).__name__}")
        try:
            self.content.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                "a message's content holds half a character (a lone surrogate), which is no text"
            ) from None

    def to_dict(self) -> dict[str, str]:
        """The OpenAI form: role and content."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """Messages in order. Every method returns a new conversation."""

    messages: tuple[Message, ...] = ()

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def add(self, role: str, content: str, passages: Sequence[Passage] = ()) -> Conversation:
        """This conversation with one more message."""
        return Conversation((*self.messages, Message(role, content, tuple(passages))))

    @property
    def last(self) -> Message:
        """The newest message; ValueError when there is none."""
        if not self.messages:
            raise ValueError("the conversation is empty; add a user message first")
        return self.messages[-1]

    def last_index(self, role: str) -> int | None:
        """Where the newest message of `role` stands, or None."""
        found = [i for i, message in enumerate(self.messages) if message.role == role]
        return found[-1] if found else None

    def upto(self, count: int) -> Conversation:
        """The first `count` messages."""
        return Conversation(self.messages[:count])

    def with_last(self, **changes: Any) -> Conversation:
        """This conversation with fields of its newest message changed."""
        return Conversation((*self.messages[:-1], replace(self.last, **changes)))

    def to_dicts(self) -> list[dict[str, str]]:
        """OpenAI messages."""
        return [message.to_dict() for message in self.messages]

    @staticmethod
    def from_dicts(messages: Iterable[Mapping[str, Any]]) -> Conversation:
        """From OpenAI messages; a content given as text parts is joined. ValueError names the bad message's number."""
        return Conversation(tuple(_message(number, each) for number, each in enumerate(messages, start=1)))

    def to_record(self) -> dict[str, Any]:
        """Everything, passages and verdicts included, as JSON values."""
        return {"messages": [_record(message) for message in self.messages]}


def _record(message: Message) -> dict[str, Any]:
    record: dict[str, Any] = message.to_dict()
    if message.passages:
        record["passages"] = [asdict(passage) for passage in message.passages]
    if message.verdicts:
        record["verdicts"] = verdict_records(message.verdicts)
    return record


def verdict_records(verdicts: Iterable[tuple[str, Verdict]]) -> dict[str, Any]:
    """(direction, verdict) pairs as JSON values."""
    return {direction: asdict(verdict) for direction, verdict in verdicts}


def _message(number: int, each: object) -> Message:
    if not isinstance(each, Mapping):
        raise ValueError(f"message {number} must be an object with role and content, not {type(each).__name__}")
    missing = [key for key in ("role", "content") if key not in each]
    if missing:
        raise ValueError(f"message {number} lacks {' and '.join(missing)}")
    try:
        passages = tuple(Passage(**each_passage) for each_passage in each.get("passages", ()))
        verdicts = tuple((direction, _verdict(**said)) for direction, said in each.get("verdicts", {}).items())
        return Message(each["role"], _text(each["content"]), passages, verdicts)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"message {number}: {error}") from None


def _verdict(labels: Sequence[str], **rest: Any) -> Verdict:
    return Verdict(labels=tuple(labels), **rest)  # JSON has lists only


def _text(content: object) -> str:
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(parts) != len(content) or not all(isinstance(part.get("text"), str) for part in parts):
            raise ValueError("only text parts are understood in a message's content")
        return "".join(part["text"] for part in parts)
    return content  # type: ignore[return-value]  # Message checks that it is text


def save_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Write JSON Lines, one conversation a line, atomically."""
    with atomic_write(path) as file:
        for conversation in conversations:
            file.write(json.dumps(conversation.to_record(), ensure_ascii=False) + "\n")


def load_conversations(path: Path) -> list[Conversation]:
    """Read what `save_conversations` wrote, or any JSON Lines of `{"messages": [...]}`.

    Raises ValueError that names file and line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    return [_conversation(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _conversation(path: Path, number: int, line: bytes) -> Conversation:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}:{number}: not a line of JSON in UTF-8") from None
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise ValueError(f"{path}:{number}: no list of messages; each line must be {{'messages': [...]}}")
    try:
        return Conversation.from_dicts(record["messages"])
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from None
