"""Answers as JSON values, for `--json` and for the API."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from chatbot.conversation import verdict_records
from chatbot.core import Reply
from retrieval.types import Hit


def source_records(reply: Reply) -> list[dict[str, Any]]:
    """The passages behind an answer: number as cited, location, score, and all that a passage holds."""
    return [{"number": number, **_record(hit)} for number, hit in enumerate(reply.sources, start=1)]


def _record(hit: Hit) -> dict[str, Any]:
    return {"location": hit.passage.location, "score": round(hit.score, 4), **asdict(hit.passage)}


def evidence(reply: Reply, notices: list[str]) -> dict[str, Any]:
    """What stands behind an answer: its sources, passages that were found and kept from the model, what was left out or
    flagged, and what moderation said."""
    verdicts = verdict_records(reply.verdicts.items())
    withheld = [_record(hit) for hit in reply.withheld]
    return {"sources": source_records(reply), "withheld": withheld, "notices": notices, "verdicts": verdicts}


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
        "notices": behind["notices"],
        "usage": asdict(reply.usage),
    }
