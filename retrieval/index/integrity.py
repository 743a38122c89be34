"""Checks that the files of an index are those that its manifest names, and remembers which were found sound.

Reading every byte of a large index takes seconds, so `verified.json` in the index says which files had the right sum
and how the system described them then (size, times, inode). A file that is described in the same way was not written
since. That is no defence against somebody who can write to the folder and sets out to deceive: it finds accidents.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from common.files import read_json, sha256_of, write_json
from retrieval.index.manifest import FileInfo, Manifest, damaged

VERIFIED = "verified.json"
# Times come from the system's clock tick, some milliseconds: a file that was written to this recently could be written
# to again without its times telling.
_RACY_NS = 2_000_000_000


def verify(index: Path, manifest: Manifest, remember: bool = True) -> int:
    """Bytes that had to be read. Raises ValueError for the first file that is missing or not as the manifest says.

    `remember=False` reads every file, whatever is remembered, and remembers nothing.
    """
    known = _known(index) if remember else {}
    sound: dict[str, list[int | str]] = {}
    num_read = 0
    for name, expected in files_of(manifest):
        stamp = _stamp(index, name, expected)
        if known.get(name) != [*stamp, expected.sha256]:
            if sha256_of(index / name) != expected.sha256:
                raise damaged(index, name, "SHA-256 differs from the manifest")
            num_read += expected.size
        if stamp == _stamp(index, name, expected) and time.time_ns() - max(stamp[1:3]) > _RACY_NS:
            sound[name] = [*stamp, expected.sha256]
    if remember and sound != known:
        with contextlib.suppress(OSError):  # an index on a read-only disk is verified each time
            write_json(index / VERIFIED, sound)
    return num_read


def files_of(manifest: Manifest) -> Iterator[tuple[str, FileInfo]]:
    """(path inside the index, what it must be) of every file that the manifest names."""
    for segment in manifest.segments:
        for name, info in segment.files.items():
            yield f"{segment.name}/{name}", info
        if segment.deleted_info is not None:
            yield segment.deleted_file, segment.deleted_info
        if segment.screened_info is not None:
            yield segment.screened_file, segment.screened_info


def _stamp(index: Path, name: str, expected: FileInfo) -> tuple[int, int, int, int]:
    """Size, time of change of content and of status in ns, inode. Raises ValueError for a wrong size."""
    try:
        status = os.stat(index / name)  # noqa: PTH116 (a hundred of them should take no time)
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(index, name, "missing") from None
    if status.st_size != expected.size:
        raise damaged(index, name, f"{status.st_size} bytes, the manifest says {expected.size}")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _known(index: Path) -> dict[str, list[int | str]]:
    """What is remembered; anything unreadable counts as nothing, and is written anew."""
    try:
        known = read_json(index / VERIFIED) if (index / VERIFIED).is_file() else {}
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}
