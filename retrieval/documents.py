"""Files, folders, patterns and standard input -> Documents, one at a time, in a stable order.

What is found is decided here, without opening any file; each is then read by a guarded process
(`retrieval/readers/guard.py`). A new format is a line in `retrieval/readers/files.py`.
"""

from __future__ import annotations

import atexit
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import BinaryIO

from common.files import expand
from retrieval.readers.files import READERS, STDIN, STDIN_SUFFIX, kind_of, known_kinds, unknown_kind
from retrieval.readers.guard import GuardedReader as GuardedReader
from retrieval.readers.guard import Limits as Limits
from retrieval.types import Document, SourceFile

OnSkip = Callable[[str, str], None]

MAX_STDIN_BYTES = 8_000_000_000
_WILDCARD = re.compile(r"[*?\[]")
_CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")  # the passages of a BEIR folder
_INDEX = frozenset({"manifest.json", "lock"})  # a folder with these is an index
_BESIDE_CORPUS = frozenset({"queries.jsonl", "queries.jsonl.gz", "qrels"})  # one of them makes it such a folder
# So that nothing but a record of a.jsonl can have an id that begins with 'a.jsonl#'.
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # halves of characters that stand for no byte of a name
_AMBIGUOUS = re.compile(r"(\.(?:jsonl|ndjson)(?:\.gz)?|^stdin)#", re.IGNORECASE)


def read_documents(paths: Iterable[str | Path], on_skip: OnSkip) -> Iterator[Document]:
    """The documents under `paths`: `find_files`, then `read_files`."""
    yield from read_files(find_files(paths, on_skip), on_skip)


def find_files(paths: Iterable[str | Path], on_skip: OnSkip) -> list[SourceFile]:
    """The files under `paths`, each real file once, as given and sorted by name within a folder. Opens none of them.

    A path is a file, a folder with all that is below it, a pattern (`docs/**/*.md`; what it matches, and all that is
    below the folders it matches) or '-' for standard input, which is copied to a temporary file. Hidden files and
    folders are passed over unless named. Of a BEIR folder (corpus.jsonl beside queries.jsonl or qrels/) only the
    corpus is taken. Whatever else in a folder cannot be read goes to `on_skip(source, reason)`.

    Raises ValueError for a path that is missing or of an unknown kind when the user named it directly, and for a
    folder or a pattern without a file of a known kind.
    """
    found: dict[Path, SourceFile] = {}  # by real path, so that two ways to a file give it once
    for given in paths:
        if str(given) == "-":
            file = _copy_of_stdin()
            found[file.path] = file
            continue
        path = expand(given)
        name = printable_path(path)
        try:
            is_folder = path.is_dir()
            exists = is_folder or path.exists()
        except OSError as error:
            raise ValueError(f"cannot read '{name}': {error.strerror}") from None
        if is_folder:
            _add_all(_walk(path, on_skip), path, name, found, on_skip)
        elif exists:
            try:
                found.setdefault(path.resolve(), _source_file(path, name, "", None))
            except ValueError as error:
                raise ValueError(f"cannot read '{name}': {error}") from None
        elif _WILDCARD.search(str(path)):
            _addmatches_pattern(path, name, found, on_skip)
        else:
            raise ValueError(
                f"'{name}' does not exist; name files ({known_kinds()}), folders that hold some, a pattern, or - for "
                "standard input"
            )
    return list(found.values())


def read_files(files: Iterable[SourceFile], on_skip: OnSkip, limits: Limits | None = None) -> Iterator[Document]:
    """Read the files one at a time, each when the iterator gets to it, in a guarded process.

    What cannot be read goes to `on_skip(source, reason)`, also single records and pages of files that can. Raises
    ValueError after the last file if no document could be read at all.
    """
    num_documents = 0
    failures: list[tuple[SourceFile, str]] = []
    with GuardedReader(limits) as reader:
        for file in files:
            num_before = num_documents
            try:
                for document in reader.read(file):
                    num_documents += 1
                    yield document
            except ValueError as error:
                num = num_documents - num_before
                on_skip(file.source, f"{error} (after {num:,} documents, which are kept)" if num else str(error))
                failures.append((file, str(error)))
            for note in reader.take_notes():
                on_skip(file.source, note)
    if failures and not num_documents:
        file, reason = failures[0]
        if len({failed.folder for failed, _ in failures}) == 1 and file.folder:
            raise _nothing_in(file.folder)
        more = f" (and {len(failures) - 1} other files)" if len(failures) > 1 else ""
        raise ValueError(f"cannot read '{file.source}': {reason}{more}")


def _copy_of_stdin() -> SourceFile:
    """Standard input as a file, which lives as long as this process: an index is built from what can be read twice."""
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError("there is no standard input to read; name files or folders instead of -")
    handle, name = tempfile.mkstemp(prefix="parley-", suffix=STDIN_SUFFIX)
    path = Path(name).resolve()
    atexit.register(path.unlink, missing_ok=True)
    with open(handle, "wb") as copy:
        num = _copy(sys.stdin.buffer, copy)
        if num > MAX_STDIN_BYTES:
            raise ValueError(f"standard input holds more than {MAX_STDIN_BYTES / 1e9:g} GB; write it to a file")
    return SourceFile(path, STDIN, "", num, path.stat().st_mtime_ns)


def _copy(source: BinaryIO, target: BinaryIO) -> int:
    num = 0
    while num <= MAX_STDIN_BYTES and (piece := source.read(1 << 20)):
        num += target.write(piece)
    return num


def _add_all(paths: Iterable[Path], root: Path, name: str, found: dict[Path, SourceFile], on_skip: OnSkip) -> None:
    """Add the files of known kinds among `paths` to `found`; raise ValueError where there are none."""
    num_found = 0
    for path in paths:
        source = printable_path(path)
        try:
            found.setdefault(path.resolve(), _source_file(path, source, name, root))
        except ValueError as error:
            on_skip(source, str(error))
        else:
            num_found += 1
    if num_found == 0:
        raise _nothing_in(name)


def _addmatches_pattern(pattern: Path, name: str, found: dict[Path, SourceFile], on_skip: OnSkip) -> None:
    """Expand the pattern here: not every shell does, and links out of the folder that it begins in must be seen."""
    parts = pattern.parts
    num_fixed = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    base, wild = Path(*parts[:num_fixed]), parts[num_fixed:]
    if not base.is_dir():
        raise ValueError(f"'{name}' matches nothing: '{printable_path(base)}' is no folder")
    paths = _walk(base, on_skip, lambda folder: _may_lead_to(folder.relative_to(base).parts, wild))
    matching = [path for path in paths if matches_pattern(path.relative_to(base).parts, wild)]
    if not matching:
        raise ValueError(f"'{name}' matches no file")
    _add_all(matching, base, name, found, on_skip)


def matches_pattern(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a pattern matches a path or a folder that it is in, part by part, as a shell does; '**' stands for any
    number of folders."""
    ways = {0}  # how many parts of the path the pattern so far can have matched
    for each in pattern:
        if each == "**":
            ways = set(range(min(ways), len(parts) + 1))
        else:
            ways = {i + 1 for i in ways if i < len(parts) and fnmatchcase(parts[i], each)}
        if not ways:
            return False
    return True


def _may_lead_to(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a match can lie below the folder, so that it is worth looking."""
    for part, each in zip(parts, pattern, strict=False):
        if each == "**":
            return True
        if not fnmatchcase(part, each):
            return False
    return True


def _walk(folder: Path, on_skip: OnSkip, worth: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Everything below `folder` that is not a folder and not hidden, sorted by name at each level. Folders that are
    not `worth` it are left out, and so are indexes: they hold what others do."""
    root = folder.resolve()
    pending = [folder]
    while pending:
        path = pending.pop()
        try:
            if path != folder and path.is_symlink() and not path.resolve().is_relative_to(root):
                on_skip(printable_path(path), "it is a link that leads out of the folder")
            elif not path.is_dir():
                yield path
            # A linked folder is reached by its own name.
            elif path == folder or (not path.is_symlink() and (worth is None or worth(path))):
                pending.extend(_children(path))
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            on_skip(printable_path(path), f"it cannot be opened ({getattr(error, 'strerror', error)})")


def _children(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, sorted backwards; of a BEIR folder the corpus alone."""
    names = os.listdir(folder)  # noqa: PTH208  # strings: half the time for large folders
    if set(names) >= _INDEX:
        return []
    corpus = next((name for name in _CORPUS if name in names), None)
    if corpus and not _BESIDE_CORPUS.isdisjoint(names):
        names = [corpus]
    return [folder / name for name in sorted(names, reverse=True) if not name.startswith(".")]


def _source_file(path: Path, source: str, folder: str, root: Path | None) -> SourceFile:
    """Raises ValueError with the bare reason where the file will not be read; a pipe or a device must not even be
    opened."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError("it is a broken link") from None
    except OSError as error:
        raise ValueError(error.strerror) from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    kind = kind_of(path)
    if kind not in READERS or kind == STDIN_SUFFIX:
        raise unknown_kind(path)
    return SourceFile(path, source, folder, status.st_size, status.st_mtime_ns, root)


def printable_path(path: PurePath) -> str:
    """With forward slashes; control characters, marks that reverse the direction of text, and bytes that are not
    UTF-8 are escaped, so that the name can be printed and stored, and stands on one line. Two paths never look the
    same."""
    name = path.as_posix().replace("\\", "\\\\")
    name = _NO_BYTE.sub(lambda found: found[0].encode("unicode_escape").decode(), name)
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    name = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
    return _AMBIGUOUS.sub(r"\1\\#", name)


def _nothing_in(folder: str) -> ValueError:
    return ValueError(f"folder '{folder}' holds no document that can be read; known kinds: {known_kinds()}")
