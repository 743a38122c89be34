"""The command line of the server."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from chatbot.options import FILE, bot_options, check_options
from common.cli import OneLineCommand
from common.files import check_can_write

if TYPE_CHECKING:
    from chatbot.server.state import State

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 lets other machines in."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on."),
    # Who may ask
    click.option("--keys", type=FILE, help="YAML or JSON: key -> name, indexes. See docs/server.md."),
    click.option("--allowed-host", multiple=True, metavar="NAME", help="Another name that a proxy knows this by."),
    click.option("--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin ask, as https://a.example."),
    click.option("--page/--no-page", default=True, help="Serve the page for people at /."),
    click.option(
        "--lock-moderation/--no-lock-moderation",
        default=None,
        help="A request cannot turn moderation off.  [default: with --moderation-policy]",
    ),
    click.option("--feedback", type=FILE, help="Keep ratings in this file (JSON Lines)."),
    # Limits
    click.option("--concurrent", type=click.IntRange(min=1), default=8, help="Answers at work at once."),
    click.option("--queue", "queued", type=click.IntRange(min=0), default=128, help="Requests that may wait."),
    click.option("--body-bytes", type=click.IntRange(min=1), default=1 << 20, help="Largest request."),
    click.option("--prompt-tokens", type=click.IntRange(min=1), default=32_768, help="Longest conversation."),
    click.option(
        "--request-seconds", type=click.FloatRange(min=0, min_open=True), default=300.0, help="Longest request."
    ),
    click.option("--drain-seconds", type=click.FloatRange(min=0), default=30.0, help="To finish in, after SIGTERM."),
    click.option("--max-k", type=click.IntRange(min=1), default=50, help="Most passages that a request may ask for."),
    click.option("--remember", type=click.IntRange(min=0), default=1000, help="Answers that can still be rated."),
)


def server_options(command: _Command) -> _Command:
    """Give a click command the server's own flags."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(cls=OneLineCommand, context_settings={"show_default": True, "max_content_width": 110})
@server_options
@bot_options
def cli(host: str, port: int, page: bool, **options: Any) -> None:
    """Serve the bot over HTTP, as OpenAI's clients expect it."""
    check_options(options)
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ValueError("the server needs more packages; install them with: pip install 'parley[server]'") from None
    state = open_state(host, options, port)
    from chatbot.server.app import create_app
    from chatbot.server.serving import serve

    app = create_app(state, page)
    click.echo(f"Parley on http://{host}:{port}/v1 (Ctrl-C ends)", err=True)
    if page:
        click.echo(f"The page is at http://{host}:{port}/", err=True)
    sys.stderr.flush()
    serve(app, state, host, port)


def check_can_listen(host: str, port: int) -> None:
    """ValueError where nothing can listen there: better now than after the model was loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":  # there it would let two servers share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            problem = (error.strerror or str(error)).lower()
            raise ValueError(f"cannot listen on {host}:{port}: {problem}; choose another --port or --host") from None


def open_state(host: str, options: dict[str, Any], port: int = 0) -> State:
    """Everything that the server needs, opened. Raises ValueError, the cheap checks first. `port` 0: any free one."""
    from chatbot.api.exchanges import Exchanges
    from chatbot.server.gate import LOCAL_HOSTS
    from chatbot.server.keys import is_loopback, open_keyring
    from chatbot.server.limits import Limits
    from chatbot.server.opening import named_indexes, open_service
    from chatbot.server.state import State

    names = list(named_indexes(options["index"])) if options["retrieval"] else []
    keyring = open_keyring(options["keys"], os.environ.get("PARLEY_API_KEY"), names)
    if not is_loopback(host) and not len(keyring):
        raise ValueError(
            f"--host {host} lets other machines in, and nobody would need a key; give --keys FILE, or put a key into "
            "PARLEY_API_KEY"
        )
    check_can_listen(host, port)
    if options["feedback"]:
        check_can_write(Path(options["feedback"]))
    locked = options["lock_moderation"]
    hosts = {*options["allowed_host"]} | (LOCAL_HOSTS | {host.lower()} if is_loopback(host) else set())
    service = open_service(
        options,
        feedback=options["feedback"],
        lock_moderation=bool(options["moderation_policy"]) if locked is None else locked,
        max_k=options["max_k"],
        max_prompt_tokens=options["prompt_tokens"],
        tell_cached=len(keyring) <= 1,
        exchanges=Exchanges(options["remember"]),
    )
    limits = Limits(*(options[name] for name in _LIMITS))
    # Any name leads here where the server listens to others: keys guard it then, unless names are given.
    return State(service, keyring, limits, frozenset(map(str.lower, hosts)) or None, tuple(options["cors"]))


_LIMITS = ("body_bytes", "concurrent", "queued", "request_seconds", "drain_seconds")
