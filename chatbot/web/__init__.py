"""The page for people: one static page that talks to the server's own API. `mount(app)` serves it from package data.

No build step and nothing from outside: what lies in `static/` is what the browser runs. The page itself needs no API
key, since it holds no secrets; the API that it calls asks for one where the server wants it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Scripts, styles, images and requests from and to this server only; and, by the last two directives, no way to turn
# text into markup: HTML in a document or an answer stays text even where the page's own code had a mistake.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Browsers keep the files and ask each time whether they have changed: a new server shows its own page at once.
    "Cache-Control": "no-cache",
}


def mount(app: FastAPI) -> None:
    """Serve the page at `/` and its files under `/static/`: GET and HEAD, and 304 for what the browser already has."""
    from starlette.routing import Route

    for name, content in page_files().items():
        place = "/" if name == "index.html" else f"/static/{name}"
        serve = _handler(content, CONTENT_TYPES[PurePath(name).suffix])
        app.router.routes.append(Route(place, serve, methods=["GET"], include_in_schema=False))


def page_files() -> dict[str, bytes]:
    """The page's files by name, as they are served."""
    folder = resources.files(__name__) / "static"
    return {
        each.name: each.read_bytes()
        for each in sorted(folder.iterdir(), key=lambda each: each.name)
        if PurePath(each.name).suffix in CONTENT_TYPES
    }


def _handler(content: bytes, content_type: str) -> Callable[[Request], Awaitable[Response]]:
    from starlette.responses import Response as Answer

    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def serve(request: Request) -> Response:
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in known:
            return Answer(status_code=304, headers=headers)
        return Answer(content, headers={**headers, "Content-Type": content_type})

    return serve
