"""What a change did to an index, and the figures in the manifest that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.index.manifest import Manifest, now
from retrieval.index.segment import Segment
from retrieval.index.store import Store


@dataclass(frozen=True)
class Report:
    """What a change did. `num_documents` and `num_passages` are what the index holds now. `skipped` holds (source,
    reason) for whatever was passed over."""

    index: str
    num_documents: int
    num_passages: int
    seconds: float
    num_read: int = 0  # files
    num_unchanged: int = 0
    num_removed: int = 0
    num_new_passages: int = 0
    skipped: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, index: Path, manifest: Manifest, seconds: float, **more: Any) -> Report:
        """Of an index whose manifest is `manifest` now."""
        return cls(str(index), manifest.num_documents, manifest.num_passages, seconds, **more)

    @property
    def passages_per_second(self) -> float:
        """New passages: reading, encoding and writing together; loading the encoder is not counted."""
        return self.num_new_passages / max(self.seconds, 1e-9)


def restamped(index: Path, manifest: Manifest) -> Manifest:
    """The manifest with its number of live documents and time of change as they are now."""
    store = Store(index, manifest)
    num = sum(_num_live(segment) for segment in store.segments)
    return replace(manifest, num_documents=num, updated=now())


def _num_live(segment: Segment) -> int:
    if not len(segment.deleted):
        return segment.info.num_documents
    return sum(1 for document in segment.documents() if segment.count_live(document.first, document.count))
