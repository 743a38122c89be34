"""Fetch a set of human preferences and write ChatLLaMA's three files from it; the rejected answers are kept.

Run: python tools/download_dataset.py ARLHF --path datasets --number-of-samples 200
     python tools/download_dataset.py SHP --path datasets --source 'copies/{split}.jsonl'

actor_training_data.json has the better answers (user_input, completion), reward_training_data.json a number of pairs
drawn at random (prompt, responses, scores: 1 for the better, 0 for the other), rlhf_training_data.json the prompts of a
split that the others do not use (user_input). Training reads each as it is.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from common.cli import OneLineCommand
from common.files import expand
from tools.generating.row_formats import written
from tools.generating.writing import only_writer, write_rows
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import ChatRow, PreferenceRow, PromptRow, RankedRow, Row


@dataclass(frozen=True)
class Known:
    """A known set: where its splits are, which are for actor and reward model, and which for RL."""

    location: str
    train: tuple[str, ...]
    rl: str


SETS = {
    "SHP": Known("hf://stanfordnlp/SHP@{split}", ("train", "test"), "validation"),
    "ARLHF": Known("hf://Anthropic/hh-rlhf@{split}", ("train",), "test"),
}
FILES = ("actor_training_data.json", "reward_training_data.json", "rlhf_training_data.json")


class Pairs:
    """The preferences of some splits: `actor` gives each better answer once, and meanwhile `sample` becomes `num` of
    all pairs of the first split, drawn at random."""

    def __init__(self, known: Known, location: str, num: int, seed: int, reports: list[Report]) -> None:
        self._known, self._location, self._num, self._reports = known, location, num, reports
        self._random = random.Random(seed)  # noqa: S311  # no secret
        self.sample: list[PreferenceRow] = []

    def actor(self) -> Iterator[dict[str, object]]:
        """Rows of user_input and completion."""
        seen: set[int] = set()
        for split in self._known.train:
            for place, row in self._rows(split):
                if split == self._known.train[0]:
                    self._draw(row)
                if row.prompt is None:
                    self._reports[-1].skip("no prompt can be told from its answers", place)
                    continue
                key = hash((row.prompt, row.chosen))
                if key in seen:
                    self._reports[-1].skip("the same answer to the same prompt as before", place)
                    continue
                seen.add(key)
                yield from _held(
                    ChatRow(row.prompt.add("assistant", row.chosen)), "chatllama", place, self._reports[-1]
                )

    def _rows(self, split: str) -> Iterator[tuple[str, PreferenceRow]]:
        self._reports.append(Report())
        source = Source(self._location.replace("{split}", split))
        self._count = 0
        for place, row in read_rows(source, (PreferenceRow,), self._reports[-1], strict=False):
            if isinstance(row, PreferenceRow):  # it is no other: that was asked for
                yield place, row

    def _draw(self, row: PreferenceRow) -> None:
        """Each row so far is in the sample with equal chance (Vitter 1985, algorithm R)."""
        self._count += 1
        if len(self.sample) < self._num:
            self.sample.append(row)
        elif (place := self._random.randrange(self._count)) < self._num:
            self.sample[place] = row


def _held(row: Row, format_: str, place: str, report: Report) -> list[dict[str, object]]:
    """The row in a format; none, and counted, where that cannot hold it."""
    try:
        return written(row, format_)
    except ValueError as error:
        report.skip(str(error), place)
        return []


def prompts(source: Source, report: Report) -> Iterator[dict[str, object]]:
    """Rows of user_input, each prompt once."""
    seen: set[int] = set()
    for place, row in read_rows(source, (PromptRow,), report, strict=False):
        if isinstance(row, PromptRow) and hash(row.prompt) not in seen:
            seen.add(hash(row.prompt))
            yield from ({"user_input": fields["prompt"]} for fields in _held(row, "prompt", place, report))
        else:
            report.skip("the same prompt as before", place)


@click.command(
    cls=OneLineCommand,
    context_settings={"show_default": True, "token_normalize_func": lambda name: name.replace("_", "-")},
)
@click.argument("name", type=click.Choice(list(SETS)))
@click.option("--path", "-p", type=click.Path(path_type=Path, file_okay=False), default="datasets", help="Folder.")
@click.option("--number-of-samples", "-n", "num", type=click.IntRange(min=1), default=200, help="Pairs for rewards.")
@click.option("--source", help="Where the splits are, with {split} in it.  [default: the Hugging Face hub]")
@click.option("--unscored", is_flag=True, help="Leave the scores null, for generate_rewards.py to fill in.")
@click.option("--seed", type=int, default=0, help="Of the draw.")
def cli(name: str, path: Path, num: int, source: str | None, unscored: bool, seed: int) -> None:
    """Fetch NAME, Stanford Human Preferences (SHP) or Anthropic's HH-RLHF (ARLHF), and write the three files into a
    folder."""
    known, folder = SETS[name], expand(path)
    location = source or known.location
    if "{split}" not in location:
        raise ValueError(f"--source '{location}' must have {{split}} where {', '.join((*known.train, known.rl))} goes")
    reports: list[Report] = []
    pairs = Pairs(known, location, num, seed, reports)
    with contextlib.ExitStack() as stack:
        actor, reward, rlhf = (stack.enter_context(only_writer(folder / file)) for file in FILES)
        counts = [write_rows(actor, pairs.actor())]
        counts.append(write_rows(reward, (_scored(row, unscored) for row in pairs.sample)))
        reports.append(Report())
        counts.append(write_rows(rlhf, prompts(Source(location.replace("{split}", known.rl)), reports[-1])))
    for line in (line for report in reports for line in report.lines()):
        click.echo(line, err=True)
    for file, count in zip(FILES, counts, strict=True):
        click.echo(f"{folder / file}: {count:,} rows", err=True)


def _scored(row: PreferenceRow, unscored: bool) -> dict[str, object]:
    scores = (None, None) if unscored else (1.0, 0.0)
    (fields,) = written(RankedRow(row.prompt, (row.chosen, row.rejected), scores), "ranked")
    return fields


if __name__ == "__main__":
    cli()
