"""Files from somewhere -> a new folder that is whole, or none.

They are gathered in a hidden folder beside it, `.name.part`, with a record of each that is there, and what is killed
goes on with those and with the part of the one after them. The last step is a rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from common.fetching import RETRIES, Remote, fetch
from common.files import atomic_write, read_json, sha256_of, sync_folder, write_json
from common.locks import exclusive

Say = Callable[[str], None]
Entry = dict[str, Any]  # of a file in a manifest: `num_bytes`, `sha256`, and what else a conversion says of it

_RECORD = ".gathered.json"


@dataclass(frozen=True)
class File:
    """A file that is wanted, under its `name` in the folder (with `/`): at a URL, or on this machine.

    `convert` makes it of what the source holds, which then is in a file that ends in `raw_suffix`, and returns what is
    worth recording. `num_bytes` and `sha256` are those of the source, None where they are not known beforehand.
    """

    name: str
    source: Remote | Path
    convert: Callable[[Path, Path], Entry] | None = None
    raw_suffix: str = ""

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.name).parts
        inside = parts and not self.name.startswith("/") and not any(part.startswith(".") for part in parts)
        if not inside or "\\" in self.name or not self.name.isprintable():
            raise ValueError(f"{self.name!r} is no name for a file of a model or of data; leave it out")

    @property
    def num_bytes(self) -> int | None:
        return self.source.num_bytes if isinstance(self.source, Remote) else self.source.stat().st_size

    @property
    def sha256(self) -> str | None:
        return self.source.sha256 if isinstance(self.source, Remote) else None

    @property
    def raw_name(self) -> str:
        """The name of what is fetched: another where it is then converted."""
        return self.name if self.convert is None else f"{self.name}.raw{self.raw_suffix}"


@contextlib.contextmanager
def new_folder(target: Path, what: str, replace: bool = False) -> Iterator[Path]:
    """The hidden folder in which `target` is made; at the end it becomes `target`, in one rename.

    What is raised leaves it for another try. A `target` that is there by then stays, unless `replace`. Raises
    ValueError while another process makes the same.
    """
    scratch, old, lock = (target.with_name(f".{target.name}.{end}") for end in ("part", "old", "lock"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(lock, f"preparing {what}"):
        if old.exists() and not target.exists():  # killed between the two renames below
            old.rename(target)
        scratch.mkdir(exist_ok=True)
        try:
            yield scratch
            (scratch / _RECORD).unlink(missing_ok=True)
            if replace and target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            if not target.exists():
                scratch.rename(target)
                sync_folder(target.parent)
            for left in (scratch, old):
                shutil.rmtree(left, ignore_errors=True)
        finally:
            with contextlib.suppress(OSError):  # where something is in it
                scratch.rmdir()
            with contextlib.suppress(OSError):
                lock.unlink()


def gather(files: Sequence[File], scratch: Path, what: str, say: Say, retries: int = RETRIES) -> dict[str, Entry]:
    """Bring the files into `scratch`, small ones first, and return what is to be recorded of each, by name.

    Those that an earlier try brought stay, after their sums were checked; all else in `scratch` goes. Raises ValueError
    where the disk has too little room for all, before the first is fetched, and where one cannot be had whole.
    """
    record = _Record(scratch)
    here = {file.name for file in files if record.has(file)}
    missing = sorted((file for file in files if file.name not in here), key=lambda file: file.num_bytes or 0)
    if here:
        say(f"{what}: {len(here)} of {len(files)} files are here already")
    check_space(scratch, _needed(missing, scratch), what)
    if missing:
        total = sum(file.num_bytes or 0 for file in missing)
        say(f"{what}: fetching {len(missing)} {'file' if len(missing) == 1 else 'files'}, {size_text(total)}")
    for file in missing:
        _bring(file, scratch, record, say, retries)
    entries = {file.name: record.entries[file.name] for file in files}
    for path in scratch.rglob("*"):
        if path.is_file() and path.relative_to(scratch).as_posix() not in {*entries, _RECORD}:
            path.unlink()
    return entries


def check_prepared(target: Path, record_name: str, place: str, say: Say) -> None:
    """Whether a folder that is there was made of this place, and its files have the sums that they had then.

    Raises ValueError, which says what to do, where not.
    """
    record = read_json(target / record_name) if (target / record_name).is_file() else {}
    made_of = record.get("asked", "something else")
    if made_of != place:
        raise ValueError(f"{target} is there already, of {made_of}; --force replaces it, --name makes another")
    files: dict[str, Entry] = record["files"]
    if damaged := [name for name, entry in files.items() if not _is_as_recorded(target / name, entry)]:
        raise ValueError(
            f"{target}: {len(damaged)} of {len(files)} files are not what was fetched ({damaged[0]}); "
            "--force fetches them anew"
        )
    say(f"{target.name}: already in {target}, with the sums that its files had")


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises ValueError where the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{what} needs {size_text(needed)} ({needed:,} bytes) in {folder.parent}, which has {size_text(free)} "
            f"({free:,} bytes) free; free some, or name a folder on another disk: --folder, or PARLEY_HOME"
        )


def size_text(num_bytes: int) -> str:
    """For people: 1.5 GB."""
    size, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


class _Record:
    """What has been brought into a folder: the entries of files that are whole, kept on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / _RECORD
        self.entries: dict[str, Entry] = {}
        with contextlib.suppress(ValueError):  # none, or a broken one: nothing has been brought
            if isinstance(read := read_json(self._path), dict):
                self.entries = {name: entry for name, entry in read.items() if isinstance(entry, dict)}

    def has(self, file: File, raw: bool = False) -> bool:
        """Whether just this file (or what it is made of) is here."""
        name = file.raw_name if raw else file.name
        entry = self.entries.get(name, {})
        if not _is_as_recorded(self._folder / name, entry):
            return False
        if file.sha256 is not None:
            return bool(entry.get("source_sha256", entry["sha256"]) == file.sha256)
        return file.num_bytes in (None, entry.get("source_bytes", entry["num_bytes"]))

    def add(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry
        write_json(self._path, self.entries)


def _is_as_recorded(path: Path, entry: Entry) -> bool:
    return path.is_file() and path.stat().st_size == entry.get("num_bytes") and sha256_of(path) == entry.get("sha256")


def _needed(files: Sequence[File], scratch: Path) -> int:
    """Bytes that the files will take, with the largest of those that stand beside their conversion for a time."""
    raws = [scratch / file.raw_name for file in files]
    had = [path for raw in raws for path in (raw, raw.with_name(f".{raw.name}.part")) if path.is_file()]
    beside = max((file.num_bytes or 0 for file in files if file.convert), default=0)
    return max(0, sum(file.num_bytes or 0 for file in files) + beside - sum(path.stat().st_size for path in had))


def _bring(file: File, scratch: Path, record: _Record, say: Say, retries: int) -> None:
    raw, path = scratch / file.raw_name, scratch / file.name
    if not record.has(file, raw=True):
        raw.parent.mkdir(parents=True, exist_ok=True)
        get = file.source
        sha256 = _copy(get, raw) if isinstance(get, Path) else fetch(get, raw, retries, say)
        record.add(file.raw_name, {"num_bytes": raw.stat().st_size, "sha256": sha256})
    if file.convert is not None:
        source = {f"source_{key}": value for key, value in record.entries[file.raw_name].items()}
        source["source_bytes"] = source.pop("source_num_bytes")
        said = file.convert(raw, path)
        record.add(file.name, {"num_bytes": path.stat().st_size, "sha256": sha256_of(path)} | source | said)
        raw.unlink()


def _copy(source: Path, path: Path) -> str:
    """Copy a file of this machine and return its SHA-256 sum."""
    digest = hashlib.sha256()
    try:
        with open(source, "rb") as given, atomic_write(path, "wb") as file:
            while block := given.read(1 << 20):
                digest.update(block)
                file.write(block)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ValueError(f"{source}: the disk is full; free some space: the same again goes on") from None
        raise ValueError(f"{source}: {error.strerror or error}") from None
    if path.stat().st_size != source.stat().st_size:
        raise ValueError(f"{source}: changed while it was copied; run it again")
    return digest.hexdigest()
