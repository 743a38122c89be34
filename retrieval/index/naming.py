"""What a name that a user gives stands for among the documents of an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from retrieval.documents import matches_pattern
from retrieval.index.store import Store


def is_under(source: str, paths: Sequence[str]) -> bool:
    """Whether a source is one of the paths, is in a folder among them, or fits a pattern (`*`, `?`, `**`) among them,
    which goes part by part, as in a shell."""
    parts = PurePath(source).parts
    for path in paths:
        given = PurePath(path).parts
        if not given or parts == given or parts[: len(given)] == given or matches_pattern(parts, given):
            return True
    return False


def fits(name: str, source: str, identity: str) -> bool:
    """Whether `name` stands for a document: as in `is_under`, or by its id, which may be a pattern too."""
    return name in (source, identity) or is_under(source, [name]) or matches_pattern((identity,), (name,))


def matching(store: Store, names: Sequence[str]) -> tuple[dict[str, NDArray[np.uint32]], set[str]]:
    """By segment, all ids that are deleted once the documents called `names` are; and the names that fit some."""
    deleted: dict[str, NDArray[np.uint32]] = {}
    found: set[str] = set()
    for segment in store.segments:
        gone = [segment.deleted]
        for document in segment.documents():
            fitting = [name for name in names if fits(name, document.source, document.id)]
            if fitting and segment.count_live(document.first, document.count):
                found.update(fitting)
                gone.append(np.arange(document.first, document.first + document.count, dtype=np.uint32))
        if len(gone) > 1:
            deleted[segment.info.name] = np.concatenate(gone)
    return deleted, found
