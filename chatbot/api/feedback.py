"""POST /v1/feedback: a rating, kept with its exchange as the shell's /good, /bad and /edit keep theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatbot.api.errors import ApiError, not_enabled
from chatbot.api.service import Caller, Service
from chatbot.api.watch import Watch
from chatbot.records import feedback_record
from common.files import append_json_line

if TYPE_CHECKING:
    from chatbot.api.schema import FeedbackRequest


def rate(service: Service, caller: Caller, request: FeedbackRequest, watch: Watch) -> dict[str, Any]:
    """Append the exchange to the feedback file. ApiError for one that is unknown, forgotten, or another's."""
    if service.feedback is None:
        raise not_enabled("this server keeps no ratings", "start it with --feedback FILE")
    edit = request.edit
    if (request.rating == "edit") != bool(edit and edit.strip()):
        raise ApiError(400, "edit is the better answer: it goes with rating=edit, and with that alone", param="edit")
    exchange = service.exchanges.get(request.id, caller.id)
    reply = exchange.replies.get(request.choice or 0) if exchange else None
    if exchange is None or reply is None or not reply.text:
        problem = f"there is no answer {request.id[:60]!r} to rate; this server remembers the newest ones only"
        raise ApiError(404, problem, "answer_not_found", "id")
    prompt = exchange.turn.prompt
    seen = service.bot.model.render(prompt.conversation) if prompt is not None else None
    said, reason = exchange.turn.conversation, request.reason or ""
    id_ = f"{request.id}#{request.choice}" if request.choice else request.id
    record = feedback_record(id_, request.rating, reason, edit, said, reply, seen, exchange.about)
    watch.check()
    with service.exchanges.writing:
        append_json_line(service.feedback, record)
    return {"object": "feedback", "id": request.id, "rating": request.rating}
