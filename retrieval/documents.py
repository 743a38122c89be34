"""Files and folders -> Documents, one at a time, in a stable order.

A new format is a function in `readers/` and a line in `READERS`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.files import expand
from retrieval.readers.markdown import read_markdown
from retrieval.readers.plain import read_plain
from retrieval.readers.web import read_html
from retrieval.types import Block, Document

Reader = Callable[[str], tuple[str, list[Block]]]
OnSkip = Callable[[str, str], None]

READERS: dict[str, Reader] = {
    ".htm": read_html,
    ".html": read_html,
    ".markdown": read_markdown,
    ".md": read_markdown,
    ".txt": read_plain,
}

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_MAX_CONTROL_SHARE = 0.02  # of all characters; terminal logs and form feeds stay below, binary files do not


@dataclass(frozen=True)
class SourceFile:
    """A file to read. `source` is its path as the user gave it, joined with the part inside the folder `folder`
    where it was found; `folder` is '' for a file that the user named. `size` is in bytes."""

    path: Path
    source: str
    folder: str
    size: int


def read_documents(paths: Iterable[str | Path], on_skip: OnSkip) -> Iterator[Document]:
    """The documents under `paths` (files, and folders with all that is below them), each once.

    Order: as given, and sorted by name within a folder. Hidden files and folders are passed over. Whatever else in
    a folder cannot be read goes to `on_skip(source, reason)`.

    Raises ValueError for a path that is missing, of an unknown kind, binary or without text when the user named it
    directly, and for a folder in which nothing can be read. All names are checked before the first file is read.
    """
    yield from read_files(find_files(paths, on_skip), on_skip)


def find_files(paths: Iterable[str | Path], on_skip: OnSkip) -> list[SourceFile]:
    """The files that `read_files` will read, without opening any; errors and skips as in `read_documents`."""
    found: dict[Path, SourceFile] = {}  # by real path, so that two ways to a file give it once
    for given in paths:
        path = expand(given)
        name = _printable(path)
        try:
            is_folder = path.is_dir()
            if not is_folder and not path.exists():
                raise ValueError(f"'{name}' does not exist; name files ({_known()}) or folders that hold some")
        except OSError as error:
            raise ValueError(f"cannot read '{name}': {error.strerror}") from None
        if is_folder:
            _find_in_folder(path, name, found, on_skip)
            continue
        try:
            found.setdefault(path.resolve(), SourceFile(path, name, "", _size(path)))
        except ValueError as error:
            raise ValueError(f"cannot read '{name}': {error}") from None
    return list(found.values())


def read_files(files: Iterable[SourceFile], on_skip: OnSkip) -> Iterator[Document]:
    """Read the files one at a time, each when the iterator gets to it; errors and skips as in `read_documents`."""
    num_readable: dict[str, int] = {}  # by folder
    for file in files:
        num_readable.setdefault(file.folder, 0)
        try:
            document = _read(file)
        except ValueError as error:
            if not file.folder:
                raise ValueError(f"cannot read '{file.source}': {error}") from None
            on_skip(file.source, str(error))
            continue
        num_readable[file.folder] += 1
        yield document
    for folder, num in num_readable.items():
        if num == 0:
            raise _nothing_in(folder)


def decode(data: bytes) -> str:
    """Text from UTF-8, UTF-16 with a byte order mark, or Windows-1252; line ends become '\\n'.

    Stray control characters become spaces. Raises ValueError for bytes that are no text.
    """
    text = _decode(data)
    num_control = len(_CONTROL.findall(text))
    if "\0" in text or num_control > _MAX_CONTROL_SHARE * len(text):
        raise ValueError("it is not text (it holds NUL bytes or many control characters)")
    return _CONTROL.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise ValueError("it is not text (it begins as UTF-16 but is not)") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _find_in_folder(folder: Path, name: str, found: dict[Path, SourceFile], on_skip: OnSkip) -> None:
    """Add the files of known kinds below `folder` to `found`; raise ValueError where there are none."""
    num_found = 0
    for path in _walk(folder, on_skip):
        source = _printable(path)
        try:
            found.setdefault(path.resolve(), SourceFile(path, source, name, _size(path)))
        except ValueError as error:
            on_skip(source, str(error))
        else:
            num_found += 1
    if num_found == 0:
        raise _nothing_in(name)


def _walk(folder: Path, on_skip: OnSkip) -> Iterator[Path]:
    """Everything below `folder` that is not a folder and not hidden, sorted by name at each level."""
    root = folder.resolve()
    pending = [folder]
    while pending:
        path = pending.pop()
        try:
            if path != folder and path.is_symlink() and not path.resolve().is_relative_to(root):
                on_skip(_printable(path), "it is a link that leads out of the folder")
            elif not path.is_dir():
                yield path
            elif path == folder or not path.is_symlink():  # a linked folder is reached by its own name
                children = sorted(path.iterdir(), reverse=True)
                pending.extend(child for child in children if not child.name.startswith("."))
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            on_skip(_printable(path), f"it cannot be opened ({getattr(error, 'strerror', error)})")


def _size(path: Path) -> int:
    """Bytes of a file. Raises ValueError with the bare reason where it will not be read; a pipe or a device must not
    even be opened."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError("it is a broken link") from None
    except OSError as error:
        raise ValueError(error.strerror) from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"unknown kind '{path.suffix}'; known kinds: {_known()}")
    return status.st_size


def _read(file: SourceFile) -> Document:
    """Raises ValueError with the bare reason where the file cannot be read or holds no text."""
    try:
        text = decode(file.path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror) from None
    title, blocks = READERS[file.path.suffix.lower()](text)
    if not blocks:
        raise ValueError("it holds no text")
    return Document(file.source, tuple(blocks), title or _readable(file.path.stem), file.source)


def _readable(stem: str) -> str:
    """'getting-started_guide' -> 'Getting started guide'."""
    words = re.sub(r"[-_\s]+", " ", _printable(Path(stem))).strip() or stem
    return words[:1].upper() + words[1:]


def _printable(path: Path) -> str:
    """With forward slashes; control characters and bytes that are not UTF-8 are escaped, so that the name can be
    printed and stored, and stands on one line."""
    name = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def _nothing_in(folder: str) -> ValueError:
    return ValueError(f"folder '{folder}' holds no document that can be read; known kinds: {_known()}")


def _known() -> str:
    return ", ".join(sorted(READERS))
