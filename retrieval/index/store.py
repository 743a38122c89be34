"""An index on disk: opening it, replacing its manifest, sweeping up. The layout is in `manifest.py`."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.files import atomic_write, read_json, sync_folder
from common.locks import exclusive
from retrieval.index.integrity import VERIFIED, verify
from retrieval.index.manifest import (
    DELETED_NAME,
    MANIFEST,
    SCREENED_NAME,
    SEGMENT_NAME,
    Manifest,
    SegmentInfo,
    damaged,
    file_info,
    read_manifest,
    write_manifest,
)
from retrieval.index.segment import FileRecord, Segment
from retrieval.index.unfinished import holds_work
from retrieval.types import Passage

LOCK, WORK = "lock", "work.json"

Place = tuple[int, int]  # number of a segment, number of a passage in it


class Store:
    """An index opened for reading: all by memory map, so that opening a large one is as quick as a small one."""

    def __init__(self, index: str | Path, manifest: Manifest | None = None, full: bool = False) -> None:
        """`manifest`: one that is not in place yet. `full`: read every file again, whatever is remembered of it.

        Raises ValueError, with the remedy, for a folder that holds no index, or one that is damaged or newer.
        """
        self.index = Path(index)
        self._stamp = _stamp(self.index)
        self.manifest = manifest or read_manifest(self.index)
        while True:
            try:
                verify(self.index, self.manifest, remember=not full)
                self.segments = tuple(self._open(info) for info in self.manifest.segments)
                return
            except (OSError, ValueError) as error:
                # Did a writer replace the index, and sweep up, while we were opening it? Then start again.
                current = self.manifest if manifest else read_manifest(self.index)
                if current == self.manifest:
                    if isinstance(error, ValueError):
                        raise
                    raise damaged(self.index, MANIFEST, str(error)) from error
                self._stamp, self.manifest = _stamp(self.index), current

    def _open(self, info: SegmentInfo) -> Segment:
        try:
            deleted = np.fromfile(self.index / info.deleted_file, dtype="<u4") if info.deleted_file else None
            screened = np.memmap(self.index / info.screened_file, dtype="<f4", mode="r") if info.screened_file else None
            return Segment(self.index / info.name, info, self.manifest.encoder.dim, deleted, screened)
        except ValueError as error:
            raise damaged(self.index, info.name, str(error)) from None

    def __len__(self) -> int:
        """Passages that are not deleted."""
        return self.manifest.num_passages

    @property
    def is_stale(self) -> bool:
        """Whether the manifest was replaced since this was opened."""
        return _stamp(self.index) != self._stamp

    def passage(self, place: Place) -> Passage:
        """The passage at a place."""
        segment, i = place
        return self.segments[segment].passage(i)

    def live_passages(self) -> Iterator[tuple[Place, Passage]]:
        """Every passage that is not deleted, in order."""
        for number, segment in enumerate(self.segments):
            for i in np.flatnonzero(segment.live()).tolist():
                yield (number, i), segment.passage(i)

    def files(self) -> dict[str, list[tuple[int, FileRecord]]]:
        """By source, the files that are not deleted: the segments that hold passages of them, with their records."""
        found: dict[str, list[tuple[int, FileRecord]]] = {}
        for number, segment in enumerate(self.segments):
            for file in segment.files():
                if segment.count_live(file.first, file.count):
                    found.setdefault(file.source, []).append((number, file))
        return found


def replace_segments(index: Path, manifest: Manifest, deleted: Mapping[str, NDArray[np.uint32]]) -> Manifest:
    """`manifest` with other lists of deleted passages: `deleted` holds, by segment name, ALL ids that are deleted.

    Writes the lists, not the manifest. A segment of which nothing is left is dropped.
    """
    segments = []
    for info in manifest.segments:
        if info.name in deleted:
            info = _with_deleted(index, info, np.unique(deleted[info.name]).astype("<u4"))
        if info.num_deleted < info.num_passages:
            segments.append(info)
    return replace(manifest, segments=tuple(segments))


def _with_deleted(index: Path, info: SegmentInfo, ids: NDArray[np.uint32]) -> SegmentInfo:
    if not len(ids):
        return replace(info, deleted_file="", deleted_info=None, num_deleted=0)
    name = f"deleted-{secrets.token_hex(6)}.u32"
    with atomic_write(index / name, "wb") as file:
        file.write(ids.tobytes())
    return replace(info, deleted_file=name, deleted_info=file_info(index / name), num_deleted=len(ids))


def commit(index: Path, manifest: Manifest) -> None:
    """Replace the manifest, then delete what it does not name."""
    sync_folder(index)
    write_manifest(index, manifest)
    sweep(index, manifest)


def sweep(index: Path, manifest: Manifest | None) -> None:
    """Delete the segments, lists and leftovers of killed writers that `manifest` does not name."""
    segments = manifest.segments if manifest else ()
    keep = {name for each in segments for name in (each.name, each.deleted_file, each.screened_file)}
    for entry in index.iterdir():
        if entry.name in keep or not _is_leftover(entry.name):
            continue
        if entry.is_dir():
            # Windows cannot delete files that a reader has open; the next writer will.
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def new_segment_folder(index: Path) -> Path:
    """A name for a segment that does not exist yet."""
    return index / f"segment-{secrets.token_hex(6)}"


def leftovers(index: Path, manifest: Manifest | None) -> list[Path]:
    """Segments that `manifest` does not name: a killed writer's."""
    named = {segment.name for segment in manifest.segments} if manifest else set()
    return sorted(entry for entry in index.iterdir() if SEGMENT_NAME.fullmatch(entry.name) and entry.name not in named)


def check_target(index: Path) -> None:
    """Raises ValueError for a place where no index may be built: a file, or a folder with other things in it."""
    if index.exists() and not index.is_dir():
        raise ValueError(f"'{index}' is a file; an index is a folder: give another name")
    if not index.is_dir() or _holds_index(index):
        return
    others = [entry.name for entry in index.iterdir() if not _is_leftover(entry.name) and entry.name != LOCK]
    if others:
        raise ValueError(f"folder '{index}' is not empty and holds no index (but {min(others)}); give another name")


@contextlib.contextmanager
def writing(index: Path, create: bool = False) -> Iterator[None]:
    """Be the one writer of an index.

    Raises ValueError where it does not exist (unless `create`), where another process writes to it, and where it
    cannot be written.
    """
    if create:
        check_target(index)
    else:
        read_manifest(index)
    try:
        index.mkdir(parents=True, exist_ok=True)
        with exclusive(index / LOCK, f"writing to '{index}'"):
            yield
    except OSError as error:
        raise ValueError(f"cannot write index '{index}': {error.strerror or error}") from error


def discard(index: Path) -> None:
    """After a first build that failed by itself: leave nothing where there was nothing, unless passages were encoded
    already. These the next build takes from there, be it that the disk was full or that a worker was lost."""
    folders = [entry for entry in index.iterdir() if SEGMENT_NAME.fullmatch(entry.name)]
    if (index / MANIFEST).exists() or any(holds_work(folder) for folder in folders):
        return
    sweep(index, None)
    if {entry.name for entry in index.iterdir()} <= {LOCK}:
        (index / LOCK).unlink(missing_ok=True)
        index.rmdir()


def _holds_index(index: Path) -> bool:
    """Whether there is a manifest of ours, even a damaged one: a build is how to mend an index."""
    if not (index / MANIFEST).is_file():
        return False
    if any(SEGMENT_NAME.fullmatch(entry.name) for entry in index.iterdir()):
        return True
    try:
        content = read_json(index / MANIFEST)
    except ValueError:
        return False
    return isinstance(content, dict) and "format_version" in content


def _is_leftover(name: str) -> bool:
    """Names that a writer leaves when it is killed."""
    temporary = name.startswith((f".{MANIFEST}.", f".{VERIFIED}.", f".{WORK}.", ".deleted-", ".screened-"))
    named = any(pattern.fullmatch(name) for pattern in (SEGMENT_NAME, DELETED_NAME, SCREENED_NAME))
    return temporary or name == WORK or named


def _stamp(index: Path) -> Sequence[int]:
    """Tells one manifest from another. A missing one equals no other."""
    try:
        status = os.stat(index / MANIFEST)  # noqa: PTH116
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ino, status.st_size
