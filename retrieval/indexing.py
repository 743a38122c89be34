"""Build an index, and bring it up to date. Either ends in one atomic change of its manifest."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import read_json, write_json
from retrieval.abstention import fit_floor
from retrieval.ann import check_factory
from retrieval.documents import Limits, SourceFile, find_files
from retrieval.encoders import as_encoder, default_floor
from retrieval.fusion import UNRELATED, baseline_of
from retrieval.manifest import EncoderInfo, IndexSettings, Manifest, now
from retrieval.naming import fits, is_under, matching
from retrieval.pool import Source
from retrieval.runners import OnProgress, Runner, run_here
from retrieval.segment import FileRecord, Segment
from retrieval.shards import ShardResult, content_sum, make_shards, plan_key
from retrieval.store import WORK, Store, commit, discard, leftovers, replace_segments, sweep, writing
from retrieval.types import Encoder
from retrieval.unfinished import WHOLE, read_whole

DEFAULT_ENCODER = "minilm"
SHARD_BYTES = 96 << 20


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


def build_index(
    paths: Iterable[str | Path],
    index: str | Path,
    encoder: str | Encoder = DEFAULT_ENCODER,
    settings: IndexSettings | None = None,
    floor: float | None = None,
    device: str | None = None,
    calibrate: bool = True,
    run: Runner = run_here,
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Build the index of the documents under `paths` in the folder `index`, in place of the index there, if any.

    `encoder` is one, or the name of one (see `open_encoder`, also for `device`). `floor` is the score below which a
    hit says nothing; None: found from the documents (`calibrate`), else the one measured for the encoder. `run` says
    where the work is done. Memory holds one document, one batch of passages and the search structures of one segment,
    however many there are.

    A build that was killed, and is started again with the same arguments, goes on where it was; until it ends, the
    index that was there stays as it was. What the old index holds is not encoded again.

    Raises ValueError where no document can be read, for a target folder or an encoder that cannot be used, and for
    values out of range.
    """
    index, settings, given = Path(index), settings or IndexSettings(), [str(path) for path in paths]
    if floor is not None and not -1 <= floor <= 1:
        raise ValueError(f"floor is {floor}; a confidence goes from 0 to 1, a cosine from -1")
    skipped: list[tuple[str, str]] = []
    files = find_files(given, lambda *skip: skipped.append(skip))
    with writing(index, create=True):
        try:
            # What can be wrong with the arguments should show before the encoder takes its seconds to load.
            encoder = as_encoder(encoder, DEFAULT_ENCODER, device)
            check_factory(encoder.dim, settings.factory)
            started = time.perf_counter()
            fusion = replace(settings.fusion, baseline=round(baseline_of(encoder.encode(UNRELATED)), 3))
            settings = replace(settings, fusion=fusion)
            old = _readable(index)
            known = [] if old is None or old.manifest.encoder.fingerprint != encoder.fingerprint else _all_of(old)
            work = _Work(index, "build", encoder, settings, old)
            results = work.run(files, known, run, limits, on_progress)
            skipped += [skip for result in results for skip in result.skipped]
            segments = tuple(segment for result in results for segment in result.segments)
            if not segments:
                raise _nothing_read(given, skipped)
            manifest = Manifest(
                encoder=EncoderInfo(encoder.name, encoder.fingerprint, encoder.dim),
                settings=settings,
                segments=segments,
                num_documents=sum(segment.num_documents for segment in segments),
                floor=default_floor(encoder.name) if floor is None else floor,
                calibration=None,
                sources=tuple(given),
                folder=str(Path.cwd()),
                created=now(),
                updated=now(),
            )
            if calibrate and floor is None:
                manifest = fit_floor(Store(index, manifest), encoder)
            commit(index, manifest)
        except Exception:
            discard(index)
            raise
    num = manifest.num_passages
    return Report(
        str(index),
        manifest.num_documents,
        num,
        time.perf_counter() - started,
        num_read=sum(len(result.sources) for result in results),
        num_new_passages=num,
        skipped=tuple(skipped),
    )


def update_index(
    index: str | Path,
    paths: Iterable[str | Path] = (),
    encoder: str | Encoder | None = None,
    device: str | None = None,
    run: Runner = run_here,
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Bring an index up to date with the documents under `paths`, by default those it was built from.

    Only files whose content changed are read, and only passages that are new are encoded. Files under `paths` that are
    gone are removed. A changed file that cannot be read keeps its old passages, and is reported. What was deleted by
    name stays away, unless `paths` gives it by name.

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
                _source(store.segments[number], record.first, record.count)
                for file in found.files
                for number, record in found.held.get(file.source, ())
            ]
            work = _Work(index, "update", encoder, manifest.settings, store)
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
        manifest = restamped(index, manifest)
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


class _Work:
    """A plan that is being carried out in the folder of an index, and what earlier runs of it left there."""

    def __init__(self, index: Path, kind: str, encoder: Encoder, settings: IndexSettings, base: Store | None) -> None:
        self._index, self._kind, self._encoder, self._settings, self._base = index, kind, encoder, settings, base

    def run(
        self,
        files: Sequence[SourceFile],
        known: list[Source],
        run: Runner,
        limits: Limits | None,
        on_progress: OnProgress | None,
    ) -> list[ShardResult]:
        """Write all segments; vectors in `known` are not made again. work.json says, should this be killed, which plan
        was being carried out, under what name, and with which encoder."""
        base = self._base.manifest if self._base else None
        total = sum(file.size for file in files)
        max_bytes = max(min(SHARD_BYTES, -(-total // run.num_workers)), 1)
        named = ",".join(segment.name for segment in base.segments) if base else ""
        plan = plan_key(self._kind, self._encoder.fingerprint, self._settings, f"{named} {max_bytes}", list(files))
        left = self._left()
        name = str(left["name"]) if left.get("plan") == plan else secrets.token_hex(16)
        shards = make_shards(self._index, name, list(files), self._settings, max_bytes, limits or Limits())
        if left.get("encoder") == self._encoder.fingerprint:
            own = {shard.segment_name(sequence) for shard in shards for sequence in range(64)}
            known = [*known, *(source for each in leftovers(self._index, base) for source in self._known(each, own))]
        write_json(self._index / WORK, {"plan": plan, "name": name, "encoder": self._encoder.fingerprint})
        return run(shards, self._encoder, known, on_progress)

    def _left(self) -> Mapping[str, object]:
        """What a killed run says in work.json; {} where there was none, or it was being written."""
        try:
            left = read_json(self._index / WORK)
        except ValueError:
            return {}
        return left if isinstance(left, dict) and left.keys() == {"plan", "name", "encoder"} else {}

    def _known(self, folder: Path, own: set[str]) -> list[Source]:
        """The vectors of a leftover segment, unless it is a whole one of this very plan, which is used as it is."""
        if not (folder / WHOLE).is_file():
            return [Source(str(folder))]
        if folder.name in own:
            return []
        if (whole := read_whole(folder)) is None:
            return []
        segment = Segment(folder, whole["info"], self._encoder.dim)
        return [_source(segment, 0, len(segment))]


def _source(segment: Segment, first: int, count: int) -> Source:
    return Source(str(segment.folder), segment.info, first, count)


def _all_of(store: Store) -> list[Source]:
    return [_source(segment, 0, len(segment)) for segment in store.segments]


def _readable(index: Path) -> Store | None:
    """The index that is there, if it can be used at all: a build is also how to mend a damaged one."""
    try:
        return Store(index)
    except ValueError:
        return None


def encoder_of(manifest: Manifest, index: Path, encoder: str | Encoder | None, device: str | None) -> Encoder:
    """The encoder of an index, or the one that is given for it. Raises as `open_encoder` and `check_encoder` do."""
    opened = as_encoder(encoder, manifest.encoder.name, device)
    check_encoder(opened, manifest, index)
    return opened


def check_encoder(encoder: Encoder, manifest: Manifest, index: Path) -> None:
    """Raises ValueError for an encoder that is not the one the index was built with."""
    built_with = manifest.encoder
    if encoder.fingerprint != built_with.fingerprint:
        raise ValueError(
            f"index '{index}' was built with encoder '{built_with.name}' (fingerprint {built_with.fingerprint[:12]}), "
            f"which encoder '{encoder.name}' ({encoder.fingerprint[:12]}) is not; rebuild it with: python -m retrieval "
            f"build DOCUMENTS --index {index} --encoder {encoder.name}, or pass the encoder it was built with"
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


def restamped(index: Path, manifest: Manifest) -> Manifest:
    """The manifest with its number of live documents and time of change as they are now."""
    store = Store(index, manifest)
    num = sum(_num_live(segment) for segment in store.segments)
    return replace(manifest, num_documents=num, updated=now())


def _num_live(segment: Segment) -> int:
    if not len(segment.deleted):
        return segment.info.num_documents
    return sum(1 for document in segment.documents() if segment.count_live(document.first, document.count))


def _nothing_read(paths: Sequence[str], skipped: Sequence[tuple[str, str]]) -> ValueError:
    if len(skipped) == 1:
        source, reason = skipped[0]
        return ValueError(f"cannot read '{source}': {reason}")
    reasons = "".join(f"; {source}: {reason}" for source, reason in skipped[:3])
    return ValueError(f"no document under {', '.join(paths)} can be read ({len(skipped)} files were skipped{reasons})")
