"""POST /v1/completions: texts continued as they are, without a chat template, a history or documents."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from chatbot.api.errors import ApiError
from chatbot.api.generation import finish_reason, generations, may_block, new_id, plain_logprobs, usage_record
from chatbot.api.service import Caller, Service
from chatbot.api.watch import Watch, WatchedModel, count_plain
from chatbot.core import Bot, Done, Notice, Reply, Text, Turn
from chatbot.engines.base import Generation, TokenLogprob
from chatbot.records import evidence

if TYPE_CHECKING:
    from chatbot.api.schema import CompletionRequest

MAX_ANSWERS = 32  # to all prompts of a request together


@dataclass(frozen=True)
class Completion:
    """A request that was read. Each of `turns` is answered once for each of `generations`."""

    service: Service
    watch: Watch
    bot: Bot
    model: WatchedModel
    turns: tuple[Turn, ...]
    generations: tuple[Generation, ...]
    prompts: tuple[str, ...]
    echo: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=lambda: int(time.time()))


def prepare(service: Service, caller: Caller, request: CompletionRequest, watch: Watch) -> Completion:
    """Check and moderate the prompts. ValueError, of which ApiError is one, for what cannot be done."""
    del caller  # there are no documents
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    each = generations(service.bot.generation, request, request.max_tokens, request.logprobs)
    if len(prompts) * len(each) > MAX_ANSWERS:
        asked = len(prompts) * len(each)
        raise ApiError(400, f"{asked} completions are asked for, of at most {MAX_ANSWERS} in a request", param="n")
    if request.echo and request.logprobs is not None:
        raise ApiError(400, "logprobs are told of the answer alone; leave echo out", param="echo")
    moderation = request.parley.moderation if request.parley else None
    bot, model = service.bot_for(moderation, each[0], watch)
    for prompt in prompts:
        service.check_prompt([prompt], partial(count_plain, service.bot.model, prompt))
        watch.check()
    turns = tuple(bot.prepare_plain(prompt) for prompt in prompts)
    usage = bool(request.stream_options and request.stream_options.include_usage)
    return Completion(service, watch, bot, model, turns, tuple(each), tuple(prompts), bool(request.echo), usage)


def complete(completion: Completion) -> dict[str, Any]:
    """All continuations as one `text_completion` object."""
    choices, replies, notices = [], [], []
    for number, index, event, logprobs in _answers(completion):
        if isinstance(event, Notice) and event.text not in notices:
            notices.append(event.text)
        elif isinstance(event, Done):
            replies.append((number, event.reply))
            text = (completion.prompts[number] if completion.echo else "") + event.reply.text
            choices.append(_choice(completion, index, text, finish_reason(event.reply), logprobs))
    usage = usage_record(replies, completion.service.tell_cached)
    body = _envelope(completion) | {"choices": choices, "usage": usage}
    return body | {name: said for name, said in evidence(replies[-1][1], notices).items() if name in _TOLD}


def stream(completion: Completion) -> Generator[dict[str, Any], None, None]:
    """The continuations in pieces, one after the other; the last piece of each has its finish reason."""
    replies: list[tuple[int, Reply]] = []
    notices: list[str] = []
    told, last = 0, -1
    for number, index, event, logprobs in _answers(completion, in_pieces=True):
        if index != last:
            last, told, notices = index, 0, []
            if completion.echo:
                yield _chunk(completion, _choice(completion, index, completion.prompts[number]))
        if isinstance(event, Text):
            yield _chunk(completion, _choice(completion, index, event.text, None, logprobs, told))
            told += sum(len(each.token) for each in logprobs)
        elif isinstance(event, Notice):
            notices.append(event.text)
        else:
            replies.append((number, event.reply))
            choice = _choice(completion, index, "", finish_reason(event.reply), logprobs, told)
            behind = evidence(event.reply, notices)
            yield _chunk(completion, choice) | {name: said for name, said in behind.items() if name in _TOLD}
    if completion.include_usage:
        usage = usage_record(replies, completion.service.tell_cached)
        yield _envelope(completion) | {"choices": [], "usage": usage}


_TOLD = ("notices", "verdicts")  # there are no sources


def _answers(
    completion: Completion, in_pieces: bool = False
) -> Iterator[tuple[int, int, Text | Notice | Done, list[TokenLogprob]]]:
    """(number of the prompt, index of the choice, event, log-probabilities that may be told with it)."""
    hold = not in_pieces or may_block(completion.bot)
    num = len(completion.generations)
    for number, turn in enumerate(completion.turns):
        for nth, generation in enumerate(completion.generations):
            for event in completion.bot.stream(replace(turn, generation=generation)):
                logprobs: list[TokenLogprob] = []
                if isinstance(event, Text):
                    completion.watch.note_text()
                    logprobs = [] if hold else completion.model.take_logprobs()
                elif isinstance(event, Done):
                    completion.watch.note_usage(event.reply.usage, again=nth > 0)
                    logprobs = [] if event.reply.blocked else completion.model.take_logprobs()
                yield number, number * num + nth, event, logprobs


def _choice(
    completion: Completion,
    index: int,
    text: str,
    reason: str | None = None,
    tokens: list[TokenLogprob] | None = None,
    offset: int = 0,
) -> dict[str, Any]:
    asked = completion.generations[0].logprobs is not None and tokens
    logprobs = plain_logprobs(tokens, offset) if asked and tokens else None
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _envelope(completion: Completion) -> dict[str, Any]:
    return {
        "id": completion.id,
        "object": "text_completion",
        "created": completion.created,
        "model": completion.model.name,
    }


def _chunk(completion: Completion, choice: dict[str, Any]) -> dict[str, Any]:
    usage = {"usage": None} if completion.include_usage else {}
    return _envelope(completion) | {"choices": [choice]} | usage
