"""The commands: `python -m moderation check TEXT... --model PATH` and `python -m moderation policy [FILE]`."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib import resources
from typing import cast

import click

from common.cli import OneLineGroup
from common.text import lines_of
from moderation.moderator import open_moderator
from moderation.policy import dump_policy, load_policy
from moderation.types import DIRECTIONS, Direction, Verdict

BATCH = 64  # lines of standard input that are judged, and printed, together


@click.group(cls=OneLineGroup)
def cli() -> None:
    """Judge texts with a classifier and a policy."""


@cli.command()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--model", required=True, help="A sequence-classification model: a directory or a Hugging Face id.")
@click.option("--policy", "policy_path", metavar="FILE", help="A policy file; the default policy if left out.")
@click.option("--direction", type=click.Choice(DIRECTIONS), default="input", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each text.")
def check(texts: tuple[str, ...], model: str, policy_path: str | None, direction: str, as_json: bool) -> None:
    """Print the verdict on each TEXT, or on each line of standard input: action, flagged labels, all scores."""
    if not sys.stderr.isatty():
        _hide_progress()
    moderator = open_moderator(model, policy_path)
    lines = texts or (line.rstrip("\n") for line in lines_of(sys.stdin))
    for batch in _batches(lines):
        for verdict in moderator.check(batch, cast(Direction, direction)):
            click.echo(json.dumps(asdict(verdict), ensure_ascii=False) if as_json else _line(verdict))


@cli.command()
@click.argument("file", required=False)
def policy(file: str | None) -> None:
    """Check the policy FILE and print it with every rule spelled out; without FILE, print the default policy."""
    if file is None:
        click.echo(resources.files("moderation").joinpath("policy.yaml").read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(dump_policy(load_policy(file)), nl=False)


def _hide_progress() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(lines)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield batch


def _line(verdict: Verdict) -> str:
    """Three columns between tabs: action, flagged labels, every score from the highest down (or what failed)."""
    known = {label: score for label, score in verdict.scores.items() if score is not None}
    scores = [f"{label} {known[label]:.3f}" for label in sorted(known, key=lambda label: -known[label])]
    unknown = [f"{label} ?" for label in verdict.scores if label not in known]
    return "\t".join([verdict.action, ", ".join(verdict.labels) or "-", verdict.error or ", ".join(scores + unknown)])
