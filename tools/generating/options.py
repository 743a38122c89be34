"""The flags that all commands share which ask a chat model, and what they do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from chatbot.assembly import load_model
from chatbot.conversation import Conversation
from chatbot.engines.base import Generation
from chatbot.options import DEFAULT_MODEL, FILE, answer_options, loading_options
from common.files import expand, home
from common.models import models_folder
from tools.generating.client import Generator

_Command = TypeVar("_Command", bound=Callable[..., Any])

# No part of what an answer depends on: a secret, and what changes the speed alone.
_NOT_IN_IDENTITY = ("api_key", "threads", "gpu_layers")
_FOLDER = click.Path(path_type=Path, file_okay=False)
_SHARED = (
    click.option("--model", default=DEFAULT_MODEL, help="Who answers: known name, directory, Hugging Face id, GGUF."),
    click.option("--templates", type=FILE, help="JSON file with texts of your own: {actor, reward, rlhf}."),
    click.option("--at-once", type=click.IntRange(min=1), default=8, help="Requests in the making at a time."),
    click.option(
        "--cache",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where answers are kept.  [default: cache/answers]",
    ),
    click.option("--price-in", type=click.FloatRange(min=0), default=0.0, help="Cost of a million tokens read."),
    click.option("--price-out", type=click.FloatRange(min=0), default=0.0, help="Cost of a million tokens written."),
    click.option("--dry-run", is_flag=True, help="Only say how many requests there are, and show the first."),
)


def generating_options(command: _Command) -> _Command:
    """Give a click command all flags for who answers and how."""
    for option in reversed(_SHARED):
        command = option(command)
    return loading_options(answer_options(command))


def settings(**defaults: Any) -> dict[str, Any]:
    """click's context settings: these defaults, and the older systems' names with underscores (`--max_tokens`)."""
    return {
        "show_default": True,
        "default_map": {"repetition_penalty": 1.0, **defaults},
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "max_content_width": 110,
    }


def open_generator(options: Mapping[str, Any]) -> Generator:
    """A generator as the flags say. The model is opened when it is first asked."""
    names = [name for name in asdict(Generation()) if name in options]
    generation = Generation(**{name: options[name] for name in names})
    loading = {name: value for name, value in options.items() if name in _loading_names()}
    identity = {name: value for name, value in loading.items() if name not in _NOT_IN_IDENTITY}
    identity["base_url"] = options["base_url"] or os.environ.get("OPENAI_BASE_URL")
    identity |= {"model": options["model"], "files": _files([options["model"], *options["adapters"]])}
    cache = expand(options["cache"]) if options["cache"] else home() / "cache" / "answers"
    return Generator(lambda: load_model(options["model"], options), identity, generation, cache, options["at_once"])


def _loading_names() -> set[str]:
    def nothing() -> None: ...

    return {str(option.name) for option in click.command()(loading_options(nothing)).params}


def _files(names: list[str]) -> list[Any]:
    """Sizes and times of the files that local names stand for: a model that is trained again answers anew."""
    found = []
    for name in names:
        place = expand(name)
        place = place if place.exists() else models_folder() / name
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        found += [[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in files if each.is_file()]
    return found


def show_plan(
    options: Mapping[str, Any], num_requests: int, first: Conversation | None, at_least: bool = False
) -> None:
    """What --dry-run says: how many requests there are, and the first, as it is before the model's template."""
    least = "at least " if at_least else ""
    click.echo(f"{least}{num_requests:,} requests, each answered with up to {options['max_tokens']:,} tokens")
    if first is None:
        return
    num_words = sum(len(message.content.split()) for message in first)
    most = num_requests * options["max_tokens"] * options["price_out"] / 1e6
    click.echo(f"the first has {num_words:,} words" + (f"; all answers cost up to {most:,.4f}" if most else ""))
    for message in first:
        click.echo(f"--- {message.role}\n{message.content}")


def show_tally(generator: Generator, options: Mapping[str, Any]) -> None:
    """Requests, tokens and cost, on stderr."""
    click.echo(generator.tally.line(options["price_in"], options["price_out"]), err=True)
