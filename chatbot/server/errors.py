"""From exceptions to responses. No traceback ever leaves the server: what is its own fault is logged under an id."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chatbot.api.errors import ApiError, body_of, error_body

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("parley.server")


def to_json(value: Any) -> bytes:
    """UTF-8. Half a character (which a client may have sent, and an error may quote) becomes a JSON escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def internal_error(error: BaseException, id_: str) -> dict[str, Any]:
    """The body for a failure of the server itself, which is logged under its id."""
    log.error("internal error %s", id_, exc_info=error)
    return error_body(f"internal error; the server's log has it under {id_}", 500, "internal_error")


def error_response(error: Exception, id_: str) -> Any:
    """A response for any exception; a ValueError is the client's mistake, everything else the server's."""
    from fastapi.responses import Response

    status, headers = 500, {}
    if isinstance(error, ApiError):
        status, headers = error.status, error.headers
    elif isinstance(error, ValueError):
        status = 400
    body = body_of(error) if isinstance(error, ValueError) else internal_error(error, id_)
    return Response(to_json(body), status, headers, media_type="application/json")


def add_handlers(app: FastAPI) -> None:
    """Give every error of `app` OpenAI's shape."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import Response
    from starlette.exceptions import HTTPException

    from chatbot.api.schema import explained

    def plain(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
        return Response(to_json(body), status, dict(headers or {}), media_type="application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: object, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return plain(400, body_of(explained(error.errors())))

    @app.exception_handler(HTTPException)
    async def no_such_place(_: object, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return plain(error.status_code, error_body(str(error.detail), error.status_code), error.headers)
