"""The commands: `python -m moderation check TEXT...`, `evaluate`, `train` and `policy`."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, cast

import click

from common.cli import OneLineGroup
from common.text import lines_of, printable
from moderation.classifiers.windows import encodable
from moderation.moderator import open_moderator
from moderation.policy import dump_policy, load_policy
from moderation.types import DIRECTIONS, Direction, Verdict
from moderation.views import HAZARDS, hazards, level

BATCH = 64  # lines that are judged, and printed, together
WIDTHS = (6, 46, 48)  # characters of the columns of the table, before the text itself
SHOWN = 60  # characters of a text in the table
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

View = Callable[[Verdict], Any]
VIEWS: dict[str, View] = {"levels": level, "hazards": hazards}


# Imported when they are asked for: they need numpy, and `check --help` does not.
LATER = {
    "evaluate": "moderation.head.commands:evaluate_command",
    "train": "moderation.head.commands:train_command",
}


class _Group(OneLineGroup):
    """A group that has its own commands at once and those of LATER when somebody looks."""

    @property
    def commands(self) -> MutableMapping[str, click.Command]:  # an attribute in click
        for name, place in LATER.items():
            if name not in self._here:
                module, function = place.split(":")
                self._here[name] = getattr(importlib.import_module(module), function)
        return self._here

    @commands.setter
    def commands(self, commands: MutableMapping[str, click.Command]) -> None:
        self._here = commands

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        self._here[name or str(cmd.name)] = cmd

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._here.get(cmd_name) or super().get_command(ctx, cmd_name)


@click.group(cls=_Group)
def cli() -> None:
    """Judge texts with a classifier and a policy; train a classifier of your own."""


MODEL_HELP = """\
The classifier: default, a directory with head.json or with a Hugging Face sequence classifier, a Hugging Face id, \
openai[:MODEL], openai+URL[#MODEL], guard:FORMAT:MODEL, strictest:A,B or average:A,B."""


@cli.command()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--file", "file", type=FILE, help="Judge each line of this file.")
@click.option("--model", default="default", show_default=True, help=MODEL_HELP)
@click.option("--label-map", type=FILE, help="YAML or JSON: a sequence classifier's names to our labels, or to null.")
@click.option("--policy", "policy_path", metavar="FILE", help="A policy file; the default policy if left out.")
@click.option("--direction", type=click.Choice(DIRECTIONS), default="input", show_default=True)
@click.option("--view", type=click.Choice(list(VIEWS)), help="Levels of caution, or hazard codes, in place of labels.")
@click.option("--device", help="Torch device of the classifier, such as cpu or cuda:1.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each text.")
def check(
    texts: tuple[str, ...],
    file: Path | None,
    model: str,
    label_map: Path | None,
    policy_path: str | None,
    direction: str,
    view: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Print the verdict on each TEXT, or on each line of a file or of standard input.

    The table has the action, the labels that reached their threshold, the highest scores, and how the text begins.
    """
    if texts and file:
        raise click.UsageError("give texts or --file, not both")
    moderator = open_moderator(model, policy_path, device, label_map)
    if not as_json:
        click.echo(_row("action", "flagged" if view != "levels" else "level", _scores_title(view), "text"))
    for batch in _batches(texts or _lines(file)):
        for text, verdict in zip(batch, moderator.check(batch, cast(Direction, direction)), strict=True):
            click.echo(_json(verdict, view) if as_json else _table_line(text, verdict, view))


@cli.command()
@click.argument("file", required=False)
@click.option("--check", "only_check", is_flag=True, help="Say whether FILE is right, and nothing else.")
def policy(file: str | None, only_check: bool) -> None:
    """Check the policy FILE and print it with every rule spelled out; without FILE, print the default policy."""
    if file is None:
        if only_check:
            raise click.UsageError("--check needs a FILE to check")
        click.echo(resources.files("moderation").joinpath("policy.yaml").read_text(encoding="utf-8"), nl=False)
        return
    loaded = load_policy(file)
    click.echo(f"{file}: no mistakes" if only_check else dump_policy(loaded), nl=only_check)


def _lines(file: Path | None) -> Iterator[str]:
    if file is None:
        yield from (line.rstrip("\r\n") for line in lines_of(sys.stdin))
        return
    with open(file, encoding="utf-8") as stream:
        yield from (line.rstrip("\r\n") for line in lines_of(stream))


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(lines)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield batch


def _json(verdict: Verdict, view: str | None) -> str:
    """The whole verdict, and the view beside it."""
    shown = {"level": level(verdict)} if view == "levels" else {"hazards": hazards(verdict)} if view else {}
    return json.dumps(asdict(verdict) | shown, ensure_ascii=False)


def _scores_title(view: str | None) -> str:
    return "highest hazards" if view == "hazards" else "highest scores"


def _table_line(text: str, verdict: Verdict, view: str | None) -> str:
    scores = hazards(verdict) if view == "hazards" else verdict.scores
    named = {label: f"{label} {HAZARDS[label]}" if view == "hazards" else label for label in scores}
    known = {label: score for label, score in scores.items() if score is not None}
    highest = ", ".join(f"{named[label]} {known[label]:.2f}" for label in sorted(known, key=lambda each: -known[each]))
    said = (level(verdict) or "unknown") if view == "levels" else ", ".join(verdict.labels) or "-"
    if verdict.error is not None:
        return f"{verdict.action:{WIDTHS[0]}}  failed: {verdict.error}"
    return _row(verdict.action, said, highest or "none known", " ".join(printable(encodable(text)).split()))


def _row(action: str, flagged: str, scores: str, text: str) -> str:
    """One line of the table; what is too wide for its column is cut, as the dots say."""
    cells = [_cut(cell, width).ljust(width) for cell, width in zip((action, flagged, scores), WIDTHS, strict=True)]
    return "  ".join([*cells, _cut(text, SHOWN)]).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
