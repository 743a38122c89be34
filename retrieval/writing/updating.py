"""Bring an index up to date with its documents. It ends in one atomic change of its manifest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.documents import Limits, find_files
from retrieval.index.encoder import encoder_of
from retrieval.index.manifest import Manifest
from retrieval.index.naming import fits, is_under, matching
from retrieval.index.segment import FileRecord
from retrieval.index.store import Store, commit, replace_segments, sweep, writing
from retrieval.types import Encoder, Screener, SourceFile
from retrieval.writing.plan import Plan, vectors_of
from retrieval.writing.report import Report, restamped
from retrieval.writing.runners import OnProgress, Runner, run_here
from retrieval.writing.screening import screened
from retrieval.writing.shards import ShardResult, content_sum


def update_index(
    index: str | Path,
    paths: Iterable[str | Path] = (),
    encoder: str | Encoder | None = None,
    device: str | None = None,
    screener: Screener | None = None,
    run: Runner = run_here,
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Bring an index up to date with the documents under `paths`, by default those it was built from.

    Only files whose content changed are read, and only passages that are new are encoded. Files under `paths` that are
    gone are removed. A changed file that cannot be read keeps its old passages, and is reported. What was deleted by
    name stays away, unless `paths` gives it by name. New passages are judged by `screener`, or by the one that judged
    the others.

    Raises ValueError for an index that cannot be read, another encoder than the index's, and sources that are named
    from another folder than they were built from.
    """
    index = Path(index)
    with writing(index):
        store = Store(index)
        manifest = store.manifest
        given = [str(path) for path in paths] or _sources(manifest, index)
        found = changes(store, given)
        skipped = found.skipped
        results: list[ShardResult] = []
        if not found.files and not found.gone:
            sweep(index, manifest)
            return Report.of(index, manifest, 0.0, num_unchanged=found.num_same, skipped=tuple(skipped))
        started = time.perf_counter()
        if found.files:
            encoder = encoder_of(manifest, index, encoder, device)
            started = time.perf_counter()
            known = [
                vectors_of(store.segments[number], record.first, record.count)
                for file in found.files
                for number, record in found.held.get(file.source, ())
            ]
            work = Plan(index, "update", encoder, manifest.settings, store)
            results = work.run(found.files, known, run, limits, on_progress)
        replaced = {source for result in results for source in result.sources}
        skipped += [skip for result in results for skip in result.skipped]
        manifest = _without(store, found.gone | replaced)
        segments = tuple(segment for result in results for segment in result.segments)
        manifest = replace(
            manifest,
            segments=(*manifest.segments, *segments),
            sources=tuple(dict.fromkeys([*manifest.sources, *given])),
            excluded=tuple(name for name in manifest.excluded if name not in given),
        )
        if manifest.excluded:  # records of a file that was read again
            manifest = replace_segments(index, manifest, matching(Store(index, manifest), manifest.excluded)[0])
        manifest = restamped(index, screened(index, manifest, screener))
        commit(index, manifest)
    return Report.of(
        index,
        manifest,
        time.perf_counter() - started,
        num_read=len(replaced),
        num_unchanged=found.num_same,
        num_removed=len(found.gone),
        num_new_passages=sum(segment.num_passages for segment in segments),
        skipped=tuple(skipped),
    )


def _sources(manifest: Manifest, index: Path) -> list[str]:
    if (
        any(not Path(source).expanduser().is_absolute() for source in manifest.sources)
        and str(Path.cwd()) != manifest.folder
    ):
        raise ValueError(
            f"index '{index}' was built from {', '.join(manifest.sources)} in {manifest.folder}; run this there, or "
            "name the documents"
        )
    return list(manifest.sources)


@dataclass(frozen=True)
class Changes:
    """What an update would find. files: to read, since they are new or have changed. gone: sources. num_same: files
    that are as they were. skipped: (source, reason) of what cannot be read. held: see `Store.files`."""

    files: list[SourceFile]
    gone: set[str]
    num_same: int
    skipped: list[tuple[str, str]]
    held: Mapping[str, list[tuple[int, FileRecord]]]


def changes(store: Store, paths: Sequence[str] = ()) -> Changes:
    """What an update from `paths`, by default the index's own sources, would find. Raises ValueError as
    `update_index` does."""
    skipped: list[tuple[str, str]] = []
    given = list(paths) or _sources(store.manifest, store.index)
    held = store.files()
    excluded = [name for name in store.manifest.excluded if name not in paths]
    # A file that was named, is indexed and does not exist any more is gone. A folder that does not is an error: its
    # disk may only not be there today.
    present = [path for path in given if path not in held or Path(path).expanduser().exists()]
    files = find_files(present, lambda *skip: skipped.append(skip)) if present else []
    changed, num_same = [], 0
    for file in files:
        if any(fits(name, file.source, file.source) for name in excluded):
            continue
        try:
            records = held.get(file.source)
            if records is not None and all(record.sha256 == content_sum(file.path) for _, record in records):
                num_same += 1
                continue
        except ValueError as error:
            skipped.append((file.source, f"{error}; its passages from before are kept"))
            continue
        changed.append(file)
    found = {file.source for file in files} | {source for source, _ in skipped}
    gone = {source for source in held if source not in found and is_under(source, given)}
    return Changes(changed, gone, num_same, skipped, held)


def _without(store: Store, sources: set[str]) -> Manifest:
    """The manifest with all passages of `sources` deleted."""
    deleted: dict[str, list[NDArray[np.uint32]]] = {}
    for segment in store.segments:
        for file in segment.files():
            if file.source in sources:
                ids = np.arange(file.first, file.first + file.count, dtype=np.uint32)
                deleted.setdefault(segment.info.name, [segment.deleted]).append(ids)
    return replace_segments(store.index, store.manifest, {name: np.concatenate(ids) for name, ids in deleted.items()})
