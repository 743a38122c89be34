"""What every request passes first: host, key, size. Plain ASGI, so that a refused request costs next to nothing.

`Gate` is outermost: it counts, turns any failure into an error that says no more than it should, and refuses names that
are not this server's (a page in a browser can make a name of its own point to 127.0.0.1, and would then be let in).
`Door`, behind CORS, asks for the key and reads the body within its limits.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from chatbot.api.errors import ApiError, Cancelled
from chatbot.server.errors import error_response, internal_error
from chatbot.server.state import State, ending
from chatbot.server.work import GONE

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_SECONDS = 30.0  # in which a client must have sent its request
OPEN = ("/", "/health", "/openapi.json", "/favicon.ico")  # for everybody
OPEN_UNDER = "/static/"
WHILE_DRAINING = ("/health", "/metrics")
REASONS = {401: "key", 408: "time", 413: "body", 421: "host", 429: "queue", 503: "draining"}
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Gate:
    """The outermost layer."""

    def __init__(self, app: App, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        id_ = scope["parley.id"] = f"req-{uuid.uuid4().hex}"
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_ours(message.get("headers", ()), id_)
            await send(message)

        try:
            await self._checked(scope, receive, counted)
        except Cancelled:
            status = GONE
        except Exception as error:  # whatever it is, the client learns its id only
            if status:  # the answer has begun: it ends here
                internal_error(error, id_)
            else:
                await error_response(error, id_)(scope, receive, counted)
        finally:
            metrics = self._state.metrics
            metrics.request(_route(scope), status or GONE, time.monotonic() - started)
            if status in REASONS:
                metrics.rejected(REASONS[status])

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._state.hosts is not None:
            host = _header(scope, b"host")
            if host is not None and _without_port(host) not in self._state.hosts:
                raise ApiError(421, "this server does not answer to that name; see --allowed-host", "wrong_host")
        await self._app(scope, receive, send)


class Door:
    """The layer behind CORS."""

    def __init__(self, app: App, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = _once(await self._body(scope, receive), receive)
        except ApiError as error:
            await self._discard(scope, receive)
            await error_response(error, scope["parley.id"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        path = scope["path"]
        if self._state.draining is not None and path not in WHILE_DRAINING:
            raise ending()
        caller = self._state.keyring.caller(_bearer(scope))
        if caller is None and path not in OPEN and not path.startswith(OPEN_UNDER):
            problem = "a key is needed, and this is none; send it as Authorization: Bearer KEY"
            raise ApiError(401, problem, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        scope["parley.caller"] = caller

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it. ApiError where it is too large, or does not come."""
        limit = self._state.limits.body_bytes
        too_large = ApiError(413, f"the request's body is larger than this server takes: {limit} bytes", "body_limit")
        declared = _header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise too_large
        deadline = time.monotonic() + BODY_SECONDS
        body = bytearray()
        while True:
            message = await _received(receive, deadline)
            body += message.get("body", b"")
            scope["parley.read"] = not message.get("more_body", False)
            if len(body) > limit:
                raise too_large
            if scope["parley.read"]:
                return bytes(body)

    async def _discard(self, scope: Scope, receive: Receive) -> None:
        """Read what a refused client still sends, to a limit: most clients read the answer only then."""
        if scope.get("parley.read") or _header(scope, b"expect") is not None:  # the latter waits for us
            return
        declared = _header(scope, b"content-length") or "0"
        if _header(scope, b"transfer-encoding") is None and declared == "0":
            return
        left, deadline = 8 * self._state.limits.body_bytes, time.monotonic() + BODY_SECONDS / 4
        try:
            while left > 0:
                message = await _received(receive, deadline)
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
        except (ApiError, Cancelled):
            return  # the answer is sent all the same, to whom it may concern


async def _received(receive: Receive, deadline: float) -> Message:
    """The next piece of a body. Cancelled where the client is gone."""
    try:
        message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
    except asyncio.TimeoutError:
        raise ApiError(408, f"the request's body did not come within {BODY_SECONDS:g} seconds", "timeout") from None
    if message["type"] == "http.disconnect":
        raise Cancelled
    return message


def _once(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then what else comes: the client's leaving."""
    waiting = True

    async def replay() -> Message:
        nonlocal waiting
        if waiting:
            waiting = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _with_ours(headers: Any, id_: str) -> list[tuple[bytes, bytes]]:
    """An answer's headers with ours, where it has none of that name of its own."""
    known = {name.lower() for name, _ in headers}
    ours = [(name, value) for name, value in (*HEADERS, (b"x-request-id", id_.encode())) if name not in known]
    return [*headers, *ours]


def _route(scope: Scope) -> str:
    """The pattern of the route that was found."""
    return getattr(scope.get("route"), "path", None) or "other"


def _header(scope: Scope, name: bytes) -> str | None:
    for each, value in scope["headers"]:
        if each == name:
            return str(value.decode("latin-1"))
    return None


def _bearer(scope: Scope) -> bytes | None:
    scheme, _, key = (_header(scope, b"authorization") or "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and (port.isdigit() or not port) and not port.endswith("]") else host).lower()
