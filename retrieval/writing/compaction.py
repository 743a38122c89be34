"""Rewriting segments without what was deleted from them, the small ones together: copied, not encoded again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retrieval.index.manifest import SegmentInfo
from retrieval.index.segment import MAX_PASSAGES, Segment, SegmentWriter
from retrieval.index.store import Store, new_segment_folder
from retrieval.types import Document
from retrieval.writing.shards import BATCH_PASSAGES


def merged_segments(store: Store, max_passages: int = MAX_PASSAGES) -> tuple[SegmentInfo, ...]:
    """The live content of the index in as few segments as may be, in the same order.

    A segment that is alone, and of which nothing is deleted, stays as it is. Writes segments, not the manifest.
    """
    merged: list[SegmentInfo] = []
    for group in _groups(store.segments, max_passages):
        if len(group) == 1 and not group[0].info.num_deleted:
            merged.append(group[0].info)
        else:
            merged.append(_merge(store, group))
    return tuple(merged)


def _groups(segments: Sequence[Segment], max_passages: int) -> Iterator[list[Segment]]:
    """Neighbours that fit into one segment together."""
    group: list[Segment] = []
    room = max_passages
    for segment in segments:
        num_live = len(segment) - segment.info.num_deleted
        if num_live == 0:
            continue
        if group and num_live > room:
            yield group
            group, room = [], max_passages
        group.append(segment)
        room -= num_live
    if group:
        yield group


def _merge(store: Store, group: Sequence[Segment]) -> SegmentInfo:
    writer = SegmentWriter(new_segment_folder(store.index), store.manifest.encoder.dim, store.manifest.settings)
    try:
        for segment in group:
            _copy(segment, writer)
        return writer.finish({})
    finally:
        writer.close()


def _copy(segment: Segment, writer: SegmentWriter) -> None:
    """Append the live documents of a segment. Passages of a document are deleted together or not at all."""
    base = len(writer)
    live = segment.live()
    moved: NDArray[np.int64] = np.cumsum(live, dtype=np.int64) - live + base  # where each live passage goes
    numbers: dict[int, int] = {}
    for old, document in enumerate(segment.documents()):
        count = segment.count_live(document.first, document.count)
        if count:
            copied = Document(document.id, (), document.title, document.source, document.meta, document.unit)
            numbers[old] = writer.add_document(copied, int(moved[document.first]), count)
    for file in segment.files():
        count = segment.count_live(file.first, file.count)
        if count:
            first = file.first + int(np.argmax(live[file.first : file.first + file.count]))
            writer.add_file(replace(file, first=int(moved[first]), count=count))
    ids = np.flatnonzero(live)
    for start in range(0, len(ids), BATCH_PASSAGES):
        batch = ids[start : start + BATCH_PASSAGES].tolist()
        writer.add(
            [segment.passage(i) for i in batch],
            [numbers[segment.document_number(i)] for i in batch],
            segment.vectors[batch],
        )
