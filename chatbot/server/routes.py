"""The endpoints: from a checked request to a function of `chatbot.api`, in a thread or right here.

No `from __future__ import annotations`: FastAPI reads the annotations, which name what is imported inside.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chatbot.api import chat, completions, embeddings, feedback, models, moderations, rerank, retrieval
from chatbot.api.errors import ApiError
from chatbot.api.watch import Watch
from chatbot.server.errors import to_json
from chatbot.server.metrics import CONTENT_TYPE
from chatbot.server.state import State
from chatbot.server.work import Desk, Items

if TYPE_CHECKING:
    from fastapi import FastAPI


def _streamed(chunk: str) -> dict[int | str, dict[str, Any]]:
    """How /openapi.json describes a stream of `chunk`s: by its events, in the words of OpenAPI 3.2. An error is one
    that came when the answer had begun."""
    held = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in (chunk, "ErrorBody")]}
    json_text = {"type": "string", "contentMediaType": "application/json", "contentSchema": held}
    data = {"anyOf": [{"const": "[DONE]", "description": "The last event."}, json_text]}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    described = "Whole; or, with stream=true, as server-sent events."
    return {200: {"content": {"text/event-stream": {"itemSchema": event}}, "description": described}}


def add_routes(app: "FastAPI", state: State) -> list[Desk]:
    """All endpoints; returns what to close in the end."""
    desks = {
        name: Desk(name, lane, state.metrics, state.jobs, state.limits.request_seconds)
        for name, lane in state.lanes.items()
    }
    _add_generating(app, state, desks["generation"])
    _add_quick(app, state, desks["quick"])
    _add_plain(app, state)
    return list(desks.values())


def _add_generating(app: "FastAPI", state: State, desk: Desk) -> None:
    from fastapi import Request, Response

    from chatbot.api.answers import ChatCompletion, Completion
    from chatbot.api.schema import ChatRequest, CompletionRequest

    service = state.service

    def answering(kind: Any, caller: Any, body: Any) -> Callable[[Watch], Items]:
        def work(watch: Watch) -> Items:
            prepared = kind.prepare(service, caller, body, watch)
            if body.stream:
                yield from kind.stream(prepared)
            else:
                yield kind.complete(prepared)

        return work

    chat_stream, plain_stream = _streamed("ChatCompletionChunk"), _streamed("CompletionChunk")

    # FastAPI describes a `response_model`, and sends a Response as it is: nothing is checked or copied on the way.
    @app.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        response_model=ChatCompletion,
        responses=chat_stream,
        tags=["OpenAI"],
    )
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        return await desk.serve(request, answering(chat, request.scope["parley.caller"], body), bool(body.stream))

    @app.post(
        "/v1/completions",
        summary="Continue a text",
        response_model=Completion,
        responses=plain_stream,
        tags=["OpenAI"],
    )
    async def plain_completions(request: Request, body: CompletionRequest) -> Response:
        work = answering(completions, request.scope["parley.caller"], body)
        return await desk.serve(request, work, bool(body.stream))


def _add_quick(app: "FastAPI", state: State, desk: Desk) -> None:
    from fastapi import Request, Response

    from chatbot.api.answers import Embeddings, FeedbackKept, Moderations, Ranking, SearchResult
    from chatbot.api.schema import (
        EmbeddingRequest,
        FeedbackRequest,
        ModerationRequest,
        RerankRequest,
        SearchRequest,
    )

    service = state.service

    async def served(request: Request, function: Callable[..., dict[str, Any]], *arguments: Any) -> Response:
        def work(watch: Watch) -> Items:
            yield function(*arguments, watch)

        return await desk.serve(request, work)

    @app.post(
        "/v1/embeddings", summary="Vectors of texts, by an index's encoder", response_model=Embeddings, tags=["OpenAI"]
    )
    async def embed(request: Request, body: EmbeddingRequest) -> Response:
        return await served(request, embeddings.embed, service, request.scope["parley.caller"], body)

    @app.post("/v1/moderations", summary="What moderation says of texts", response_model=Moderations, tags=["OpenAI"])
    async def moderate(request: Request, body: ModerationRequest) -> Response:
        return await served(request, moderations.moderate, service, body)

    @app.post("/v1/rerank", summary="Documents in order for a query", response_model=Ranking, tags=["Parley"])
    async def rank(request: Request, body: RerankRequest) -> Response:
        return await served(request, rerank.rerank, service, request.scope["parley.caller"], body)

    @app.post("/v1/retrieval/search", summary="Passages for a query", response_model=SearchResult, tags=["Parley"])
    async def search(request: Request, body: SearchRequest) -> Response:
        return await served(request, retrieval.search, service, request.scope["parley.caller"], body)

    @app.post("/v1/feedback", summary="Rate an answer", response_model=FeedbackKept, tags=["Parley"])
    async def rate(request: Request, body: FeedbackRequest) -> Response:
        return await served(request, feedback.rate, service, request.scope["parley.caller"], body)


def _add_plain(app: "FastAPI", state: State) -> None:
    from fastapi import Request, Response
    from fastapi.responses import PlainTextResponse

    from chatbot.api.answers import Health, Model, ModelList

    service = state.service

    def json_response(value: dict[str, Any], status: int = 200) -> Response:
        return Response(to_json(value), status, media_type="application/json")

    @app.get("/v1/models", summary="The models and indexes of this server", response_model=ModelList, tags=["OpenAI"])
    async def list_models(request: Request) -> Response:
        return json_response(models.list_models(service, request.scope["parley.caller"]))

    @app.get("/v1/models/{model:path}", summary="One model", response_model=Model, tags=["OpenAI"])
    async def get_model(request: Request, model: str) -> Response:
        return json_response(models.get_model(service, request.scope["parley.caller"], model))

    ending: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "The server is about to end."}}

    @app.get(
        "/health",
        summary="Whether the server takes requests",
        response_model=Health,
        responses=ending,
        tags=["Operation"],
    )
    async def health() -> Response:
        if state.draining is not None:
            return json_response({"status": "draining"}, 503)
        return json_response({"status": "ok"})

    @app.get("/metrics", summary="Counters, for Prometheus", response_class=PlainTextResponse, tags=["Operation"])
    async def metrics(request: Request) -> Response:
        if not request.scope["parley.caller"].metrics:
            raise ApiError(404, "Not Found")
        gauges = {
            "running": {name: lane.running for name, lane in state.lanes.items()},
            "waiting": {name: lane.waiting for name, lane in state.lanes.items()},
        }
        return Response(state.metrics.text(gauges), media_type=CONTENT_TYPE)
