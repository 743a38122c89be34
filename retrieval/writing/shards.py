"""A shard: some of the files of a build, read, cut, encoded and written as segments by one process.

The same function runs in this process, in several, and on Ray workers (who must see the index's folder). A shard's
segments have names that follow from the plan it belongs to, so that a build which was killed finds those it had
finished; what was encoded for an unfinished one is taken from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retrieval.documents import GuardedReader, Limits
from retrieval.index.manifest import IndexSettings, SegmentInfo
from retrieval.index.segment import MAX_PASSAGES, FileRecord, SegmentWriter
from retrieval.index.store import new_segment_folder
from retrieval.index.unfinished import read_whole
from retrieval.passages import embedding_text, split
from retrieval.types import Document, Encoder, Passage, SourceFile
from retrieval.writing.pool import VectorPool

BATCH_PASSAGES = 1024  # encoded, and in memory, at a time

OnBatch = Callable[[int, int], None]  # (bytes of files that are done, passages) since the last call


@dataclass(frozen=True)
class Shard:
    """Files to index. `plan` names the run of a plan that they belong to, `number` is the shard's in it."""

    index: str
    plan: str
    number: int
    files: tuple[SourceFile, ...]
    settings: IndexSettings
    limits: Limits = field(default_factory=Limits)
    max_passages: int = MAX_PASSAGES  # of a segment

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(file.size for file in self.files)

    def segment_name(self, sequence: int) -> str:
        """The name of the shard's segment number `sequence`, from 0."""
        digest = hashlib.sha256(f"{self.plan} {self.number} {sequence}".encode()).hexdigest()
        return f"segment-{digest[:12]}"


@dataclass(frozen=True)
class ShardResult:
    """What a shard became. `skipped`: (source, reason) of what was passed over. `sources`: the files that were read."""

    segments: tuple[SegmentInfo, ...]
    skipped: tuple[tuple[str, str], ...]
    sources: tuple[str, ...]


def write_shard(shard: Shard, encoder: Encoder, pool: VectorPool, on_batch: OnBatch | None = None) -> ShardResult:
    """Write the segments of a shard, except those that an earlier run of the same plan has finished."""
    done = list(_finished(shard))
    position: Mapping[str, int] | None = {"file": 0, "document": 0}
    skipped: list[tuple[str, str]] = []
    sources: list[str] = []
    for stored in done:
        position = stored["next"]
        skipped.extend((source, reason) for source, reason in stored["skipped"])
        sources.extend(stored["sources"])
    segments: list[SegmentInfo] = [stored["info"] for stored in done]
    if position is not None:
        writer = _ShardWriter(shard, encoder, pool, on_batch, len(done))
        try:
            segments += writer.write(position["file"], position["document"])
        finally:
            writer.close()
        skipped += writer.all_skipped
        sources += writer.all_sources
    elif on_batch:
        on_batch(shard.num_bytes, sum(info.num_passages for info in segments))
    return ShardResult(tuple(segments), tuple(skipped), tuple(dict.fromkeys(sources)))


def _finished(shard: Shard) -> Iterator[dict[str, Any]]:
    """What `read_whole` says of the segments that an earlier run has finished and that are as it left them."""
    sequence = 0
    while (stored := read_whole(Path(shard.index) / shard.segment_name(sequence))) is not None:
        yield stored
        sequence += 1


class _ShardWriter:
    """Carries documents into segments: batches passages for the encoder, and starts a new segment when one is full."""

    def __init__(
        self, shard: Shard, encoder: Encoder, pool: VectorPool, on_batch: OnBatch | None, sequence: int
    ) -> None:
        self.all_skipped: list[tuple[str, str]] = []
        self.all_sources: list[str] = []
        self._shard, self._encoder, self._pool, self._on_batch = shard, encoder, pool, on_batch
        self._sequence = sequence
        self._segments: list[SegmentInfo] = []
        self._writer: SegmentWriter | None = None
        self._pending: list[tuple[Passage, int]] = []  # passages that are not encoded yet, and their documents' numbers
        self._num = 0  # passages of the current segment, with the pending ones
        self._file_first = 0  # the first of them that is of the current file
        self._skipped: list[tuple[str, str]] = []  # since the current segment began
        self._sources: list[str] = []
        self._bytes_done = 0

    def write(self, first_file: int, first_document: int) -> list[SegmentInfo]:
        """Everything from document `first_document` of file `first_file` on."""
        with GuardedReader(self._shard.limits) as reader:
            self._bytes_done = sum(file.size for file in self._shard.files[:first_file])
            for number, file in enumerate(self._shard.files):
                if number >= first_file:
                    self._add_file(reader, number, file, first_document if number == first_file else 0)
                    self._bytes_done += file.size
        self._finish(None)
        return self._segments

    def close(self) -> None:
        """Leave an unfinished segment as it is: what it holds can be used again."""
        if self._writer is not None:
            self._writer.close()

    def _add_file(self, reader: GuardedReader, number: int, file: SourceFile, first_document: int) -> None:
        """Errors of a file are noted, and end that file alone; what was read of it before stays."""
        self._file_first = self._num
        num_documents = 0
        sha256 = ""
        try:
            # Summed before it is read: a file that changes in between is found changed by the next update.
            sha256 = content_sum(file.path)
            for document in reader.read(file):
                if num_documents >= first_document:
                    if self._num >= self._shard.max_passages:
                        self._end_file(file, sha256)
                        self._finish({"file": number, "document": num_documents})
                    self._add_document(document)
                num_documents += 1
        except ValueError as error:
            after = f" (after {num_documents} documents, which are kept)" if num_documents else ""
            self._skipped.append((file.source, f"{error}{after}"))
        for line in reader.take_notes():
            self._skipped.append((file.source, line))
        self._end_file(file, sha256)

    def _end_file(self, file: SourceFile, sha256: str) -> None:
        count = self._num - self._file_first
        if count and self._writer is not None:
            self._writer.add_file(FileRecord(file.source, sha256, file.size, self._file_first, count))
            self._sources.append(file.source)

    def _add_document(self, document: Document) -> None:
        passages = list(split(document, self._shard.settings.split, self._encoder.count_tokens))
        if not passages:
            return
        if self._writer is None:
            folder = new_segment_folder(Path(self._shard.index))
            self._writer = SegmentWriter(folder, self._encoder.dim, self._shard.settings)
        number = self._writer.add_document(document, self._num, len(passages))
        self._num += len(passages)
        self._pending.extend((passage, number) for passage in passages)
        while len(self._pending) >= BATCH_PASSAGES:
            self._encode(BATCH_PASSAGES)

    def _encode(self, num: int) -> None:
        """Encode and write the first `num` pending passages."""
        if self._writer is None:
            raise RuntimeError("there are passages but no segment")
        batch, self._pending = self._pending[:num], self._pending[num:]
        vectors = self._pool.encode([embedding_text(passage) for passage, _ in batch], self._encoder)
        self._writer.add([passage for passage, _ in batch], [number for _, number in batch], vectors)
        if self._on_batch:
            self._on_batch(self._bytes_done, len(batch))
            self._bytes_done = 0

    def _finish(self, position: Mapping[str, int] | None) -> None:
        """End the current segment; `position` is where the next one begins, None at the end of the shard."""
        if self._writer is not None:
            if self._pending:
                self._encode(len(self._pending))
            more = {"next": position, "skipped": self._skipped, "sources": self._sources}
            self._segments.append(self._writer.finish(more, self._shard.segment_name(self._sequence)))
            self._sequence += 1
        self.all_skipped += self._skipped
        self.all_sources += self._sources
        self._writer, self._num, self._file_first, self._skipped, self._sources = None, 0, 0, [], []


def content_sum(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises ValueError with the bare reason where it cannot be read; never blocks."""
    digest = hashlib.sha256()
    try:
        # A pipe in the file's place would otherwise block for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(descriptor, "rb", buffering=0))
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("it is not a regular file")
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    return digest.hexdigest()


def plan_key(kind: str, fingerprint: str, settings: IndexSettings, base: str, files: list[SourceFile]) -> str:
    """Names a plan: a build with the same key can go on where the last one was killed."""
    described = [kind, fingerprint, asdict(settings), base, [(file.source, file.size, file.mtime_ns) for file in files]]
    return hashlib.sha256(repr(described).encode("utf-8", "backslashreplace")).hexdigest()


def make_shards(
    index: Path, plan: str, files: list[SourceFile], settings: IndexSettings, max_bytes: int, limits: Limits
) -> list[Shard]:
    """The files in order, in groups of at most `max_bytes` (one file at least)."""
    groups: list[list[SourceFile]] = []
    room = 0
    for file in files:
        if not groups or file.size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(file)
        room -= file.size
    return [Shard(str(index), plan, number, tuple(group), settings, limits) for number, group in enumerate(groups)]
