"""Write data in another format: any that training reads, into any other that can hold it.

Run: python tools/convert_dataset.py chats.jsonl chats.csv --to alpaca
     python tools/convert_dataset.py reward_training_data.json pairs.jsonl --to preference --group

A row that the format cannot hold stops it, or is counted (--skip-bad-rows); what is lost on the way, as the worse
answer where a preference becomes a chat, is counted and told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from chatbot.conversation import Conversation
from chatbot.options import FILE
from common.cli import OneLineCommand
from tools.generating.row_formats import written
from tools.generating.writing import only_writer, write_rows
from training.data.converting import LeftOut
from training.data.formats import find_format
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import PreferenceRow, RankedRow, Row
from training.methods.pairs import Pairs, pairs_of

Placed = tuple[str, Row]


def converted_rows(
    source: Source,
    format_: str,
    report: Report,
    strict: bool = True,
    group: bool = False,
    pairs: Pairs = Pairs.best_over_rest,
) -> Iterator[dict[str, Any]]:
    """The rows of a source as objects of a format; of scored answers `pairs`, where the format holds preferences.

    With `group` scored answers to one prompt, in rows of their own, are first put into one row. A row that cannot be
    written is a ValueError that names its place, or counted unless `strict`.
    """
    kinds = find_format(format_).kinds
    wanted = (*kinds, RankedRow) if group or PreferenceRow in kinds else kinds
    rows: Iterable[Placed] = read_rows(source, wanted, report, strict)
    for place, row in grouped(rows) if group else rows:
        try:
            for each in _preferences(row, pairs, report) if type(row) not in kinds else [row]:
                yield from written(each, format_)
        except LeftOut as rule:
            report.skip(str(rule), place)
        except ValueError as error:
            if strict:
                raise ValueError(f"{place}: {error}; choose another format, or give --skip-bad-rows") from None
            report.skip(str(error), place)


def _preferences(row: Row, pairs: Pairs, report: Report) -> Iterator[PreferenceRow]:
    """Pairs of a row's scored answers. LeftOut where no two scores differ."""
    if not isinstance(row, RankedRow):
        raise ValueError("only scored answers can be put together (--group)")
    counts: Counter[str] = Counter()
    for better, worse in pairs_of(row, counts, pairs):
        report.converted["pairs made of scored answers"] += 1
        yield PreferenceRow(row.prompt, better.text, worse.text, None, row.weight)
    report.changed.update({what: count for what, count in counts.items() if count})


def grouped(rows: Iterable[Placed]) -> Iterator[Placed]:
    """Scored answers to one prompt as one row, where the first of them stood. All are held in memory."""
    found: dict[Conversation | str, Placed] = {}
    for place, row in rows:
        prompt = row.prompt if isinstance(row, RankedRow) else None
        key = prompt or f"alone {len(found)}"
        first = found.get(key, ("", None))[1]
        if isinstance(first, RankedRow) and isinstance(row, RankedRow):
            row = replace(first, responses=first.responses + row.responses, scores=first.scores + row.scores)
            place = found[key][0]
        found[key] = (place, row)
    yield from found.values()


@click.command(cls=OneLineCommand, context_settings={"show_default": True})
@click.argument("data")
@click.argument("out", type=FILE)
@click.option("--to", "to", required=True, help="Format to write; docs/training-data.md shows a row of each.")
@click.option("--from", "from_", help="Format of DATA.  [default: found out]")
@click.option("--group", is_flag=True, help="Put scored answers to one prompt into one row.")
@click.option(
    "--pairs", type=click.Choice(Pairs), default=Pairs.best_over_rest, help="Of scored answers as preferences."
)
@click.option("--skip-bad-rows", is_flag=True, help="Count rows that cannot be used, instead of stopping at one.")
def cli(data: str, out: Path, to: str, from_: str | None, group: bool, pairs: Pairs, skip_bad_rows: bool) -> None:
    """Write DATA, a source as training reads it, into OUT: .jsonl, .json, .csv or .tsv."""
    find_format(to)
    report = Report()
    with only_writer(out) as target:
        source = Source(data, format=from_)
        rows: Iterator[Any] = converted_rows(source, to, report, not skip_bad_rows, group, pairs)
        if to == "pairs" and target.suffix.lower() not in (".csv", ".tsv"):
            rows = (list(row.values()) if len(row) == 2 else row for row in rows)  # as Speaker has them
        num = write_rows(target, rows)
    for line in report.lines():
        click.echo(line, err=True)
    click.echo(f"{target}: {num:,} rows of format {to}", err=True)


if __name__ == "__main__":
    cli()
