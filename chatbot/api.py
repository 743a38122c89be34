"""The OpenAI chat-completions API as functions from dicts to dicts: no sockets here, server.py has those.

An answer has one field more than OpenAI's: `sources`, the passages it was made from.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from chatbot.conversation import Conversation
from chatbot.core import Bot, Done, Reply, Text, Turn
from chatbot.engines.base import Generation

# Fields of a request that change the answer in ways this server cannot; each with the only value it accepts.
_UNSUPPORTED = {
    "n": 1,
    "tools": None,
    "functions": None,
    "response_format": None,
    "logprobs": False,
    "logit_bias": None,
}


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
    for name, only in _UNSUPPORTED.items():
        if body.get(name) not in (only, None):
            raise ValueError(f"{name}={body[name]!r} is not supported; leave it out")
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
        turn=configured.prepare(conversation),
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
    if "temperature" in changes:
        changes["sample"] = changes["temperature"] > 0
    if (stop := body.get("stop")) is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops):
            raise ValueError("stop must be a text or a list of texts")
        changes["stop"] = tuple(stops)
    return replace(default, **changes)


def _typed(name: str, value: object, kind: type[int] | type[float]) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ValueError(f"{name}={value!r} must be a {'whole ' if kind is int else ''}number")
    return kind(value)


def complete(request: Request) -> dict[str, Any]:
    """The whole answer as one `chat.completion` object."""
    reply = next(event.reply for event in request.bot.stream(request.turn) if isinstance(event, Done))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text},
        "finish_reason": _finish_reason(reply),
    }
    return _envelope(request, "chat.completion") | {
        "choices": [choice],
        "usage": _usage(reply),
        "sources": _sources(reply),
    }


def stream(request: Request) -> Iterator[dict[str, Any]]:
    """The answer as `chat.completion.chunk` objects; the last one with a choice carries finish reason and sources."""
    yield _chunk(request, {"role": "assistant", "content": ""})
    for event in request.bot.stream(request.turn):
        if isinstance(event, Text):
            yield _chunk(request, {"content": event.text})
        elif isinstance(event, Done):
            yield _chunk(request, {}, _finish_reason(event.reply)) | {"sources": _sources(event.reply)}
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


def _sources(reply: Reply) -> list[dict[str, Any]]:
    return [
        {"number": number, "location": hit.passage.location, "score": hit.score} | asdict(hit.passage)
        for number, hit in enumerate(reply.sources, start=1)
    ]
