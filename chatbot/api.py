"""The OpenAI chat-completions API as functions from dicts to dicts: no sockets here, server.py has those.

An answer has four fields more than OpenAI's: `sources`, the passages it was made from; `withheld`, passages that were
found and kept from the model; `notices`, what was left out or flagged; and `verdicts`, what moderation said.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chatbot.conversation import Conversation
from chatbot.core import Bot, Done, Notice, Reply, Text, Turn
from chatbot.engines.base import Generation
from chatbot.records import evidence

# What a request may hold. `model` is read and not used, since there is one; the last three only label a request.
_FIELDS = (
    *("messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "seed", "stop", "user", "metadata", "store"),
)
# Fields that clients send although they ask for nothing: accepted with these values, null or empty.
_NEUTRAL = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "parallel_tool_calls": True}


@dataclass(frozen=True)
class Request:
    """A checked request: the bot with this request's settings, and what it will do."""

    id: str
    created: int
    bot: Bot
    turn: Turn
    stream: bool
    include_usage: bool


def read_request(bot: Bot, body: Mapping[str, Any]) -> Request:
    """Check a chat-completions request and prepare its answer. Raises ValueError that names the field."""
    for name, value in body.items():
        if name not in _FIELDS and value and value != _NEUTRAL.get(name):
            raise ValueError(f"{name}={value!r} is not supported; leave it out (known: {', '.join(_FIELDS)})")
    if not isinstance(body.get("stream", False), bool):
        raise ValueError(f"stream={body['stream']!r} must be true or false")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list with at least one message")
    conversation = Conversation.from_dicts(messages)
    if conversation.last.role != "user":
        raise ValueError("the last message must be the user's")
    configured = replace(bot, generation=_generation(bot.generation, body))
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ValueError(f"stream_options={options!r} must be an object")
    return Request(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        bot=configured,
        turn=configured.prepare(conversation, moderate_all=True),
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
    )


def _generation(default: Generation, body: Mapping[str, Any]) -> Generation:
    changes: dict[str, Any] = {}
    if (limit := body.get("max_completion_tokens", body.get("max_tokens"))) is not None:
        changes["max_tokens"] = _typed("max_tokens", limit, int)
    for name, kind in (("temperature", float), ("top_p", float), ("seed", int)):
        if body.get(name) is not None:
            changes[name] = _typed(name, body[name], kind)
    if changes.keys() & {"temperature", "top_p"}:
        changes["sample"] = changes.get("temperature", default.temperature) > 0
    if (stop := body.get("stop")) is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops):
            raise ValueError("stop must be a text or a list of texts")
        changes["stop"] = tuple(stops)
    return replace(default, **changes)


def _typed(name: str, value: object, kind: type[int] | type[float]) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ValueError(f"{name}={value!r} must be a {'whole ' if kind is int else ''}number")
    try:
        return kind(value)
    except OverflowError:
        raise ValueError(f"{name} is too large a number") from None


def complete(request: Request) -> dict[str, Any]:
    """The whole answer as one `chat.completion` object."""
    events = list(request.bot.stream(request.turn))
    reply = next(event.reply for event in events if isinstance(event, Done))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text},
        "finish_reason": _finish_reason(reply),
    }
    return (
        _envelope(request, "chat.completion")
        | {
            "choices": [choice],
            "usage": _usage(reply),
        }
        | evidence(reply, [event.text for event in events if isinstance(event, Notice)])
    )


def stream(request: Request) -> Generator[dict[str, Any], None, None]:
    """The answer as `chat.completion.chunk` objects; the last one with a choice carries finish reason and sources."""
    yield _chunk(request, {"role": "assistant", "content": ""})
    notices: list[str] = []
    for event in request.bot.stream(request.turn):
        if isinstance(event, Text):
            yield _chunk(request, {"content": event.text})
        elif isinstance(event, Notice):
            notices.append(event.text)
        elif isinstance(event, Done):
            yield _chunk(request, {}, _finish_reason(event.reply)) | evidence(event.reply, notices)
            if request.include_usage:
                yield _envelope(request, "chat.completion.chunk") | {"choices": [], "usage": _usage(event.reply)}


def list_models(bot: Bot) -> dict[str, Any]:
    """The one model this server runs, as OpenAI's model list."""
    return {"object": "list", "data": [{"id": bot.model.name, "object": "model", "created": 0, "owned_by": "parley"}]}


def error_body(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _envelope(request: Request, kind: str) -> dict[str, Any]:
    return {"id": request.id, "object": kind, "created": request.created, "model": request.bot.model.name}


def _chunk(request: Request, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _envelope(request, "chat.completion.chunk") | {"choices": [choice]}


def _finish_reason(reply: Reply) -> str:
    return "content_filter" if reply.blocked else reply.finish_reason


def _usage(reply: Reply) -> dict[str, int]:
    read, written = reply.usage.prompt_tokens, reply.usage.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
