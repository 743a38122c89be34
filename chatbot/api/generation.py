"""What chat and plain completions share: settings, usage, log-probabilities, and what is kept for ratings."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from chatbot.core import Bot, Reply
from chatbot.engines.base import Generation, TokenLogprob

if TYPE_CHECKING:
    from chatbot.api.schema import ChatRequest, CompletionRequest

LOWEST = -9999.0  # what OpenAI's API says for minus infinity, which JSON does not have


def new_id(kind: str) -> str:
    """An id that nobody can guess, such as chatcmpl-..."""
    return f"{kind}-{uuid.uuid4().hex}"


def generations(
    default: Generation, request: ChatRequest | CompletionRequest, max_tokens: int | None, logprobs: int | None
) -> list[Generation]:
    """One for each of the `n` answers: the operator's default with the request's settings. A seed counts up, so that
    the answers differ and can be had again. ValueError names the field."""
    changes: dict[str, Any] = {"logprobs": logprobs}
    if max_tokens is not None:
        changes["max_tokens"] = max_tokens
    for name in ("temperature", "top_p", "seed"):
        if (value := getattr(request, name)) is not None:
            changes[name] = value
    if changes.keys() & {"temperature", "top_p"}:
        changes["sample"] = changes.get("temperature", default.temperature) > 0
    if request.stop is not None:
        changes["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    first = replace(default, **changes)
    if first.seed is None:
        return [first] * (request.n or 1)
    return [replace(first, seed=first.seed + number) for number in range(request.n or 1)]


def usage_record(replies: Sequence[tuple[int, Reply]], tell_cached: bool) -> dict[str, Any]:
    """Tokens of answers that belong together; each comes with the number of its prompt, which counts once."""
    read = {number: reply.usage for number, reply in reversed(replies)}
    prompt = sum(usage.prompt_tokens for usage in read.values())
    written = sum(reply.usage.completion_tokens for _, reply in replies)
    record: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
    if tell_cached:
        record["prompt_tokens_details"] = {"cached_tokens": sum(usage.cached_tokens for usage in read.values())}
    return record


def finish_reason(reply: Reply) -> str:
    """In OpenAI's words."""
    return "content_filter" if reply.blocked else reply.finish_reason


def may_block(bot: Bot) -> bool:
    """Whether text is withheld until it is checked: its tokens must not come before it."""
    return bot.moderator is not None and bot.moderator.can_block("output")


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities as chat completions have them."""
    content = [
        _logprob(each.token, each.logprob) | {"top_logprobs": [_logprob(*candidate) for candidate in each.top]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def plain_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Log-probabilities as plain completions have them; `offset` is where the first token stands in the text."""
    offsets = []
    for each in tokens:
        offsets.append(offset)
        offset += len(each.token)
    return {
        "tokens": [each.token for each in tokens],
        "token_logprobs": [_finite(each.logprob) for each in tokens],
        "top_logprobs": [{token: _finite(logprob) for token, logprob in each.top} for each in tokens],
        "text_offset": offsets,
    }


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite(logprob), "bytes": list(token.encode("utf-8", "replace"))}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST
