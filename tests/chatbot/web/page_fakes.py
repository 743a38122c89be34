"""A fake of the server's API with the real page on it, for tests of the page: answers are scripted, requests kept."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]


@dataclass
class Answer:
    """What the fake says next. `pieces` are streamed with `delay` seconds between them; with `hold` the stream waits
    after the first piece until the client goes away; `status` other than 200 refuses; `cut` ends the stream early."""

    pieces: tuple[str, ...] = ("It was opened in ", "**1932** [1].")
    sources: list[JSON] = field(default_factory=list)
    withheld: list[JSON] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    verdicts: JSON = field(default_factory=dict)
    attribution: list[JSON] = field(default_factory=list)
    finish: str = "stop"
    tokens: int = 7
    delay: float = 0.0
    hold: bool = False
    cut: bool = False
    error: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def source(number: int = 1, **changes: Any) -> JSON:
    """A source as the server describes it."""
    record: JSON = {
        "number": number,
        "location": "library/harbour.md:3",
        "score": 0.8312,
        "id": f"harbour-{number}",
        "text": "The harbour bridge was opened in 1932. It carries eight lanes of traffic.",
        "title": "The harbour",
        "source": "library/harbour.md",
        "start": 3,
        "end": 5,
        "unit": "line",
        "meta": {},
        "injection": None,
    }
    return {**record, **changes}


class FakeApi:
    """The API's state: `script` is what it says next (then ordinary answers), the lists are what it was told."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.script: list[Answer] = []
        self.requests: list[JSON] = []
        self.feedback: list[JSON] = []
        self.feedback_status = 200
        self.key: str | None = None
        self.indexes: list[str] = ["default"]
        self.gone = threading.Event()  # set when a client left a stream that holds
        self._numbers = itertools.count(1)

    def models(self) -> JSON:
        data = [{"id": "parrot", "object": "model", "created": 0, "owned_by": "parley"}]
        return {"object": "list", "data": data, "indexes": self.indexes}

    def next(self) -> tuple[str, Answer]:
        answer = self.script.pop(0) if self.script else Answer(sources=[source()])
        return f"chatcmpl-{next(self._numbers)}", answer

    def app(self) -> Any:
        """The application: the page, and what it calls."""
        from fastapi import FastAPI
        from starlette.requests import Request
        from starlette.responses import JSONResponse, Response, StreamingResponse

        from chatbot.web import mount

        app = FastAPI(openapi_url=None)
        mount(app)

        def refused(request: Request) -> Response | None:
            if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
                return None
            return JSONResponse(error_body("a valid API key is needed"), status_code=401)

        async def models(request: Request) -> Response:
            return refused(request) or JSONResponse(self.models())

        async def feedback(request: Request) -> Response:
            if self.feedback_status != 200:
                return JSONResponse(error_body("feedback is not kept here"), status_code=self.feedback_status)
            self.feedback.append(await request.json())
            return JSONResponse({"status": "ok"})

        async def complete(request: Request) -> Response:
            if no := refused(request):
                return no
            self.requests.append(await request.json())
            number, answer = self.next()
            if answer.status != 200:
                return JSONResponse(error_body(answer.error), status_code=answer.status, headers=answer.headers)
            return StreamingResponse(self._stream(number, answer), media_type="text/event-stream")

        app.add_route("/v1/models", models, methods=["GET"])
        app.add_route("/v1/feedback", feedback, methods=["POST"])
        app.add_route("/v1/chat/completions", complete, methods=["POST"])
        return app

    async def _stream(self, number: str, answer: Answer) -> AsyncIterator[str]:
        def chunk(delta: JSON, finish: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            kind = {"id": number, "object": "chat.completion.chunk", "created": 0, "model": "parrot"}
            return f"data: {json.dumps({**kind, 'choices': [choice], **more})}\n\n"

        yield chunk({"role": "assistant", "content": ""})
        for piece in answer.pieces:
            await asyncio.sleep(answer.delay)
            yield chunk({"content": piece})
            if answer.hold:
                try:
                    await asyncio.sleep(60)
                finally:
                    self.gone.set()
        if answer.error:
            yield f"data: {json.dumps(error_body(answer.error))}\n\n"
        elif not answer.cut:
            behind = {
                name: getattr(answer, name) for name in ("sources", "withheld", "notices", "verdicts", "attribution")
            }
            yield chunk({}, answer.finish, **behind)
            usage = {"prompt_tokens": 9, "completion_tokens": answer.tokens, "total_tokens": 9 + answer.tokens}
            yield f"data: {json.dumps({'id': number, 'choices': [], 'usage': usage})}\n\n"
        if not answer.cut:
            yield "data: [DONE]\n\n"


def error_body(message: str) -> JSON:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application on a free port of this machine, in a thread; gives its address."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # who comes before the server is ready waits
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
