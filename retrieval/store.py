"""The passages and vectors of an index on disk.

    INDEX/manifest.json             written last, by atomic rename: the one commit point
    INDEX/segment-<12 hex>/         passages.jsonl  one JSON object a line
                                    offsets.npy     uint64, where line i begins; one more than there are lines
                                    vectors.faiss   vector i belongs to line i

A build writes a new segment beside the old one, so that a kill at any moment leaves the old index as it was; what
it leaves behind is deleted by the next build.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
import shutil
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.files import read_json, sync_folder
from retrieval.manifest import (
    MANIFEST,
    OFFSETS,
    PASSAGES,
    SEGMENT_NAME,
    VECTORS,
    EncoderInfo,
    Manifest,
    damaged,
    file_info,
    read_manifest,
    verify,
    write_manifest,
)
from retrieval.passages import SplitSettings
from retrieval.types import Passage
from retrieval.vectors import Vectors, VectorWriter


class Store:
    """An index opened for reading. Passages stay on disk until asked for; vectors are in memory."""

    def __init__(self, index: str | Path) -> None:
        """Raises ValueError, with the remedy, for a folder that holds no index, or one that is damaged or newer."""
        index = Path(index)
        self.manifest = read_manifest(index)
        while True:
            try:
                self._open(index)
                return
            except (OSError, RuntimeError, ValueError) as error:
                # Did a build replace the index, and delete this segment, while we were opening it? Then start again.
                current = read_manifest(index)
                if current.segment == self.manifest.segment:
                    if isinstance(error, ValueError):
                        raise
                    raise damaged(index, current.segment, str(error)) from error
                self.manifest = current

    def _open(self, index: Path) -> None:
        """Verify first: neither Faiss nor NumPy should see a byte that the manifest does not vouch for."""
        verify(index, self.manifest)
        segment = index / self.manifest.segment
        self.vectors = Vectors(segment / VECTORS)
        self._offsets: NDArray[np.uint64] = np.load(segment / OFFSETS, mmap_mode="r", allow_pickle=False)
        with open(segment / PASSAGES, "rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        num = self.manifest.num_passages
        if not (len(self.vectors) == len(self) == num) or self.vectors.dim != self.manifest.encoder.dim:
            raise damaged(
                index, MANIFEST, f"it says {num} passages, the files hold {len(self)} and {len(self.vectors)}"
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def passage(self, i: int) -> Passage:
        """Passage i, from 0; the one that vector i belongs to."""
        line = self._lines[int(self._offsets[i]) : int(self._offsets[i + 1])]
        return Passage(**json.loads(line))


class SegmentWriter:
    """Takes passages with their vectors, then commits them as the index; see `write_index`."""

    def __init__(self, index: Path, dim: int, factory: str) -> None:
        self._vectors = VectorWriter(dim, factory)
        self._index = index
        self._dim = dim
        self._factory = factory
        self._folder = index / f"segment-{secrets.token_hex(6)}"
        self._folder.mkdir()
        self._file = open(self._folder / PASSAGES, "wb")  # noqa: SIM115 (commit and discard close it)
        self._offsets = array("Q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def add(self, passages: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """Append passages and their (n, dim) unit vectors. Only the vectors stay in memory."""
        if vectors.shape != (len(passages), self._dim):
            raise ValueError(
                f"vectors have shape {vectors.shape}; {len(passages)} passages need {self._dim} columns each"
            )
        for passage in passages:
            line = json.dumps(asdict(passage), ensure_ascii=False).encode("utf-8") + b"\n"
            self._file.write(line)
            self._offsets.append(self._offsets[-1] + len(line))
        self._vectors.add(vectors)

    def commit(self, encoder: EncoderInfo, settings: SplitSettings, floor: float, num_documents: int) -> Manifest:
        """Sync everything to disk, replace the manifest, delete the old segment. Raises ValueError if empty."""
        if not len(self):
            raise ValueError("no passages to index")
        self._file.close()
        np.save(self._folder / OFFSETS, np.array(self._offsets, dtype=np.uint64), allow_pickle=False)
        self._vectors.write(self._folder / VECTORS)
        files = {name: self._folder / name for name in (PASSAGES, OFFSETS, VECTORS)}
        for path in files.values():
            _sync(path)
        sync_folder(self._folder)
        sync_folder(self._index)
        manifest = Manifest(
            segment=self._folder.name,
            encoder=encoder,
            settings=settings,
            factory=self._factory,
            floor=floor,
            num_documents=num_documents,
            num_passages=len(self),
            files={name: file_info(path) for name, path in files.items()},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        write_manifest(self._index, manifest)
        _sweep(self._index, keep=manifest.segment)
        return manifest

    def discard(self) -> None:
        """Delete what was written, unless it was committed."""
        self._file.close()
        with contextlib.suppress(ValueError):
            if read_manifest(self._index).segment == self._folder.name:
                return
        shutil.rmtree(self._folder, ignore_errors=True)


def check_target(index: Path) -> None:
    """Raises ValueError for a place where no index may be built: a file, or a folder with other things in it."""
    if index.exists() and not index.is_dir():
        raise ValueError(f"'{index}' is a file; an index is a folder: give another name")
    if not index.is_dir() or _holds_index(index):
        return
    others = [entry.name for entry in index.iterdir() if not _is_leftover(entry.name)]
    if others:
        raise ValueError(f"folder '{index}' is not empty and holds no index (but {min(others)}); give another name")


@contextlib.contextmanager
def write_index(index: Path, dim: int, factory: str = "Flat") -> Iterator[SegmentWriter]:
    """A writer for a new content of `index`; unless it commits, the index stays as it was.

    Raises ValueError for a folder that holds something else (`check_target`), that another build is writing to, or
    that cannot be written.
    """
    check_target(index)
    existed = index.is_dir()
    try:
        index.mkdir(parents=True, exist_ok=True)
        with _only_builder(index):
            _sweep_strays(index)
            writer = SegmentWriter(index, dim, factory)
            try:
                yield writer
            finally:
                writer.discard()
    except OSError as error:
        raise ValueError(f"cannot write index '{index}': {error.strerror or error}") from error
    finally:
        if not existed and index.is_dir() and not any(index.iterdir()):
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
    """Names that a build leaves when it is killed."""
    return name.startswith(f".{MANIFEST}.") or SEGMENT_NAME.fullmatch(name) is not None


def _sweep_strays(index: Path) -> None:
    """Delete what killed builds left; not where a manifest cannot be read, since it may name any of the segments."""
    if not (index / MANIFEST).exists():
        _sweep(index, keep=None)
        return
    with contextlib.suppress(ValueError):
        _sweep(index, keep=read_manifest(index).segment)


def _sweep(index: Path, keep: str | None) -> None:
    for entry in index.iterdir():
        if not _is_leftover(entry.name) or entry.name == keep:
            continue
        if entry.is_dir():
            # Windows cannot delete files that a reader has open; the next build will.
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_builder(index: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back when the process ends, however it ends."""
    if sys.platform == "win32":
        yield  # no such lock: two builds at once would delete each other's work, though never the committed index
        return
    import fcntl

    descriptor = os.open(index, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another build is writing to '{index}'; wait until it has ended") from None
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
