"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# status -> what OpenAI's API calls such an error
KINDS = {
    401: "authentication_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(ValueError):
    """A refusal with its HTTP status; `code` is for programs, `param` the field at fault, `headers` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})


class Cancelled(Exception):  # noqa: N818  # no error: nobody waits for the answer any more
    """The client is gone."""


def not_enabled(what: str, remedy: str) -> ApiError:
    """For an endpoint or a setting that this server was started without."""
    return ApiError(404, f"{what}; {remedy}", "not_enabled")


def error_body(message: str, status: int = 400, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    kind = KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: ValueError) -> dict[str, Any]:
    """The body for an error; a plain ValueError is a mistake in the request."""
    if isinstance(error, ApiError):
        return error_body(str(error), error.status, error.code, error.param)
    return error_body(str(error))
