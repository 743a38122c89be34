"""Write docs/reference.md, every command and flag, from the commands themselves; a test compares the two.

Run: python tools/write_reference.py
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import click

from common.cli import OneLineCommand
from common.files import atomic_write, home
from parley.cli import COMMANDS

_HEAD = """# Reference: every command and flag

Written by `python tools/write_reference.py` from the commands themselves. Each subcommand of `parley` is the same
function as the script in brackets.
"""
_SCRIPTS = {
    "chat": "python chatbot/bot.py",
    "index": "python -m retrieval",
    "models": "python tools/prepare_model.py",
    "moderate": "python -m moderation",
    "serve": "python -m chatbot.server",
}


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, (place, about) in COMMANDS.items():
        module, attribute = place.split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        parts.append(f"## parley {name} (`{_SCRIPTS[name]}`)\n\n{about}\n")
        if isinstance(command, click.Group):
            for sub_name, sub in command.commands.items():
                parts.append(f"### parley {name} {sub_name}\n\n{_help(sub)}\n")
                parts.append("\n".join(_rows(sub)))
        else:
            parts.append("\n".join(_rows(command)))
    return "\n".join(parts).rstrip() + "\n"


def _help(command: click.Command) -> str:
    return " ".join((command.help or "").split())


def _rows(command: click.Command) -> Iterator[str]:
    context = click.Context(command, show_default=True)
    yield "| flag | what it does |"
    yield "|---|---|"
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            yield f"| `{parameter.make_metavar(context)}` | argument |"
        elif (record := parameter.get_help_record(context)) is not None:
            flag, about = record
            about = " ".join(about.split())
            yield f"| `{_cell(flag)}` | {_cell(about)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@click.command(cls=OneLineCommand)
def cli() -> None:
    """Write docs/reference.md."""
    with atomic_write(home() / "docs" / "reference.md") as file:
        file.write(reference())


if __name__ == "__main__":
    cli()
