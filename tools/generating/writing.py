"""Rows into a file: .jsonl, .ndjson, .json (a list), .csv and .tsv. Written whole or not at all, by one process."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from common.files import atomic_write, check_can_write, expand
from common.locks import exclusive
from training.data.decoding import is_text

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[Path]:
    """Hold `path` for this process while it is made. ValueError where another process has it, its name does not say how
    to write, or nothing can be written there."""
    path = expand(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: the name of the file must end in {', '.join(SUFFIXES)}")
    check_can_write(path)
    lock = path.with_name(f".{path.name}.lock")
    with exclusive(lock, f"writing {path}"):
        yield path


def write_rows(path: Path, rows: Iterable[Any]) -> int:
    """Write rows, each an object (or, but for tables, any JSON value), and return their number. An error among the rows
    leaves the old file."""
    suffix = path.suffix.lower()
    with atomic_write(path) as file:
        if suffix in (".csv", ".tsv"):
            return _write_table(file, rows, "," if suffix == ".csv" else "\t")
        if suffix == ".json":
            return _write_list(file, rows)
        return sum(file.write(_json(row) + "\n") > 0 for row in rows)


def _write_list(file: IO[str], rows: Iterable[Any]) -> int:
    num = 0
    for num, row in enumerate(rows, start=1):
        file.write(("[\n" if num == 1 else ",\n") + _json(row))
    file.write("\n]\n" if num else "[]\n")
    return num


def _write_table(file: IO[str], rows: Iterable[Any], delimiter: str) -> int:
    """Columns are those of the first row. Lists and objects are written as JSON; None and an empty text are empty
    cells, which readers do not tell apart."""
    writer = None
    num = 0
    for num, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {num} is no object with columns, which a table needs; write .jsonl")
        if writer is None:
            writer = csv.DictWriter(file, list(row), delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writeheader()
        if extra := row.keys() - set(writer.fieldnames):
            raise ValueError(f"row {num} has a column '{min(extra)}' that the first has not; write .jsonl")
        writer.writerow({key: _cell(num, key, value) for key, value in row.items()})
    return num


def _cell(number: int, key: str, value: Any) -> str:
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"row {number}: a table cannot hold '{key}', which has a NUL character; write .jsonl")
    if value is None or isinstance(value, str):
        return value or ""
    return _json(value)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # Half a character cannot be written but as an escape.
    return text if is_text(text) else json.dumps(value)
