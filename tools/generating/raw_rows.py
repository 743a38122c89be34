"""Rows as they stand in their files, each beside what training reads in it: for commands that write rows back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from training.data.converting import LeftOut, converted
from training.data.decoding import Raw, read_raw
from training.data.detection import NUM_FIRST_ROWS, detect_format
from training.data.formats import Format, find_format
from training.data.mixture import Source
from training.data.rows import Row
from training.data.sources import find_files
from training.data.turns import tidied
from training.data.values import fields_of


class RawRow(NamedTuple):
    """`value`: the row as it is; `format`: its name; `row`: what it is read as, None where a `problem` prevents it."""

    place: str
    value: Any
    format: str
    row: Row | None
    problem: str | None = None


def read_raw_rows(source: Source, wanted: Sequence[type[Row]]) -> Iterator[RawRow]:
    """Every row of a source, those that cannot be read as the `wanted` kinds among them. ValueError where a file cannot
    be read, or its format not be found out."""
    chosen = find_format(source.format) if source.format else None
    for file in find_files(source.location).files:
        raws = read_raw(file.path, file.name, source.format)
        format_ = chosen
        if format_ is None:
            first = list(itertools.islice(raws, NUM_FIRST_ROWS))
            raws = itertools.chain(first, raws)
            try:
                format_ = detect_format(first, wanted, source.columns)
            except ValueError as error:
                raise ValueError(f"{file.name}: {error}") from None
        for raw in raws:
            yield _raw_row(raw, format_, source, wanted)


def _raw_row(raw: Raw, format_: Format | None, source: Source, wanted: Sequence[type[Row]]) -> RawRow:
    name = format_.name if format_ else ""
    try:
        if raw.problem is not None or format_ is None:
            raise ValueError(raw.problem or "of no known format")
        made = converted(format_.parse(fields_of(raw.value, source.columns)), wanted)
        row, _ = tidied(made[0])
    except (LeftOut, ValueError) as error:
        return RawRow(raw.place, raw.value, name, None, str(error))
    return RawRow(raw.place, raw.value, name, row)
