"""Copy a local index into a Qdrant collection, and make the collection equal to it again after an update.

    python -m retrieval upload --index indexes/docs --qdrant http://host:6333 --collection docs

Passages and vectors stream from the memory maps of the index. Only what the collection does not hold yet is sent, and
what the index no longer holds is deleted at the end, so an upload that was killed goes on where it was when it is
started again. `qdrant.py` says what a collection looks like.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from retrieval.commands.options import index_option
from retrieval.commands.progress import progress_bar
from retrieval.index.store import Place, Store
from retrieval.passages import embedding_text
from retrieval.qdrant.connection import (
    DENSE,
    MEMORY,
    SCROLL_POINTS,
    WORDS,
    CollectionInfo,
    connect,
    facet,
    one_line_errors,
    payload_of,
    point_id,
    read_info,
    words_vector,
)
from retrieval.scoring.lexical import LexicalSegment, LexicalSettings
from retrieval.scoring.tokens import Tokenizer
from retrieval.types import Passage
from retrieval.writing.runners import OnProgress

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

BATCH_POINTS = 256
# The weights of a passage's words depend on the average length. While that has moved by less than this share since the
# collection was made, the old one goes on being used: else an update would have to send every passage again.
LENGTH_TOLERANCE = 0.02


@dataclass(frozen=True)
class UploadReport:
    """What an upload did, in passages. `num_passages`: what the collection holds now."""

    num_passages: int
    num_sent: int
    num_unchanged: int
    num_removed: int
    seconds: float


def upload(
    index: str | Path,
    url: str,
    collection: str,
    batch: int = BATCH_POINTS,
    api_key: str | None = None,
    on_progress: OnProgress | None = None,
) -> UploadReport:
    """Make the Qdrant collection equal to the index in the folder `index`, `batch` passages at a time.

    A collection that does not exist is made. One with the vectors of another encoder is made anew; until the upload
    ends it cannot be searched. `api_key`: by default $QDRANT_API_KEY.

    Raises ValueError, with the remedy, for an index that cannot be read, a server that cannot be reached or refuses,
    and a collection that holds something else.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1 passage")
    store = Store(index)
    client = connect(url, api_key)
    started = time.perf_counter()
    with one_line_errors(url):
        job = _Upload(store, client, url, collection)
        job.send(batch, on_progress)
        num_removed = job.remove_others()
        job.complete()
    seconds = time.perf_counter() - started
    return UploadReport(len(store), job.num_sent, len(store) - job.num_sent, num_removed, seconds)


class _Upload:
    """One upload; making it makes the collection where there is none."""

    def __init__(self, store: Store, client: QdrantClient, url: str, collection: str) -> None:
        self.num_sent = 0
        self._store, self._client, self._url, self._collection = store, client, url, collection
        self._settings = store.manifest.settings.lexical
        self._tokenizer = Tokenizer(self._settings.language)
        self._ids = array("Q")  # the first halves of the point ids: enough to tell passages apart, and small
        self._average = _average_length(store)
        old = self._reusable()
        self._is_new = old is None
        if old is None:
            self._create()
        elif old.lexical == self._settings and abs(old.average_length / self._average - 1) < LENGTH_TOLERANCE:
            self._average = old.average_length

    def send(self, batch: int, on_progress: OnProgress | None) -> None:
        """Send the passages that the collection does not hold as they are."""
        places = self._store.live_passages()
        num_done = 0
        while some := list(islice(places, batch)):
            points = [self._point(place, passage) for place, passage in some]
            self._ids.extend(_half(str(point.id)) for point in points)
            held = {} if self._is_new else self._stamps([point.id for point in points])
            points = [point for point in points if held.get(str(point.id)) != (point.payload or {})["stamp"]]
            if points:
                self._client.upsert(self._collection, points, wait=True)
            self.num_sent += len(points)
            num_done += len(some)
            if on_progress is not None:
                on_progress(num_done, len(self._store), num_done)

    def remove_others(self) -> int:
        """Delete the points of passages that the index does not hold any more; returns how many."""
        known = np.unique(np.frombuffer(self._ids, dtype=np.uint64)) if self._ids else np.zeros(0, dtype=np.uint64)
        gone: list[Any] = []
        offset: Any = None
        while True:
            points, offset = self._client.scroll(
                self._collection, limit=SCROLL_POINTS, offset=offset, with_payload=False, with_vectors=False
            )
            halves = np.array([_half(str(point.id)) for point in points], dtype=np.uint64)
            gone += [points[i].id for i in np.flatnonzero(~np.isin(halves, known)).tolist()]
            if offset is None:
                break
        for start in range(0, len(gone), SCROLL_POINTS):
            self._client.delete(self._collection, gone[start : start + SCROLL_POINTS], wait=True)
        return len(gone)

    def complete(self) -> None:
        """Tell the searching side that all is there."""
        info = CollectionInfo.of(self._store.manifest, self._average, complete=True)
        self._client.update_collection(self._collection, metadata=info.to_metadata())

    def _reusable(self) -> CollectionInfo | None:
        """The collection as it is; None where it has to be made. One of another encoder is deleted."""
        if not self._client.collection_exists(self._collection):
            return None
        old = read_info(self._client, self._url, self._collection)
        if old.encoder.fingerprint != self._store.manifest.encoder.fingerprint:
            self._client.delete_collection(self._collection)
            return None
        return old

    def _create(self) -> None:
        from qdrant_client import models

        info = CollectionInfo.of(self._store.manifest, self._average, complete=False)
        self._client.create_collection(
            self._collection,
            vectors_config={DENSE: models.VectorParams(size=info.encoder.dim, distance=models.Distance.COSINE)},
            sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
            metadata=info.to_metadata(),
        )
        if not self._client.get_collection(self._collection).config.metadata:
            self._client.delete_collection(self._collection)
            raise ValueError(f"Qdrant at {self._url} is too old: it keeps no metadata; update it to 1.16 or newer")
        if self._url != MEMORY:  # the embedded one has no use for them, and warns
            self._client.create_payload_index(self._collection, "facets", models.PayloadSchemaType.KEYWORD)
            self._client.create_payload_index(self._collection, "head", models.PayloadSchemaType.BOOL)

    def _point(self, place: Place, passage: Passage) -> models.PointStruct:
        from qdrant_client import models

        segment, i = self._store.segments[place[0]], place[1]
        document = segment.document(segment.document_number(i))
        fields = {**document.meta, "source": document.source, "title": document.title, "id": document.id}
        payload = payload_of(passage, [facet(*field) for field in fields.items()], i == document.first)
        words = words_vector(self._tokenizer.tokens(embedding_text(passage)), self._settings, self._average)
        digest = hashlib.blake2b(_settings_key(self._settings, self._average), digest_size=12)
        digest.update(json.dumps(payload, sort_keys=True).encode())
        digest.update(segment.vectors[i].tobytes())
        payload["stamp"] = digest.hexdigest()
        vectors: dict[str, Any] = {DENSE: segment.vectors[i].tolist()}
        if words.indices:
            vectors[WORDS] = words
        return models.PointStruct(id=point_id(passage.id), vector=vectors, payload=payload)

    def _stamps(self, ids: list[Any]) -> dict[str, str]:
        """By point id, the stamps of those points that the collection holds."""
        points = self._client.retrieve(self._collection, ids, with_payload=["stamp"], with_vectors=False)
        return {str(point.id): (point.payload or {}).get("stamp", "") for point in points}


def _average_length(store: Store) -> float:
    """Terms in a passage, as `lexical.Lexical` counts them: deleted passages count until a compaction."""
    segments = [LexicalSegment(segment.folder) for segment in store.segments]
    return sum(each.total_length for each in segments) / max(sum(each.num_passages for each in segments), 1)


def _settings_key(settings: LexicalSettings, average: float) -> bytes:
    """What a passage's weights depend on, beside its text."""
    return f"{settings} {average!r}".encode()


def _half(point: str) -> int:
    return int(point[:18].replace("-", ""), 16)


@click.command("upload")
@index_option
@click.option("--qdrant", "url", required=True, metavar="URL", help="http(s)://HOST:PORT; the key: $QDRANT_API_KEY.")
@click.option("--collection", required=True, metavar="NAME", help="Made where it does not exist.")
@click.option("--batch", default=BATCH_POINTS, show_default=True, help="Passages to send at a time.")
def upload_command(index: str, url: str, collection: str, batch: int) -> None:
    """Copy DIR into a Qdrant collection, or bring the collection up to date with it."""
    with progress_bar() as on_progress:
        report = upload(index, url, collection, batch, on_progress=on_progress)
    click.echo(
        f"{collection} at {url}: {report.num_sent} passages sent, {report.num_unchanged} unchanged, "
        f"{report.num_removed} removed; {report.num_passages} passages in {report.seconds:.1f} s",
        err=True,
    )
