"""Taking documents out of an index: at once by name, and for good by compacting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retrieval.index.naming import matching
from retrieval.index.store import Store, commit, replace_segments, writing
from retrieval.types import Screener
from retrieval.writing.compaction import merged_segments
from retrieval.writing.report import Report, restamped
from retrieval.writing.screening import screened


def delete_documents(index: str | Path, names: Sequence[str]) -> Report:
    """Remove documents: `names` are sources, folders of sources, document ids, or patterns (`*` and `?`) of these.

    They are gone for every search from now on, and an update does not bring them back unless it is given their source
    by name; `compact_index` frees their room. Raises ValueError for a name that fits nothing.
    """
    index = Path(index)
    started = time.perf_counter()
    with writing(index):
        store = Store(index)
        deleted, found = matching(store, names)
        if missing := [name for name in names if name not in found]:
            raise ValueError(
                f"'{missing[0]}' fits no document of index '{index}'; see them with: python -m retrieval info "
                f"--documents --index {index}"
            )
        manifest = replace_segments(index, store.manifest, deleted)
        manifest = restamped(index, replace(manifest, excluded=tuple(dict.fromkeys([*manifest.excluded, *names]))))
        commit(index, manifest)
    num_removed = store.manifest.num_documents - manifest.num_documents
    return Report.of(index, manifest, time.perf_counter() - started, num_removed=num_removed)


def compact_index(index: str | Path, screener: Screener | None = None) -> Report:
    """Rewrite an index without its deleted passages, in as few segments as may be. Nothing is encoded again. What is
    rewritten is judged again, by `screener` or the one that judged it before."""
    index = Path(index)
    started = time.perf_counter()
    with writing(index):
        store = Store(index)
        num_before = store.manifest.num_deleted
        segments = merged_segments(store)
        manifest = restamped(index, screened(index, replace(store.manifest, segments=segments), screener))
        commit(index, manifest)
    return Report.of(index, manifest, time.perf_counter() - started, num_removed=num_before)
