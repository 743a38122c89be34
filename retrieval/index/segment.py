"""A segment: an immutable part of an index, written once, then only read.

    passages.jsonl    a passage a line: number of its document, title, text, start, end
    documents.jsonl   a document a line: id, title, source, unit, meta, and which passages are its own
    *.idx             uint64, little-endian: where each line begins, and where the last one ends
    files.jsonl       a file a line: source, SHA-256 and size of what was read, and which passages came from it
    vectors.f32       float32, little-endian: the unit vector of passage i is row i
    lexical.*         see `lexical.py`
    ann.faiss         a Faiss index of the vectors, where their number calls for one

While a segment is being written it also holds journal.jsonl, with the sums of each batch: what a killed build had
encoded can be used again. segment.json is written last, and says that the segment is whole. Each writer works in a
folder of its own, which gets the name that was asked for when it is whole: so a process that should be dead, and is not
yet, cannot write into the files of the one that has taken its place.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import sync_file, sync_folder
from retrieval.index.lines import LineFile, Lines, index_name
from retrieval.index.manifest import IndexSettings, SegmentInfo, file_info
from retrieval.index.unfinished import JOURNAL, put_in_place, write_whole
from retrieval.passages import embedding_text, subject, titled
from retrieval.scoring.lexical import LexicalWriter
from retrieval.scoring.vectors import build_ann, choose_factory
from retrieval.types import Document, MetaValue, Passage, Unit

PASSAGES, DOCUMENTS, FILES, VECTORS, ANN = (
    "passages.jsonl",
    "documents.jsonl",
    "files.jsonl",
    "vectors.f32",
    "ann.faiss",
)
# A segment's search structures are made in memory: this bounds it, however large an index grows.
MAX_PASSAGES = 131_072


@dataclass(frozen=True)
class DocumentRecord:
    """A document as stored. Its passages are `first` to `first + count - 1` of the segment."""

    id: str
    title: str
    source: str
    unit: Unit
    meta: Mapping[str, MetaValue]
    first: int
    count: int


@dataclass(frozen=True)
class FileRecord:
    """A file that was read, as it was then. Its passages in this segment are `first` to `first + count - 1`."""

    source: str
    sha256: str
    size: int
    first: int
    count: int


class SegmentWriter:
    """Takes documents, their passages and vectors in this order, and makes a segment of them."""

    def __init__(self, folder: Path, dim: int, settings: IndexSettings) -> None:
        """Raises OSError where `folder` exists or cannot be made."""
        folder.mkdir()
        self.folder = folder
        self.num_documents = 0
        self._settings = settings
        self._dim = dim
        self._lexical = LexicalWriter(settings.lexical)
        self._passages, self._documents = LineFile(folder / PASSAGES), LineFile(folder / DOCUMENTS)
        self._files = LineFile(folder / FILES)
        self._vectors = open(folder / VECTORS, "wb")  # noqa: SIM115 (finish and close close it)
        self._journal = open(folder / JOURNAL, "wb")  # noqa: SIM115

    def __len__(self) -> int:
        return len(self._passages)

    def add_document(self, document: Document, first: int, count: int) -> int:
        """Record a document whose passages will be `first` to `first + count - 1`; returns its number."""
        record = DocumentRecord(
            document.id, document.title, document.source, document.unit, dict(document.meta), first, count
        )
        self._documents.add(asdict(record))
        self.num_documents += 1
        return self.num_documents - 1

    def add_file(self, record: FileRecord) -> None:
        """Record a file, when all its passages of this segment are known."""
        self._files.add(asdict(record))

    def add(self, passages: Sequence[Passage], documents: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Append passages, each with the number of its document, and their (n, dim) unit vectors."""
        if vectors.shape != (len(passages), self._dim):
            raise ValueError(
                f"vectors have shape {vectors.shape}; {len(passages)} passages need {self._dim} columns each"
            )
        digest = hashlib.sha256()
        for passage, document in zip(passages, documents, strict=True):
            line = {"document": document, "title": passage.title, "text": passage.text}
            digest.update(self._passages.add({**line, "start": passage.start, "end": passage.end}))
        rows = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        self._vectors.write(rows)
        self._lexical.add([embedding_text(passage) for passage in passages])
        entry = {
            "passages": len(passages),
            "passages_sha256": digest.hexdigest(),
            "vectors_sha256": hashlib.sha256(rows).hexdigest(),
        }
        for file in (self._passages, self._vectors):
            file.flush()  # before the journal speaks of it
        self._journal.write(json.dumps(entry).encode() + b"\n")
        self._journal.flush()

    def finish(self, more: Mapping[str, Any], name: str = "") -> SegmentInfo:
        """Make the search structures, sync everything, and say that the segment is whole; `more` is kept with it.

        The folder gets the name `name`, where one is given. A whole segment that has it already is taken instead.
        """
        self.close()
        self._passages.write_offsets()
        self._documents.write_offsets()
        num = len(self)
        factory = choose_factory(num) if self._settings.factory == "auto" else self._settings.factory
        lexical = self._lexical.write(self.folder)
        del self._lexical
        if factory != "Flat":
            rows = np.memmap(self.folder / VECTORS, dtype="<f4", mode="r", shape=(num, self._dim))
            build_ann(rows, factory, self.folder / ANN)
        names = [PASSAGES, index_name(PASSAGES), DOCUMENTS, index_name(DOCUMENTS), FILES, VECTORS, *lexical]
        names += [ANN] if (self.folder / ANN).is_file() else []
        for each in names:
            sync_file(self.folder / each)
        files = {each: file_info(self.folder / each) for each in names}
        info = SegmentInfo(name or self.folder.name, num, self.num_documents, factory, files)
        write_whole(self.folder, {**more, "info": asdict(info)})
        (self.folder / JOURNAL).unlink()
        sync_folder(self.folder)
        return put_in_place(self.folder, info)

    def close(self) -> None:
        """Close the files, as they are."""
        for file in (self._passages, self._documents, self._files, self._vectors, self._journal):
            file.close()


class Segment:
    """A segment opened for reading, by memory map. Verify its files first."""

    def __init__(
        self,
        folder: Path,
        info: SegmentInfo,
        dim: int,
        deleted: NDArray[np.uint32] | None = None,
        screened: NDArray[np.float32] | None = None,
    ) -> None:
        """`deleted`: sorted ids, None for none. `screened`: a screener's score of each passage, None where none has
        seen them. Raises OSError or ValueError where the files do not hold what `info` says."""
        self.folder = folder
        self.info = info
        self.deleted: NDArray[np.uint32] = np.zeros(0, dtype=np.uint32) if deleted is None else deleted
        self._passages = Lines(folder / PASSAGES)
        self._documents = Lines(folder / DOCUMENTS)
        num = info.num_passages
        if len(self._passages) != num or len(self._documents) != info.num_documents:
            raise ValueError(f"it holds {len(self._passages)} passages, the manifest says {num}")
        if (folder / VECTORS).stat().st_size != 4 * num * dim:
            raise ValueError(f"{VECTORS} does not hold {num} vectors of {dim} dimensions")
        if deleted is not None and (len(deleted) != info.num_deleted or not len(deleted) or int(deleted[-1]) >= num):
            raise ValueError(f"{info.deleted_file} does not list {info.num_deleted} of {num} passages")
        if screened is not None and len(screened) != num:
            raise ValueError(f"{info.screened_file} holds {len(screened)} scores of {num} passages")
        self._screened = screened
        # A view as a plain array: taking one row of a memmap object costs ten times as much.
        self.vectors: NDArray[np.float32] = np.asarray(
            np.memmap(folder / VECTORS, dtype="<f4", mode="r", shape=(num, dim))
        )

    def __len__(self) -> int:
        return len(self._passages)

    def passage(self, i: int) -> Passage:
        """Passage i, from 0."""
        stored = self._passages.get(i)
        of = self.document(stored["document"])
        place = (of.source, stored["start"], stored["end"], of.unit, of.meta)
        return Passage(f"{of.id}#{i - of.first}", stored["text"], stored["title"], *place, self.injection(i))

    def injection(self, i: int) -> float | None:
        """See `types.Passage`."""
        score = math.nan if self._screened is None else float(self._screened[i])
        return None if math.isnan(score) else score

    def text(self, i: int) -> str:
        """What the encoder was given for passage i."""
        return stored_text(self._passages.get(i))

    def own_text(self, i: int) -> str:
        """The text of passage i, without its title."""
        return str(self._passages.get(i)["text"])

    def title(self, i: int) -> str:
        """The title of passage i, with the heading above it."""
        return str(self._passages.get(i)["title"])

    def subject(self, i: int) -> str:
        """What passage i is about as a whole: see `passages.subject`."""
        stored = self._passages.get(i)
        return subject(stored["title"], str(stored["document"]))

    def document_number(self, i: int) -> int:
        """The number of the document of passage i."""
        return int(self._passages.get(i)["document"])

    def document(self, number: int) -> DocumentRecord:
        """Document `number`, from 0."""
        return DocumentRecord(**self._documents.get(number))

    def documents(self) -> Iterator[DocumentRecord]:
        """All documents, with those whose passages are deleted."""
        return (self.document(number) for number in range(len(self._documents)))

    def files(self) -> Iterator[FileRecord]:
        """All files, in order of their passages; `count_live` tells which are deleted."""
        with open(self.folder / FILES, "rb") as file:
            for line in file:
                yield FileRecord(**json.loads(line))

    def count_live(self, first: int, count: int) -> int:
        """How many of the passages `first` to `first + count - 1` are not deleted."""
        low, high = np.searchsorted(self.deleted, [first, first + count])
        return count - int(high - low)

    def live(self) -> NDArray[np.bool_]:
        """(num_passages,) mask of the passages that are not deleted."""
        mask = np.ones(len(self), dtype=bool)
        mask[self.deleted] = False
        return mask


def stored_text(stored: Mapping[str, Any]) -> str:
    """`passages.embedding_text` of a line of passages.jsonl."""
    return titled(stored["title"], stored["text"])


def salvage(folder: Path, dim: int) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """What a writer that was killed had put into `folder`: batches of texts with their vectors, as far as the sums in
    the journal agree; for a whole segment see `Segment`."""
    try:
        journal = (folder / JOURNAL).read_bytes().split(b"\n")
        passages, vectors = open(folder / PASSAGES, "rb"), open(folder / VECTORS, "rb")  # noqa: SIM115
    except OSError:
        return
    with passages, vectors:
        for line in journal:
            try:
                entry = json.loads(line)
                num = int(entry["passages"])
                lines = list(itertools.islice(passages, num))
                rows = vectors.read(4 * num * dim)
                if hashlib.sha256(b"".join(lines)).hexdigest() != entry["passages_sha256"]:
                    return
                if hashlib.sha256(rows).hexdigest() != entry["vectors_sha256"]:
                    return
            except (KeyError, TypeError, ValueError):
                return
            yield [stored_text(json.loads(each)) for each in lines], np.frombuffer(rows, "<f4").reshape(num, dim)
