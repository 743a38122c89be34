"""Write docs/reference.md, every command and flag, and docs/training-reference.md, every key of a training run, from
the code itself; a test compares them.

Run: python tools/write_reference.py
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_type_hints

import click

from common.cli import OneLineCommand
from common.files import atomic_write, home
from parley.cli import COMMANDS
from training.config.door import SHORT
from training.config.schema import Config
from training.methods import METHODS, method_config
from training.record import plain

_HEAD = """# Reference: every command and flag

Written by `python tools/write_reference.py` from the commands themselves. Each subcommand of `parley` is the same
function as the script in brackets.
"""
_SCRIPTS = {
    "chat": "python chatbot/bot.py",
    "index": "python -m retrieval",
    "models": "python tools/prepare_model.py",
    "moderate": "python -m moderation",
    "train": "python training/main.py",
    "evaluate": "python tools/evaluate.py",
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


# Training ----------------------------------------------------------------------------------------------------------

_TRAINING_HEAD = """# Reference: every key of a training run

Written by `python tools/write_reference.py` from `training/config/schema.py` and the methods themselves. Keys are given
as `KEY=VALUE` on the command line of `python training/main.py`, or in a YAML file (`--config FILE`).

Short forms: {short}.
"""
_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "text or list"}


def training_reference() -> str:
    """The whole page."""
    short = ", ".join(f"`{name}=X` for `{key}=X`" for name, key in SHORT.items())
    parts = [_TRAINING_HEAD.format(short=short)]
    for name, hint in get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint):
            parts += [f"## {name}\n\n{_about(hint)}\n", "\n".join(_keys(name, hint))]
    for name in METHODS:
        settings = method_config(name)
        module = sys.modules[settings.__module__]
        parts.append(f"## method={name}\n\n{_about(module)}\n\n{_about(settings)}\n")
        if len(dataclasses.fields(settings)) > 1:
            parts.append("\n".join(_keys("method", settings)))
    return "\n".join(parts).rstrip() + "\n"


def _about(thing: Any) -> str:
    """Its docstring, without the line that tells how to run it."""
    return re.sub(r"\n+Run: .*", "", inspect.getdoc(thing) or "", flags=re.DOTALL).strip()


def _keys(section: str, settings: Any) -> Iterator[str]:
    yield "| key | type | default | what it says |"
    yield "|---|---|---|---|"
    hints, defaults = get_type_hints(settings), settings()
    comments = {name: about for each in reversed(settings.__mro__[:-1]) for name, about in _comments(each).items()}
    for each in dataclasses.fields(settings):
        if (section, each.name) == ("method", "name"):
            continue
        hint = hints[each.name]
        chosen = hint if isinstance(hint, type) and issubclass(hint, Enum) else None
        about = comments.get(each.name) or (" ".join((inspect.getdoc(chosen) or "").split()) if chosen else "")
        default = json.dumps(plain(getattr(defaults, each.name)), ensure_ascii=False).strip('"')
        default = f"`{default}`" if default else "(none)"
        yield f"| `{section}.{each.name}` | {_cell(_type(hint))} | {default} | {_cell(about)} |"
    yield ""


def _type(hint: Any) -> str:
    """A type as people say it."""
    parts = [part for part in getattr(hint, "__args__", ()) if part is not type(None)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{each.value}`" for each in hint)
    if getattr(hint, "__origin__", None) is list:
        return f"list of {_type(parts[0])}s".replace("texts", "text")
    if getattr(hint, "__origin__", None) is dict:
        return "mapping"
    return f"{_type(parts[0])}, or null" if parts else _TYPES[hint]


def _comments(settings: Any) -> dict[str, str]:
    """The comment on the lines of each field."""
    source = inspect.getsource(settings)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {
        each.start[0]: re.sub(r"#\s*(noqa: \S+\s*#?\s*)?", "", each.string, count=1)
        for each in tokens
        if each.type == tokenize.COMMENT
    }
    return {
        node.target.id: " ".join(
            found[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in found
        )
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@click.command(cls=OneLineCommand)
def cli() -> None:
    """Write docs/reference.md and docs/training-reference.md."""
    for name, text in (("reference.md", reference()), ("training-reference.md", training_reference())):
        with atomic_write(home() / "docs" / name) as file:
            file.write(text)


if __name__ == "__main__":
    cli()
