"""POST /v1/feedback: a rating, kept with its exchange as the shell's /good, /bad, /edit and /regenerate keep theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatbot.api.errors import ApiError, not_enabled
from chatbot.api.exchanges import Exchange
from chatbot.api.service import Caller, Service
from chatbot.api.watch import Watch
from chatbot.core import Reply
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
    if (request.rating == "regenerate") != (request.replaces is not None) or (request.replaces and request.choice):
        problem = "replaces is the id of an earlier answer: it goes with rating=regenerate, and with no choice"
        raise ApiError(400, problem, param="replaces")
    exchange, reply = _remembered(service, caller, request.id, request.choice or 0, "id")
    turn, reason = exchange.turn, request.reason or ""
    if request.replaces is not None:
        earlier, first = _remembered(service, caller, request.replaces, 0, "replaces")
        if earlier.turn.conversation.to_dicts() != turn.conversation.to_dicts():
            raise ApiError(400, "replaces is an answer to something else", param="replaces")
        exchange.replaced = first.text  # so that the first answer's later ratings say so too
    seen = service.bot.model.render(turn.prompt.conversation) if turn.prompt is not None else None
    id_, replaced = request.id, exchange.replaced
    if request.choice:
        id_, replaced = f"{request.id}#{request.choice}", None
    record = feedback_record(id_, request.rating, reason, edit, turn, reply, seen, exchange.about, replaced)
    watch.check()
    with service.exchanges.writing:
        append_json_line(service.feedback, record)
    return {"object": "feedback", "id": request.id, "rating": request.rating}


def _remembered(service: Service, caller: Caller, id_: str, choice: int, param: str) -> tuple[Exchange, Reply]:
    """An answer with its exchange; ApiError where there is none for this caller."""
    exchange = service.exchanges.get(id_, caller.id)
    reply = exchange.replies.get(choice) if exchange else None
    if exchange is None or reply is None or not reply.text:
        problem = f"there is no answer {id_[:60]!r} to rate; this server remembers the newest ones only"
        raise ApiError(404, problem, "answer_not_found", param)
    return exchange, reply
