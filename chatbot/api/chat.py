"""POST /v1/chat/completions: a conversation in, an answer out, whole or in pieces.

An answer has five fields more than OpenAI's: `sources`, the passages it was made from; `withheld`, passages that were
found and kept from the model; `notices`, what was left out or flagged; `verdicts`, what moderation said; and
`attribution`, which sources support each sentence (of the answer whose verdicts are told, where there are several).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from chatbot.api.errors import ApiError
from chatbot.api.exchanges import Exchange
from chatbot.api.generation import chat_logprobs, finish_reason, generations, may_block, new_id, usage_record
from chatbot.api.service import Caller, Service
from chatbot.api.watch import Watch, WatchedModel
from chatbot.conversation import Conversation
from chatbot.core import Bot, Done, Notice, Reply, Text, Turn
from chatbot.engines.base import Generation, TokenLogprob
from chatbot.records import about, evidence
from moderation.types import ACTIONS

if TYPE_CHECKING:
    from chatbot.api.schema import ChatRequest


@dataclass(frozen=True)
class Chat:
    """A request that was read: a bot with its settings, and what will happen."""

    service: Service
    caller: Caller
    watch: Watch
    bot: Bot
    model: WatchedModel
    turn: Turn
    generations: tuple[Generation, ...]
    include_usage: bool = False
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))


def prepare(service: Service, caller: Caller, request: ChatRequest, watch: Watch) -> Chat:
    """Moderate, retrieve, assemble. ValueError, of which ApiError is one, for what cannot be done."""
    conversation = _conversation(request)
    limit = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    each = generations(service.bot.generation, request, limit, logprobs)
    bot, model = service.bot_for(request.parley.moderation if request.parley else None, each[0], watch)
    bot = service.with_retrieval(bot, caller, request.parley)
    said = [message.content for message in conversation]
    service.check_prompt(said, lambda: service.bot.model.count_tokens(conversation))
    watch.check()
    turn = bot.prepare(conversation, moderate_all=True)
    usage = bool(request.stream_options and request.stream_options.include_usage)
    return Chat(service, caller, watch, bot, model, turn, tuple(each), usage)


def _conversation(request: ChatRequest) -> Conversation:
    messages = []
    for message in request.messages:
        sent = message.model_dump(include={"role", "content"})
        # What newer clients call "developer" is what all others call "system".
        sent["role"] = "system" if message.role == "developer" else message.role
        sent["passages"] = [each.model_dump() for each in message.passages or ()]
        messages.append(sent)
    conversation = Conversation.from_dicts(messages)
    if conversation.last.role != "user":
        raise ApiError(400, "the last message must be the user's", param="messages")
    return conversation


def complete(chat: Chat) -> dict[str, Any]:
    """The whole answer as one `chat.completion` object."""
    choices, replies, notices = [], [], []
    for part in _answers(chat):
        if isinstance(part.event, Notice) and part.event.text not in notices:
            notices.append(part.event.text)
        elif isinstance(part.event, Done):
            reply = part.event.reply
            replies.append((0, reply))
            choices.append(
                {
                    "index": part.index,
                    "message": {"role": "assistant", "content": reply.text, "refusal": None},
                    "logprobs": _logprobs(chat, part.logprobs, reply),
                    "finish_reason": finish_reason(reply),
                }
            )
    body = {"choices": choices, "usage": usage_record(replies, chat.service.tell_cached)}
    return _envelope(chat, "chat.completion") | body | evidence(_gravest(replies), notices)


def stream(chat: Chat) -> Generator[dict[str, Any], None, None]:
    """The answers as `chat.completion.chunk` objects, one after the other; the last one of each carries its finish
    reason and its sources."""
    replies: list[tuple[int, Reply]] = []
    notices: list[str] = []
    index = -1
    for part in _answers(chat, in_pieces=True):
        if part.index != index:
            index, notices = part.index, []
            yield _chunk(chat, index, {"role": "assistant", "content": ""})
        if isinstance(part.event, Text):
            yield _chunk(chat, index, {"content": part.event.text}, logprobs=_logprobs(chat, part.logprobs))
        elif isinstance(part.event, Notice):
            notices.append(part.event.text)
        else:
            reply = part.event.reply
            replies.append((0, reply))
            rest = _logprobs(chat, part.logprobs, reply) if part.logprobs else None
            yield _chunk(chat, index, {}, finish_reason(reply), rest) | evidence(reply, notices)
    if chat.include_usage:
        usage = usage_record(replies, chat.service.tell_cached)
        yield _envelope(chat, "chat.completion.chunk") | {"choices": [], "usage": usage}


@dataclass(frozen=True)
class _Part:
    """An event of one of the answers, with the log-probabilities that may be told with it."""

    index: int
    event: Text | Notice | Done
    logprobs: list[TokenLogprob]


def _answers(chat: Chat, in_pieces: bool = False) -> Iterator[_Part]:
    """The events of all answers, one answer after the other; finished ones are remembered, to be rated."""
    exchange = Exchange(chat.caller.id, chat.turn, about(chat.bot, chat.generations[0]))
    hold = not in_pieces or may_block(chat.bot)
    for index, generation in enumerate(chat.generations):
        for event in chat.bot.stream(replace(chat.turn, generation=generation)):
            if isinstance(event, Text):
                chat.watch.note_text()
            logprobs: list[TokenLogprob] = []
            if isinstance(event, Done):
                chat.watch.note_usage(event.reply.usage, again=index > 0)
                exchange.replies[index] = event.reply
                if index == len(chat.generations) - 1 and chat.service.feedback is not None:
                    chat.service.exchanges.put(chat.id, exchange)
                # A blocked answer's tokens are what was blocked.
                logprobs = [] if event.reply.blocked else chat.model.take_logprobs()
            elif isinstance(event, Text) and not hold:
                logprobs = chat.model.take_logprobs()
            yield _Part(index, event, logprobs)


def _gravest(replies: list[tuple[int, Reply]]) -> Reply:
    """The answer whose verdicts are told for all: what was asked and found is the same for each."""
    return max((reply for _, reply in replies), key=lambda reply: _severity(reply))


def _severity(reply: Reply) -> tuple[int, bool]:
    verdict = reply.verdicts.get("output")
    return (ACTIONS.index(verdict.action), verdict.flagged) if verdict else (-1, False)


def _logprobs(chat: Chat, tokens: list[TokenLogprob], reply: Reply | None = None) -> dict[str, Any] | None:
    if chat.generations[0].logprobs is None or (reply.blocked if reply is not None else not tokens):
        return None
    return chat_logprobs(tokens)


def _envelope(chat: Chat, kind: str) -> dict[str, Any]:
    return {"id": chat.id, "object": kind, "created": chat.created, "model": chat.model.name}


def _chunk(
    chat: Chat, index: int, delta: dict[str, str], reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    usage = {"usage": None} if chat.include_usage else {}
    return _envelope(chat, "chat.completion.chunk") | {"choices": [choice]} | usage
