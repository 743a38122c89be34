"""The web application: routes, page, and the layers around them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from chatbot.server.errors import add_handlers, error_response
from chatbot.server.gate import Door, Gate
from chatbot.server.routes import add_routes
from chatbot.server.state import State
from chatbot.server.work import Desk

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

ERRORS = (400, 401, 404, 405, 408, 413, 421, 429, 500, 503)


def create_app(state: State, page: bool = True) -> FastAPI:
    """The application around one service. Needs the `server` extra."""
    from fastapi import FastAPI
    from starlette.middleware.cors import CORSMiddleware

    desks: list[Desk] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for desk in desks:
            desk.close()

    app = FastAPI(title="Parley", version=version("parley"), docs_url=None, redoc_url=None, lifespan=lifespan)
    add_handlers(app)

    async def refused(request: Request, error: Exception) -> Response:
        response: Response = error_response(error, request.scope["parley.id"])
        return response

    app.add_exception_handler(ValueError, refused)
    desks += add_routes(app, state)
    _describe(app)
    if page and importlib.util.find_spec("chatbot.web") is not None:
        from chatbot.web import mount

        mount(app)
    app.add_middleware(Door, state=state)
    if state.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(state.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(Gate, state=state)  # the last added is the first that a request meets
    return app


def _describe(app: FastAPI) -> None:
    """/openapi.json: errors as they are (FastAPI would name its own), the events of streams, and the key."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        from pydantic.json_schema import models_json_schema

        from chatbot.api.answers import ChatCompletionChunk, CompletionChunk
        from chatbot.api.schema import ErrorBody

        schema: dict[str, Any] = describe()
        components = schema.setdefault("components", {})
        described = components.setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            described.pop(name, None)
        for kind in (ErrorBody, ChatCompletionChunk, CompletionChunk):
            _, found = models_json_schema([(kind, "serialization")], ref_template="#/components/schemas/{model}")
            described |= found["$defs"]
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        errors = {str(status): {"description": "Error", "content": content} for status in ERRORS}
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"] = errors | operation["responses"]
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"key": []}]
        app.openapi_schema = schema
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
