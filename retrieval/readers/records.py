"""JSON Lines: one document a record, `{"id", "title", "text", "metadata"}`; BEIR corpora use `_id`.

Read in pieces, so that neither the size of the file nor the length of a line counts against memory.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import math
import re
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from retrieval.readers.encodings import clean_text, decode, unicode_encoding
from retrieval.readers.limits import LeftOut, Limits
from retrieval.readers.outline import shortened
from retrieval.types import Block, MetaValue

MAX_TITLE_CHARS = 500
MAX_ID_CHARS = 300
_PIECE_BYTES = 1 << 18
_FREE_UNPACKED_BYTES = 20_000_000  # unpacked data this large harms nobody, whatever its ratio
_OWN_FIELDS = frozenset({"id", "_id", "title", "text", "metadata", "meta"})
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")
_BROKEN = re.compile(r"[\ud800-\udfff\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

Record = tuple[str, str, list[Block], dict[str, MetaValue]]  # id (unique in its file), title, blocks, metadata


def read_records(file: BinaryIO, limits: Limits, left_out: LeftOut, progress: Callable[[], None]) -> Iterator[Record]:
    """The good records of a file; the others are counted in `left_out` with their line numbers.

    Scalars beside the known fields, and in `metadata` or `meta`, are metadata; what is nested in `metadata` is kept as
    JSON text. A record without an id has its line number as one; a second record with the same id gets '@' and its
    line number added. Raises ValueError, maybe after some records, where the file itself is broken.
    """
    seen = _Seen()
    for number, line in enumerate(_lines(file, limits.max_line_chars, progress), start=1):
        if line is not None and not line.strip():
            continue
        left_out.num_parts += 1
        where = f"line {number}"
        try:
            if line is None:
                raise ValueError(f"longer than {limits.max_line_chars:,} bytes")
            record = _parse(line)
            title, blocks = _title_and_blocks(record, number)
        except ValueError as error:
            left_out.add(where, str(error))
            continue
        name = original = _name(record, number)
        while not seen.add(name):
            name = f"{name}@{number}"
        if name != original:
            left_out.remark("the id of an earlier record: '@' and the line number were added to it")
        yield name, title, blocks, _metadata(record, limits, left_out)


def looks_like_records(beginning: bytes) -> bool:
    """Whether the first line that is not blank is a JSON object with a 'text'."""
    encoding, num_mark = unicode_encoding(beginning)
    text = beginning[num_mark:].decode(encoding or "utf-8", "replace").lstrip()
    line = text.partition("\n")[0]
    if not line.startswith("{"):
        return False
    try:
        return "text" in _parse(line.encode("utf-8", "replace"))
    except ValueError:
        return False


class Unpacked:
    """The unpacked bytes of a gzip file, with `read` as its one method. Raises ValueError where it is broken, or grows
    beyond `max_ratio` times the packed size."""

    def __init__(self, file: BinaryIO, max_ratio: int) -> None:
        self._packed = file
        self._unpacked = gzip.GzipFile(fileobj=file)
        self._max_ratio = max_ratio
        self._num = 0

    def read(self, size: int) -> bytes:
        try:
            piece = self._unpacked.read1(size)  # `read` would lose what stands before the place where a file is cut
        except EOFError:
            raise ValueError("it is cut off: the gzip file ends in the middle") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"it is not a sound gzip file ({error})") from None
        self._num += len(piece)
        if self._num > max(_FREE_UNPACKED_BYTES, self._max_ratio * self._packed.tell()):
            raise ValueError(f"it unpacks to more than {self._max_ratio} times its size, as a gzip bomb does")
        return piece


class _Seen:
    """A set of strings in 16 bytes each or less: an open-addressed table of 64-bit hashes.

    Two strings out of a hundred million share a hash with a probability of 0.0003; then one is numbered needlessly.
    """

    def __init__(self) -> None:
        self._num = 0
        self._slots = array("Q", bytes(8 * 1024))

    def add(self, text: str) -> bool:
        """Whether it was not there before."""
        digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
        if not self._insert(int.from_bytes(digest, "big") or 1):  # 0 marks an empty slot
            return False
        self._num += 1
        if self._num * 3 > len(self._slots) * 2:
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for value in old:
                if value:
                    self._insert(value)
        return True

    def _insert(self, value: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        i = value & mask
        while slots[i]:
            if slots[i] == value:
                return False
            i = (i + 1) & mask
        slots[i] = value
        return True


def _lines(file: BinaryIO, limit: int, progress: Callable[[], None]) -> Iterator[bytes | None]:
    """The lines, without their ends; None for one longer than `limit`, which is passed over without being held."""
    held: list[bytes] = []
    num_held = 0
    too_long = False
    for piece in _in_utf8(file):
        progress()
        *ended, rest = piece.split(b"\n")
        for line in ended:
            yield None if too_long or num_held + len(line) > limit else b"".join([*held, line])
            held, num_held, too_long = [], 0, False
        num_held += len(rest)
        if num_held > limit:
            held, num_held, too_long = [], 0, True
        elif rest:
            held.append(rest)
    if too_long or held:
        yield None if too_long else b"".join(held)


def _in_utf8(file: BinaryIO) -> Iterator[bytes]:
    """The file in pieces; one in UTF-16 or UTF-32 is converted, any other is given out as it is."""
    piece = file.read(_PIECE_BYTES)
    encoding, num_mark = unicode_encoding(piece)
    piece = piece[num_mark:]
    if encoding in ("", "utf-8"):
        while piece:
            yield piece
            piece = file.read(_PIECE_BYTES)
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while piece:
        yield decoder.decode(piece).encode("utf-8", "replace")
        piece = file.read(_PIECE_BYTES)


def _parse(line: bytes) -> dict[str, Any]:
    """Raises ValueError with the reason for what is no JSON object."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        text = decode(line)
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError:  # Python refuses to read integers of thousands of digits
        raise ValueError("not JSON that can be read: a number is too long") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _title_and_blocks(record: Mapping[str, Any], number: int) -> tuple[str, list[Block]]:
    """Title, '' if there is none, and the text's paragraphs. Without text a title stands for it."""
    title, text = record.get("title"), record.get("text")
    if not isinstance(text, str):
        raise ValueError("no 'text'" if text is None else "its 'text' is not a string")
    title = " ".join(clean_text(title).split()) if isinstance(title, str) else ""
    paragraphs = _BLANK_LINE.split(clean_text(text.replace("\r\n", "\n").replace("\r", "\n")))
    blocks = [Block(line, number, number) for each in paragraphs if (line := " ".join(each.split()))]
    if not blocks and not title:
        raise ValueError("its 'text' is empty")
    return shortened(title, MAX_TITLE_CHARS), blocks or [Block(title, number, number)]


def _name(record: Mapping[str, Any], number: int) -> str:
    """The record's id as one printable line, else its line number. A long one ends in a hash of the whole."""
    value = next((record[key] for key in ("id", "_id") if record.get(key) not in (None, "")), None)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return str(number)
    name = _BROKEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))
    if len(name) <= MAX_ID_CHARS:
        return name
    return f"{name[: MAX_ID_CHARS - 18]}~{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


def _metadata(record: Mapping[str, Any], limits: Limits, left_out: LeftOut) -> dict[str, MetaValue]:
    meta: dict[str, MetaValue] = {}
    given: Any = next((record[key] for key in ("metadata", "meta") if record.get(key) is not None), {})
    given = given if isinstance(given, dict) else {"metadata": given}
    beside = {key: value for key, value in record.items() if key not in _OWN_FIELDS and not _is_nested(value)}
    for key, value in {**beside, **given}.items():
        if value is None:
            continue
        name = shortened(" ".join(clean_text(key).split()), 100)
        kept = _scalar(value)
        if isinstance(kept, str) and len(kept) > limits.max_meta_chars:
            left_out.remark(f"metadata '{name}', longer than {limits.max_meta_chars:,} characters, left out")
        elif len(meta) >= limits.max_meta_keys:
            left_out.remark(f"metadata beyond {limits.max_meta_keys} values left out")
        else:
            meta[name] = kept
    return meta


def _is_nested(value: object) -> bool:
    return isinstance(value, dict | list)


def _scalar(value: Any) -> MetaValue:
    """A value as it is; nested ones, and numbers that JSON or a 64-bit integer cannot hold, as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        return clean_text(value)
    try:
        return clean_text(json.dumps(value, ensure_ascii=False))
    except (RecursionError, ValueError):
        return clean_text(repr(type(value)))
