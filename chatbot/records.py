"""Answers as JSON values, for `--json`, for the API, and for the feedback file.

A line of the feedback file is the whole exchange, so that each can be read alone. `id` names the answer: a person who
rates it, then says why, or thinks better of it, or corrects it, leaves several lines with one id, of which the last
holds. So a reader keeps the last of each: `{line["id"]: line for line in lines}`. Answers to one request (`n`) have
different ids, and so has a text that was put in an answer's place, and was then rated itself.

An answer that was asked for in another's place is a line too, of rating `regenerate`; it and all later lines of its id
say what was `replaced`. `tools/feedback.py review` adds lines with `reviewed`, and the rating `drop`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from chatbot.conversation import verdict_records
from chatbot.core import Bot, Reply, Turn
from chatbot.engines.base import Generation
from retrieval.types import Hit


def source_records(reply: Reply) -> list[dict[str, Any]]:
    """The passages behind an answer: number as cited, location, score, and all that a passage holds."""
    return [{"number": number, **hit_record(hit)} for number, hit in enumerate(reply.sources, start=1)]


def hit_record(hit: Hit) -> dict[str, Any]:
    """A passage that was found: location, score, and all that it holds."""
    return {"location": hit.passage.location, "score": round(hit.score, 4), **asdict(hit.passage)}


def evidence(reply: Reply, notices: list[str]) -> dict[str, Any]:
    """What stands behind an answer: its sources, passages that were found and kept from the model, what was left out or
    flagged, what moderation said, and which sources support each of its sentences."""
    verdicts = verdict_records(reply.verdicts.items())
    withheld = [hit_record(hit) for hit in reply.withheld]
    attribution = [asdict(each) | {"supported": each.supported} for each in reply.attribution]
    return {
        "sources": source_records(reply),
        "withheld": withheld,
        "notices": notices,
        "verdicts": verdicts,
        "attribution": attribution,
    }


def reply_record(question: str, reply: Reply, notices: list[str]) -> dict[str, Any]:
    """One answer as JSON values: what `--json` prints, a line each."""
    behind = evidence(reply, notices)
    return {
        "question": question,
        "answer": reply.text,
        "sources": behind["sources"],
        "withheld": behind["withheld"],
        "finish_reason": reply.finish_reason,
        "blocked": reply.blocked,
        "verdicts": behind["verdicts"],
        "attribution": behind["attribution"],
        "notices": behind["notices"],
        "usage": asdict(reply.usage),
    }


def about(bot: Bot, generation: Generation) -> dict[str, Any]:
    """The model and the settings that answered, as a rating keeps them."""
    return {
        "model": bot.model.name,
        "settings": asdict(generation) | {"system": bot.assembler.system, "k": bot.k},
    }


def feedback_record(
    id_: str,
    rating: str,
    reason: str,
    edit: str | None,
    turn: Turn,
    reply: Reply,
    seen: str | None,
    about: Mapping[str, Any],
    replaced: str | None = None,
) -> dict[str, Any]:
    """A rated exchange, a line of the feedback file. `id_`: of the answer; `edit`: what the answer should have been;
    `seen`: the prompt as the model saw it, where it was asked; `about`: the model and the settings that answered;
    `replaced`: the answer in whose place this one was asked for."""
    return {
        "id": id_,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rating": rating,
        "reason": reason,
        "messages": turn.conversation.to_dicts(),
        "passages": [asdict(hit.passage) | {"score": hit.score} for hit in reply.sources],
        "verdicts": verdict_records(reply.verdicts.items()),
        "answer": reply.text,
        "finish_reason": reply.finish_reason,
        "edit": edit,
        "replaced": replaced,
        "prompt": seen,
        # The same before the model's template: what another model can be trained on.
        "prompt_messages": turn.prompt.conversation.to_dicts() if turn.prompt else None,
        **about,
    }
