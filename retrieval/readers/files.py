"""One file -> Documents, by its kind. A new format is a function in this folder and a line in `READERS`.

Nothing here guards: a broken file may take all time and memory there is. See `retrieval/readers/guard.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import BinaryIO, cast

from retrieval.readers.encodings import decode
from retrieval.readers.limits import LeftOut, Limits
from retrieval.readers.markdown import read_markdown
from retrieval.readers.outline import shortened
from retrieval.readers.pdf import read_pdf
from retrieval.readers.plain import read_plain
from retrieval.readers.records import MAX_TITLE_CHARS, Unpacked, looks_like_records, read_records
from retrieval.readers.web import read_html
from retrieval.readers.word import read_docx
from retrieval.types import Block, MetaValue, Unit

STDIN = "stdin"  # the source of what came on standard input
STDIN_SUFFIX = ".stdin"  # of the file that it was copied to
_PEEK_BYTES = 1 << 20


@dataclass(frozen=True)
class Job:
    """A file to read. `root`: the real path of the folder that links may not lead out of, '' where there is none."""

    path: str
    source: str
    root: str
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Parsed:
    """What a document is made of. `record`: its id within the file, '' for a file that is one document."""

    title: str
    blocks: list[Block]
    unit: Unit = "line"
    record: str = ""
    meta: dict[str, MetaValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a reader is given beside the open file."""

    job: Job
    left_out: LeftOut
    progress: Callable[[], None]


Reader = Callable[[BinaryIO, Context], Iterator[Parsed]]
TextReader = Callable[[str], tuple[str, list[Block]]]


def read_file(job: Job, left_out: LeftOut, progress: Callable[[], None]) -> Iterator[Parsed]:
    """The documents of a file; `progress` is called now and then, and `left_out` counts what could not be read.

    Raises ValueError with the bare reason, maybe after some documents, for a file that cannot be read or is beyond
    the limits.
    """
    kind = kind_of(job.path)
    reader = READERS.get(kind)
    if reader is None:
        raise unknown_kind(job.path)
    limits = job.limits
    num_documents = 0
    try:
        with _opened(job) as file:
            size = os.fstat(file.fileno()).st_size
            if kind not in _RECORD_KINDS and kind != STDIN_SUFFIX and size > limits.max_file_mb * 1_000_000:
                raise ValueError(f"it is larger than {limits.max_file_mb} MB")
            for parsed in reader(file, Context(job, left_out, progress)):
                _check_size(parsed, limits)
                num_documents += 1
                yield parsed
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if num_documents == 0:
        raise ValueError(left_out.summary(_part_name(kind)) or "it holds no text")


def kind_of(path: str | PurePath) -> str:
    """The file's suffix in small letters, with the one before '.gz'."""
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def unknown_kind(path: str | PurePath) -> ValueError:
    return ValueError(f"unknown kind '{kind_of(path)}'; known kinds: {known_kinds()}")


def known_kinds() -> str:
    """For people: '.htm, .html, ...'."""
    return ", ".join(sorted(READERS.keys() - {STDIN_SUFFIX}))


def part_name(path: str | PurePath) -> str:
    """What the parts of such a file are called that may be left out."""
    return _part_name(kind_of(path))


def readable(stem: str) -> str:
    """'getting-started_guide' -> 'Getting started guide'."""
    words = re.sub(r"[-_\s]+", " ", stem).strip() or stem
    return words[:1].upper() + words[1:]


def _part_name(kind: str) -> str:
    return "pages" if kind == ".pdf" else "records"


@contextlib.contextmanager
def _opened(job: Job) -> Iterator[BinaryIO]:
    """The file, open; ValueError where it is not what was found under its name before: a pipe, a device, or through a
    link some file outside the folder."""
    if not stat.S_ISREG(os.stat(job.path).st_mode):  # noqa: PTH116  # a device must not even be opened
        raise ValueError("it is not a regular file")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(job.path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if job.root:
            real = os.path.realpath(job.path)
            inside = os.path.commonpath([real, job.root]) == job.root
            if not inside or not os.path.samestat(os.stat(real, follow_symlinks=False), status):  # noqa: PTH116
                raise ValueError("it is a link that leads out of the folder")
        yield cast(BinaryIO, file)


def _check_size(parsed: Parsed, limits: Limits) -> None:
    if sum(len(block.text) for block in parsed.blocks) > limits.max_text_chars:
        raise ValueError(f"it holds more than {limits.max_text_chars:,} characters of text; split it")
    if len(parsed.blocks) > limits.max_blocks:
        raise ValueError(f"it holds more than {limits.max_blocks:,} paragraphs; split it")


def _text(read: TextReader) -> Reader:
    """A reader of files from one of decoded text."""

    def reader(file: BinaryIO, context: Context) -> Iterator[Parsed]:
        return _one(*read(decode(file.read())), "line", context)

    return reader


def _one(title: str, blocks: list[Block], unit: Unit, context: Context) -> Iterator[Parsed]:
    """The document that a file is, if it holds text."""
    source = context.job.source
    fallback = "Standard input" if source == STDIN else readable(PurePath(source).stem)
    if blocks:
        yield Parsed(shortened(title or fallback, MAX_TITLE_CHARS), blocks, unit)


def _pdf(file: BinaryIO, context: Context) -> Iterator[Parsed]:
    return _one(*read_pdf(file, context.left_out, context.progress), "page", context)


def _docx(file: BinaryIO, context: Context) -> Iterator[Parsed]:
    return _one(*read_docx(file, context.job.limits), "paragraph", context)


def _records(file: BinaryIO, context: Context) -> Iterator[Parsed]:
    for name, title, blocks, meta in read_records(file, context.job.limits, context.left_out, context.progress):
        yield Parsed(title, blocks, "record", name, meta)


def _packed_records(file: BinaryIO, context: Context) -> Iterator[Parsed]:
    return _records(cast(BinaryIO, Unpacked(file, context.job.limits.max_ratio)), context)


def _stdin(file: BinaryIO, context: Context) -> Iterator[Parsed]:
    """JSON Lines where it looks like that, else plain text."""
    beginning = file.read(_PEEK_BYTES).lstrip()
    end = beginning.find(b"\n")
    if end == -1 and beginning.startswith(b"{"):  # a long first record
        beginning += file.read(context.job.limits.max_line_chars)
    file.seek(0)
    if looks_like_records(beginning):
        yield from _records(file, context)
        return
    limits = context.job.limits
    if os.fstat(file.fileno()).st_size > limits.max_file_mb * 1_000_000:
        raise ValueError(f"it is larger than {limits.max_file_mb} MB")
    yield from _one(*read_plain(decode(file.read())), "line", context)


_RECORD_KINDS = frozenset({".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"})

READERS: dict[str, Reader] = {
    ".docx": _docx,
    ".htm": _text(read_html),
    ".html": _text(read_html),
    ".jsonl": _records,
    ".jsonl.gz": _packed_records,
    ".markdown": _text(read_markdown),
    ".md": _text(read_markdown),
    ".ndjson": _records,
    ".ndjson.gz": _packed_records,
    ".pdf": _pdf,
    ".rst": _text(read_plain),
    ".txt": _text(read_plain),
    STDIN_SUFFIX: _stdin,
}
