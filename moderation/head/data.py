"""Labelled rows from files: JSON Lines (also gzipped) or CSV -> Row, with every skipped row counted and reported.

A row is `{"text": ..., "labels": {"hate": 1, "sexual": 0}, "split": "train", "source": "name", "group": ...}`; all but
text and labels may be missing. A label that a row does not name is unknown, not 0. In CSV, `labels` is such an object,
or `hate=1;sexual=0`; without that column every other column is a label, with 1, 0 or nothing in it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from moderation.head.annotations import annotation
from moderation.labels import INJECTION
from moderation.labels import LABELS as ALL_LABELS

# What the data sets tell apart of moderation.labels; other labels are allowed.
LABELS = tuple(label for label in ALL_LABELS if "/" not in label or label == "sexual/minors")
OTHER_NAMES = {"self_harm": "self-harm", "sexual_minors": "sexual/minors", "injection": "prompt_injection"}
COLUMNS = ("text", "labels", "split", "source", "group")
SPLITS = ("train", "calib", "test", "unlabelled")


@dataclass(frozen=True)
class Row:
    """A text; what is known of it, label -> 0 or 1; its part (one of SPLITS, "" if unsaid), source and group."""

    text: str
    labels: Mapping[str, int]
    split: str = ""
    source: str = ""
    group: str = ""


@dataclass
class Rows:
    """The rows of some files, and for each reason how many were skipped, with the first place it happened."""

    rows: list[Row] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, place: str) -> None:
        self.skipped[reason] += 1
        self.first.setdefault(reason, place)

    def notes(self) -> list[str]:
        """One line for each reason."""
        return [f"{count} rows skipped: {reason} (first: {self.first[reason]})" for reason, count in
                self.skipped.most_common()]  # fmt: skip


def read_rows(paths: Iterable[str | Path]) -> Rows:
    """All rows of the files, in order; a row without a source gets its file's name.

    Raises ValueError for a file that cannot be read, is of no known kind, or has no usable row.
    """
    result = Rows()
    for path in map(Path, paths):
        before = len(result.rows)
        for place, raw in _raw_rows(path):
            row = _row(raw, path.name.split(".")[0])
            if isinstance(row, str):
                result.skip(row, place)
            else:
                result.rows.append(row)
        if len(result.rows) == before and set(result.skipped) != {"unlabelled"}:
            notes = "; ".join(result.notes()) or "it is empty"
            raise ValueError(f"{path}: no row with a text and labels ({notes}); see docs/moderation-training.md")
    return result


def read_harmless(paths: Iterable[str | Path]) -> Rows:
    """Rows of texts that are all harmless, such as passages of documents: JSON Lines with `text`, labels not needed.

    Every label of LABELS is 0; the source is `harmless_` and the file's name. ValueError as `read_rows`.
    """
    result = Rows()
    for path in map(Path, paths):
        before = len(result.rows)
        for place, raw in _raw_rows(path):
            text = raw.get("text") if isinstance(raw, dict) else None
            if isinstance(text, str) and text.strip():
                source = f"harmless_{path.name.split('.')[0]}"
                result.rows.append(Row(text, dict.fromkeys(LABELS, 0), source=source))
            else:
                result.skip("no text", place)
        if len(result.rows) == before:
            raise ValueError(f"{path}: no row with a text; see docs/moderation-training.md")
    return result


def label_names(rows: Iterable[Row]) -> tuple[str, ...]:
    """Every label that the rows name: the well-known ones first, then others by name."""
    named = {label for row in rows for label in row.labels}
    return (*(label for label in LABELS if label in named), *sorted(named - set(LABELS)))


def matrix(rows: Sequence[Row], labels: Sequence[str]) -> list[list[float]]:
    """(row, label) -> 1.0, 0.0 or NaN where it is unknown."""
    return [[float(row.labels.get(label, "nan")) for label in labels] for row in rows]


def _raw_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, parsed row); a line that cannot be parsed is an exception's text instead of a row."""
    name = path.name.removesuffix(".gz")
    try:
        with _open(path) as file:
            if name.endswith(".csv"):
                yield from _csv_rows(path, file)
            elif name.endswith((".jsonl", ".ndjson")):
                yield from _json_rows(path, file)
            else:
                raise ValueError(f"{path}: unknown kind of file; give .jsonl, .jsonl.gz, .csv or .csv.gz")
    except (OSError, EOFError) as error:  # gzip has both for a broken file
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from None


def _open(path: Path) -> IO[str]:
    if path.name.endswith(".gz"):
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _json_rows(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                yield f"{path}:{number}", None


def _csv_rows(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(1 << 30)  # the default refuses texts above 128 KiB
    reader = csv.DictReader(file)
    if "text" not in (reader.fieldnames or ()):
        raise ValueError(f"{path}: no column 'text'; its columns are {', '.join(reader.fieldnames or ['none'])}")
    try:
        for raw in reader:
            yield f"{path}:{reader.line_num}", raw if None in raw else _csv_row(raw)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _csv_row(raw: dict[str, Any]) -> dict[str, Any]:
    row = {name: raw[name] for name in COLUMNS if raw.get(name)}
    listed = raw.get("labels")
    if listed is None:
        row["labels"] = {name: value for name, value in raw.items() if name not in COLUMNS and value}
    elif listed.lstrip().startswith("{"):
        try:
            row["labels"] = json.loads(listed)
        except (json.JSONDecodeError, RecursionError):
            row["labels"] = None
    else:
        pairs = (pair.partition("=") for pair in listed.split(";") if pair.strip())
        row["labels"] = {name.strip(): value.strip() for name, _, value in pairs}
    return row


def _annotated(found: Sequence[str]) -> dict[str, int]:
    """Nothing found: all labels are 0. Else what was found is 1, the text is unsafe, and the rest is unknown."""
    if not found:
        return dict.fromkeys(LABELS, 0)
    return dict.fromkeys(found, 1) | {"unsafe": 1, INJECTION: 0}


def _row(raw: Any, source: str) -> Row | str:
    """The row, or why it is none."""
    if not isinstance(raw, dict) or None in raw:
        return "not a row"
    text, given = raw.get("text"), raw.get("labels")
    if not isinstance(text, str) or not text.strip():
        return "no text"
    if not isinstance(given, dict):
        return "no labels"
    labels: dict[str, int] = {}
    for name, value in given.items():
        name = str(name)
        if value is None:
            continue
        if str(value).lower() not in ("0", "1", "true", "false", "0.0", "1.0"):
            return "a label is neither 0 nor 1"
        labels[OTHER_NAMES.get(name, name)] = int(str(value).lower() in ("1", "true", "1.0"))
    split = str(raw.get("split") or "")
    if not labels and split == "unlabelled" and (known := annotation(text)):
        split, labels = known[0], _annotated(known[1])
    if not labels and split != "unlabelled":
        return "no label is known"
    if split not in ("", *SPLITS):
        return f"split is none of {', '.join(SPLITS)}"
    if not labels:
        return "unlabelled"
    return Row(text, labels, split, str(raw.get("source") or source), str(raw.get("group") or ""))
