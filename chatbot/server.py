"""The bot over HTTP, for OpenAI's clients: POST /v1/chat/completions (also streaming), GET /v1/models, GET /health.

Run: python -m chatbot.server --index indexes/sample
     curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
          -d '{"messages": [{"role": "user", "content": "Where is Zurich?"}]}'

It listens on this machine only, unless --host says otherwise. One answer is made at a time; others wait their turn.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click

from chatbot import api
from chatbot.core import Bot
from chatbot.options import bot_options, check_options
from common.cli import OneLineCommand

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_app(bot: Bot) -> FastAPI:
    """The web application around one bot. Needs the `server` extra."""
    from fastapi import Body, FastAPI
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.exceptions import HTTPException

    app = FastAPI(title="Parley", docs_url=None, redoc_url=None)
    # One answer at a time. Requests wait here, not in threads: waiting threads could use up the pool that the one
    # answer at work needs for its next token.
    one_at_a_time = asyncio.Lock()

    @app.exception_handler(RequestValidationError)
    async def not_json(_: object, __: Exception) -> Response:
        return JSONResponse(api.error_body("the request's body is not JSON"), status_code=400)

    @app.exception_handler(HTTPException)
    async def no_such_place(_: object, error: HTTPException) -> Response:
        return JSONResponse(api.error_body(error.detail), status_code=error.status_code, headers=error.headers)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return api.list_models(bot)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: Any = Body(default=None)) -> Response:  # noqa: B008  # FastAPI's way
        if not isinstance(body, dict):
            problem = "the request must be a JSON object, sent with Content-Type: application/json"
            return JSONResponse(api.error_body(problem), status_code=400)
        try:
            async with one_at_a_time:
                request = await run_in_threadpool(api.read_request, bot, body)
                if not request.stream:
                    return JSONResponse(await run_in_threadpool(api.complete, request))
        except ValueError as error:
            return JSONResponse(api.error_body(str(error)), status_code=400)
        return StreamingResponse(_events(request, one_at_a_time), media_type="text/event-stream")

    return app


async def _events(request: api.Request, one_at_a_time: asyncio.Lock) -> AsyncIterator[str]:
    """Server-sent events. A client that goes away ends this coroutine, which stops the model."""
    from fastapi.concurrency import iterate_in_threadpool

    async with one_at_a_time:
        chunks = api.stream(request)
        try:
            async for chunk in iterate_in_threadpool(chunks):
                yield _event(chunk)
        except ValueError as error:  # too late for another status code
            yield _event(api.error_body(str(error)))
        finally:
            chunks.close()
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


@click.command(cls=OneLineCommand, context_settings={"show_default": True, "max_content_width": 110})
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on.")
@bot_options
def cli(host: str, port: int, **options: Any) -> None:
    """Serve the bot over HTTP, as OpenAI's clients expect it."""
    check_options(options)
    try:
        import uvicorn
    except ImportError:
        raise ValueError("the server needs more packages; install them with: pip install 'parley[server]'") from None
    from chatbot.assembly import open_bot

    app = create_app(open_bot(options))
    click.echo(f"Parley on http://{host}:{port}/v1 (Ctrl-C ends)", err=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")


if __name__ == "__main__":
    cli()
