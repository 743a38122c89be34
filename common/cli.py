"""Manners shared by all commands: one clear line for a mistake, a traceback only on request.

`OneLineCommand` and `OneLineGroup` are click classes: a ValueError, an OSError or a click usage error becomes one line
on stderr and exit code 2; Ctrl-C exits with 130. PARLEY_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click


class OneLineErrors(click.Command):
    """Mixin: errors as one line on stderr, exit code 2."""

    def main(  # type: ignore[override]  # one signature instead of click's two overloads
        self, args: Sequence[str] | None = None, prog_name: str | None = None, standalone_mode: bool = True, **more: Any
    ) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # Piped text is UTF-8 on every system; what a terminal's encoding lacks is shown as '?'.
            if isinstance(stream, io.TextIOWrapper):
                if stream.isatty():
                    stream.reconfigure(errors="replace")
                else:
                    stream.reconfigure(encoding="utf-8")
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **more)
        try:
            result = super().main(args, prog_name, standalone_mode=False, **more)
        except click.exceptions.NoArgsIsHelpError as help_:
            click.echo(help_.format_message())
            sys.exit(0)
        except click.exceptions.Exit as done:
            sys.exit(done.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(130)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code if error.exit_code != 1 else 2)
        except (ValueError, OSError) as error:
            if os.environ.get("PARLEY_DEBUG") == "1":
                raise
            _fail(str(error), 2)
        sys.exit(result if isinstance(result, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. A reader of our output that goes away (`| head`) is no error; click would exit with 1."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes once more at its end: not into the broken pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        return result


class OneLineCommand(OneLineErrors):
    """A single command with one-line errors."""


class OneLineGroup(OneLineErrors, click.Group):
    """A group of commands with one-line errors."""


def _fail(message: str, code: int) -> None:
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)
