"""A source -> typed rows, each with its place, and a report of what happened to them.

report = Report()
for place, row in read_rows(Source("chats.jsonl"), (ChatRow, PairRow), report):
    ...
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.data.converting import LeftOut, converted
from training.data.decoding import Raw, read_raw
from training.data.detection import NUM_FIRST_ROWS, detect_format
from training.data.formats import Format, find_format
from training.data.mixture import Source
from training.data.rows import KIND_NAMES, Row
from training.data.sources import DataFile, Found, find_files, fingerprint
from training.data.turns import tidied
from training.data.values import fields_of

_NUM_PLACES = 5  # of each reason
_MAX_REASONS = 50
_OTHER_REASONS = "other reasons"
_REPEATED_RATING = "an earlier rating of the same answer"


@dataclass
class Skipped:
    """Rows that were left out for one reason: how many, and the places of the first few."""

    reason: str
    count: int = 0
    places: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What was read of a source. `converted` counts rows that became rows of another kind, `changed` what was done to
    conversations, both by what it was; `formats` counts files. Filled while rows are read."""

    location: str = ""
    sha256: str = ""
    num_files: int = 0
    num_bytes: int = 0
    num_read: int = 0
    num_given: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    files_left_out: list[str] = field(default_factory=list)
    _skipped: dict[str, Skipped] = field(default_factory=dict)
    _found: Found | None = None

    def fingerprint(self, source: Source) -> str:
        """The SHA-256 sum of what the source holds; it is fetched where it is not here."""
        self.sha256, self.num_files, self.num_bytes = fingerprint(self.find(source))
        return self.sha256

    def find(self, source: Source) -> Found:
        """The files of the source, looked for once."""
        if self._found is None or self.location != source.location:
            self.location, self._found = source.location, find_files(source.location)
            self.files_left_out = list(self._found.left_out)
        return self._found

    def skip(self, reason: str, place: str) -> None:
        """Count a row that is left out. Reasons that differ only in numbers are one."""
        key = re.sub(r"\d+", "0", reason)
        if key not in self._skipped and len(self._skipped) >= _MAX_REASONS:
            key = reason = _OTHER_REASONS
        skipped = self._skipped.setdefault(key, Skipped(reason))
        skipped.count += 1
        if len(skipped.places) < _NUM_PLACES:
            skipped.places.append(place)

    def skipped(self) -> dict[str, int]:
        """How many rows were left out, by reason, the most frequent first."""
        return {each.reason: each.count for each in self._by_count()}

    def lines(self) -> Iterator[str]:
        """For people: the source in a line, and a line for all that was not as it was."""
        formats = ", ".join(self.formats)
        yield f"{self.location}: {self.num_read:,} rows read ({formats}), {self.num_given:,} rows given"
        for what, count in (*self.converted.items(), *self.changed.items()):
            yield f"  {count:,} x {what}"
        for each in self._by_count():
            more = ", ..." if each.count > len(each.places) else ""
            yield f"  {each.count:,} left out: {each.reason} ({', '.join(each.places)}{more})"
        if self.files_left_out:
            yield f"  {len(self.files_left_out):,} files are no data: {', '.join(self.files_left_out[:_NUM_PLACES])}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for run.json."""
        given = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        skipped = [vars(each) for each in self._by_count()]
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in given.items()} | {
            "skipped": skipped
        }

    def _by_count(self) -> list[Skipped]:
        return sorted(self._skipped.values(), key=lambda each: -each.count)


def read_rows(
    source: Source, wanted: Sequence[type[Row]], report: Report | None = None, strict: bool = True
) -> Iterator[tuple[str, Row]]:
    """(place, row) for every row of a source, as one of the kinds that are `wanted`, the first ones preferred.

    A row that cannot be used is a ValueError that names its place, or, unless `strict`, counted in `report`; rows that
    a rule leaves out are always counted. Raises ValueError, after the last row, where there was none to give, and
    where a file cannot be read or its format not be found out.
    """
    report = report or Report()
    chosen = find_format(source.format) if source.format else None
    for file in report.find(source).files:
        yield from _read_file(file, source, chosen, wanted, report, strict)
    if not report.num_given:
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in report.skipped().items())
        raise ValueError(f"{source.location}: no row can be used ({reasons or 'it is empty'})")


def _read_file(
    file: DataFile,
    source: Source,
    format_: Format | None,
    wanted: Sequence[type[Row]],
    report: Report,
    strict: bool,
) -> Iterator[tuple[str, Row]]:
    raws = read_raw(file.path, file.name, source.format)
    if format_ is None:
        first = list(itertools.islice(raws, NUM_FIRST_ROWS))
        raws = itertools.chain(first, raws)
        try:
            format_ = detect_format(first, wanted, source.columns)
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from None
    report.formats[format_.name if format_ else "nothing that can be read"] += 1
    if format_ is not None and format_.name == "feedback":
        raws = _last_ratings(raws, report)
    for raw in raws:
        report.num_read += 1
        try:
            rows = _rows(raw, source, format_, wanted, report)
        except LeftOut as rule:
            report.skip(str(rule), raw.place)
        except ValueError as error:
            if strict:
                raise ValueError(f"{raw.place}: {error}; mend it, or set data.on_bad_row=skip") from None
            report.skip(str(error), raw.place)
        else:
            for row in rows:
                report.num_given += 1
                yield raw.place, row


def _rows(raw: Raw, source: Source, format_: Format | None, wanted: Sequence[type[Row]], report: Report) -> list[Row]:
    if raw.problem is not None or format_ is None:
        raise ValueError(raw.problem or "neither an object, a text, a list of two texts, nor a list of messages")
    row = format_.parse(fields_of(raw.value, source.columns))
    tidy = [tidied(each) for each in converted(row, wanted)]
    for given, changes in tidy:
        if type(given) is not type(row):
            report.converted[f"{KIND_NAMES[type(row)]} rows as {KIND_NAMES[type(given)]} rows"] += 1
        report.changed.update(changes)
    return [given for given, _ in tidy]


def _last_ratings(raws: Iterator[Raw], report: Report) -> Iterator[Raw]:
    """Of the ratings of one answer (one `id`) the last alone, where the first stood. The file is held in memory: people
    have written it."""
    last: dict[str, Raw] = {}
    for number, raw in enumerate(raws):
        id_ = raw.value.get("id") if isinstance(raw.value, dict) else None
        key = id_ if isinstance(id_, str) else f"row {number}"
        if key in last:
            report.num_read += 1
            report.skip(_REPEATED_RATING, last[key].place)
        last[key] = raw
    yield from last.values()
