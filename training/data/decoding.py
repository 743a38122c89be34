"""Files -> raw rows, one at a time, each with its place: `chats.jsonl:17` (a line), `chats.parquet row 17`.

.jsonl .json .csv .tsv .parquet .arrow .txt .md, and all but .parquet and .arrow also as .gz and .zst. Only .json, and
.txt as one text, are read whole; of all others memory holds a piece.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from training.data.columnar import read_arrow, read_parquet
from training.data.zst import open_zst

TEXT_SUFFIXES = (".txt", ".md")
# Ways to take a text file apart, besides as one text: see docs/training-data.md.
TEXT_PARTS = ("lines", "paragraphs")


class Raw(NamedTuple):
    """A row as it stands in its file, or, where it cannot be read, the `problem`."""

    place: str
    value: Any
    problem: str | None = None


def read_raw(path: Path, name: str, format: str | None = None) -> Iterator[Raw]:  # noqa: A002
    """The rows of a file; `name` is what places call it. Of `format` only what concerns text files matters.

    Raises ValueError, maybe after some rows, where the file itself is broken or its kind unknown; a row that is broken
    by itself comes with its problem.
    """
    suffix, compression = kind_of(path)
    if suffix in _COLUMNAR:
        if compression:
            raise ValueError(f"{name}: {suffix} files are compressed within; unpack it once")
        for number, row in enumerate(_COLUMNAR[suffix](path, name), start=1):
            yield Raw(f"{name} row {number}", row)
        return
    if suffix in TEXT_SUFFIXES:
        read = _text_reader(format)
    elif suffix in _READERS:
        read = _READERS[suffix]
    else:
        raise ValueError(f"{name}: unknown kind of file; known: {known_kinds()}")
    try:
        with contextlib.closing(_open(path, compression)) as file:
            _refuse_utf16(file, name)
            yield from read(file, name, format)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: broken or cut off in its compression ({error}); get it again") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from None


def kind_of(path: Path) -> tuple[str, str]:
    """(`.jsonl`, `.gz`): what a file's name says of its content and its compression, each '' where it says nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    return (suffixes[-1] if suffixes else ""), compression


def is_known(path: Path) -> bool:
    """Whether the file's name says that it holds rows or text."""
    suffix, compression = kind_of(path)
    return suffix in _READERS or suffix in TEXT_SUFFIXES or (suffix in _COLUMNAR and not compression)


def known_kinds() -> str:
    """For messages: every suffix."""
    return " ".join((*_READERS, *TEXT_SUFFIXES, *_COLUMNAR)) + ", also with .gz or .zst"


def _text_reader(format_: str | None) -> _Reader:
    if format_ in TEXT_PARTS:
        return _text_parts
    return _whole_text if format_ in (None, "text") else _json


def _open(path: Path, compression: str) -> io.BufferedReader:
    return _COMPRESSIONS[compression](path) if compression else open(path, "rb")


def _open_gz(path: Path) -> io.BufferedReader:
    return io.BufferedReader(gzip.open(path, "rb"))


def _refuse_utf16(file: io.BufferedReader, name: str) -> None:
    if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise ValueError(f"{name}: UTF-16 text; convert it first: iconv -f utf-16 -t utf-8")


# JSON -----------------------------------------------------------------------------------------------------------


def _json_lines(file: io.BufferedReader, name: str, _: str | None = None) -> Iterator[Raw]:
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            yield _json_line(f"{name}:{number}", line)


def _json_line(place: str, line: bytes) -> Raw:
    try:
        return Raw(place, json.loads(line.rstrip().decode("utf-8")))
    except UnicodeDecodeError as error:
        return Raw(place, None, f"not UTF-8 text (byte {error.start})")
    except RecursionError:
        return Raw(place, None, "JSON nested too deeply")
    except json.JSONDecodeError as error:
        return Raw(place, None, f"not a line of JSON ({error.msg}, character {error.pos + 1})")
    except ValueError:  # an integer of more digits than Python reads
        return Raw(place, None, "not JSON that can be read: a number is too long")


def _json(file: io.BufferedReader, name: str, _: str | None = None) -> Iterator[Raw]:
    """A list of rows, `{"data": [...]}`, one row; or JSON Lines under this name, as is often so."""
    data = file.read().removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        return
    try:
        value = json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        first, _separator, rest = data.strip().partition(b"\n")
        if not rest or _json_line("", first).problem:
            raise ValueError(f"{name}:{error.lineno}: not JSON: {error.msg}") from None
        yield from _json_lines(_buffered(data), name)
        return
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(name, error)) from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{name}: not JSON that can be read ({error})") from None
    del data
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, start=1):
        yield Raw(f"{name} row {number}", row)


def _buffered(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))


def _not_utf8(name: str, error: UnicodeDecodeError) -> str:
    return f"{name}: not UTF-8 text (byte {error.start}); convert it first, such as with iconv -f latin1 -t utf-8"


# Tables ---------------------------------------------------------------------------------------------------------


def _csv(file: io.BufferedReader, name: str, _: str | None = None) -> Iterator[Raw]:
    return _table(file, name, ",")


def _tsv(file: io.BufferedReader, name: str, _: str | None = None) -> Iterator[Raw]:
    return _table(file, name, "\t")


def _table(file: io.BufferedReader, name: str, delimiter: str) -> Iterator[Raw]:
    """Rows as dicts by the names in the first line. An empty cell is None: CSV cannot tell it from an empty text."""
    csv.field_size_limit(2**31 - 1)  # Python's own is 131,072 characters, less than many a text
    # Bytes that are no text become half characters, so that they count against their row and not the whole file.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    with text:
        yield from _table_rows(text, name, delimiter)


def _table_rows(text: io.TextIOWrapper, name: str, delimiter: str) -> Iterator[Raw]:
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = f"{name}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise ValueError(
                    f"{place}: the first line cannot be read ({error}); it must name the columns"
                ) from None
            yield Raw(place, None, f"not a row of a table ({error})")
            continue
        if cells is None:
            return
        if header is None:
            header = cells
            if len(set(header)) < len(header) or not all(header):
                raise ValueError(f"{place}: the first line must name the columns, each differently, not {header!r}")
        elif cells:
            yield _table_row(place, header, cells)


def _table_row(place: str, header: list[str], cells: list[str]) -> Raw:
    if len(cells) != len(header):
        return Raw(place, None, f"{len(cells)} cells where the first line names {len(header)} columns")
    if not all(is_text(cell) for cell in cells):
        return Raw(place, None, "not UTF-8 text")
    return Raw(place, {key: cell or None for key, cell in zip(header, cells, strict=True)})


# Text -----------------------------------------------------------------------------------------------------------


def _whole_text(file: io.BufferedReader, name: str, format: str | None) -> Iterator[Raw]:  # noqa: A002
    """The file as one text; or, unless it was said to be text, as JSON where it is that: Speaker's pairs are often
    called .txt."""
    data = file.read().removeprefix(codecs.BOM_UTF8)
    if format is None and data.lstrip()[:1] in (b"[", b"{"):
        with contextlib.suppress(ValueError):
            yield from list(_json(_buffered(data), name))
            return
    yield Raw(name, {"text": _text(data, name)})


def _text_parts(file: io.BufferedReader, name: str, format: str | None) -> Iterator[Raw]:  # noqa: A002
    """Each line that is not blank; or what stands between blank lines, at the place of its first line."""
    paragraph: list[str] = []
    first = 1
    for number, line in enumerate(file, start=1):
        text = _text(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, f"{name}:{number}").rstrip("\n")
        if text.strip() and format == "lines":
            yield Raw(f"{name}:{number}", {"text": text})
        elif text.strip():
            first = first if paragraph else number
            paragraph.append(text)
        elif paragraph:
            yield Raw(f"{name}:{first}", {"text": "\n".join(paragraph)})
            paragraph = []
    if paragraph:
        yield Raw(f"{name}:{first}", {"text": "\n".join(paragraph)})


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(name, error)) from None


def is_text(value: str) -> bool:
    """Whether a string is text, and holds no half of a character (a lone surrogate)."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_Reader = Callable[[io.BufferedReader, str, str | None], Iterator[Raw]]
_READERS: dict[str, _Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
_COLUMNAR = {".parquet": read_parquet, ".arrow": read_arrow}
_COMPRESSIONS = {".gz": _open_gz, ".zst": open_zst}
