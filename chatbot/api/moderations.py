"""POST /v1/moderations: what the moderator says of texts, as OpenAI's clients expect it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chatbot.api.errors import not_enabled
from chatbot.api.generation import new_id
from chatbot.api.service import Service
from chatbot.api.watch import Watch
from moderation.labels import INJECTION, LABELS
from moderation.types import Verdict

if TYPE_CHECKING:
    from chatbot.api.schema import ModerationRequest

OPENAIS = tuple(label for label in LABELS if label not in (INJECTION, "unsafe"))


def moderate(service: Service, request: ModerationRequest, watch: Watch) -> dict[str, Any]:
    """A result for each text, by the policy for what users say. A category that the classifier cannot judge has the
    score null and counts as not flagged; `verdict` holds all that Parley says."""
    moderator = service.bot.moderator
    if moderator is None:
        raise not_enabled("moderation is off on this server", "start it with --moderation")
    given = [request.input] if isinstance(request.input, str) else request.input
    texts = [each if isinstance(each, str) else each.text for each in given]
    watch.check()
    results = [_result(verdict) for verdict in moderator.check(texts, "input")]
    model = getattr(getattr(moderator, "classifier", None), "name", None) or "parley-moderation"
    return {"id": new_id("modr"), "model": str(model), "results": results}


def _result(verdict: Verdict) -> dict[str, Any]:
    labels = dict.fromkeys([*OPENAIS, *verdict.scores])
    return {
        "flagged": verdict.flagged,
        "categories": {label: label in verdict.labels for label in labels},
        "category_scores": {label: verdict.scores.get(label) for label in labels},
        "category_applied_input_types": {label: ["text"] for label in labels},
        "verdict": asdict(verdict),
    }
