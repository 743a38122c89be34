"""The process: uvicorn, with a SIGTERM that lets the answers at work finish."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from chatbot.server.state import State

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

IDLE_SECONDS = 65  # longer than the minute after which most proxies close a connection
CLOSING_SECONDS = 3


def serve(app: FastAPI, state: State, host: str, port: int) -> None:
    """Until a signal ends it. SIGTERM drains, a second one and Ctrl-C end it at once."""
    import uvicorn

    class Draining(uvicorn.Server):
        """Goes on while it drains, so that a balancer sees it, and clients get a clean refusal."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if sig == signal.SIGTERM and state.draining is None:
                state.drain()
            else:
                super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:
            if state.drained():
                self.should_exit = True
            return await super().on_tick(counter)

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    server = Draining(config)
    try:
        server.run()
    except KeyboardInterrupt:
        _leave_threads(state, 130)
        return  # asked for, and told on the way
    if not server.started:
        sys.exit(1)  # uvicorn has said why
    _leave_threads(state, 0)


def _leave_threads(state: State, code: int) -> Any:
    """End now where a model is still at work: Python would take its thread down in the middle of native code."""
    if state.busy:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
