"""What may be wrong with an index: damage, stale files, another encoder, repeated passages, wasted room."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.index.encoder import encoder_of
from retrieval.index.manifest import Manifest, read_manifest
from retrieval.index.segment import Segment
from retrieval.index.store import Store, leftovers
from retrieval.passages import folded
from retrieval.types import Encoder
from retrieval.writing.updating import changes

NUM_TOKENS_COUNTED = 2000  # passages, spread over the index
NUM_VECTORS_MADE_AGAIN = 16
MIN_COSINE = 0.99  # of a stored vector with the same text encoded now; batches of another make-up move int8 a little
MANY_DELETED = 0.25
MANY_SEGMENTS = 16


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `problem` is '' where it is well; `remedy` says what to do where it is not."""

    name: str
    found: str
    problem: str = ""
    remedy: str = ""


def examine(index: str | Path, encoder: str | Encoder | None = None, device: str | None = None) -> Iterator[Finding]:
    """Everything there is to say of an index, each as soon as it is known; reads every byte of it.

    Raises ValueError where there is no index.
    """
    index = Path(index)
    manifest = read_manifest(index)
    try:
        store = Store(index, full=True)
    except ValueError as error:
        yield Finding("files", "damaged", str(error), f"python -m retrieval build DOCUMENTS --index {index}")
        return
    yield Finding("files", f"{manifest.size / 1e6:.1f} MB in {len(manifest.segments)} segments, all sums right")
    yield from _encoder(store, encoder, device)
    yield _sources(store)
    yield _duplicates(store)
    yield _room(store)
    yield _left_behind(store)
    yield _calibration(manifest, index)


def _encoder(store: Store, encoder: str | Encoder | None, device: str | None) -> Iterator[Finding]:
    built_with = store.manifest.encoder
    try:
        opened = encoder_of(store.manifest, store.index, encoder, device)
    except ValueError as error:
        yield Finding("encoder", built_with.name, str(error), "pass --encoder with the one the index was built with")
        return
    worst = _worst_cosine(store, opened)
    if worst < MIN_COSINE:
        problem = f"a stored vector has a cosine of {worst:.3f} with its own passage, encoded now"
        yield Finding("encoder", built_with.name, problem, "rebuild the index")
    else:
        yield Finding("encoder", f"{built_with.name}, same as at the build; stored vectors agree to {worst:.4f}")
    yield _lengths(store, opened)


def _spread(store: Store, num: int) -> Iterator[tuple[Segment, list[int]]]:
    """About `num` live passages, evenly spread: ids by segment."""
    step = max(len(store) // num, 1)
    for segment in store.segments:
        yield segment, np.flatnonzero(segment.live())[::step].tolist()


def _worst_cosine(store: Store, encoder: Encoder) -> float:
    worst = 1.0
    for segment, ids in _spread(store, NUM_VECTORS_MADE_AGAIN):
        ids = ids[:NUM_VECTORS_MADE_AGAIN]
        if ids:
            made: NDArray[np.float32] = encoder.encode([segment.text(i) for i in ids])
            worst = min(worst, float((made * segment.vectors[ids]).sum(1).min()))
    return worst


def _lengths(store: Store, encoder: Encoder) -> Finding:
    texts = [segment.text(i) for segment, ids in _spread(store, NUM_TOKENS_COUNTED) for i in ids]
    num_long = sum(number > encoder.max_length for number in encoder.count_tokens(texts)) if texts else 0
    if not num_long:
        return Finding("lengths", f"none of {len(texts)} passages looked at is longer than the encoder reads")
    problem = f"{num_long} of {len(texts)} passages are longer than the {encoder.max_length} tokens the encoder reads"
    return Finding("lengths", problem, problem, "build again with a lower --max-tokens")


def _sources(store: Store) -> Finding:
    """Files that changed, came or went since the index was made."""
    try:
        found = changes(store)
    except ValueError as error:
        return Finding("sources", str(error), "", "")
    num_new = sum(1 for file in found.files if file.source not in found.held)
    unread = f", {len(found.skipped)} cannot be read" if found.skipped else ""
    if not found.files and not found.gone:
        return Finding("sources", f"all {found.num_same} files are as they were indexed{unread}")
    names = [file.source for file in found.files] + sorted(found.gone)
    shown = ", ".join(islice(names, 5)) + (", ..." if len(names) > 5 else "")
    problem = (
        f"{len(found.files) - num_new} files changed, {num_new} are new, {len(found.gone)} are gone{unread}: {shown}"
    )
    return Finding("sources", problem, problem, f"python -m retrieval update --index {store.index}")


def _duplicates(store: Store) -> Finding:
    """Passages whose text another one has too; a search shows such a text once."""
    seen: set[bytes] = set()
    repeated: list[str] = []
    num = 0
    for _, passage in store.live_passages():
        digest = hashlib.blake2b(folded(passage.text).encode("utf-8", "replace"), digest_size=8)
        if digest.digest() in seen:
            num += 1
            if len(repeated) < 3:
                repeated.append(passage.location)
        seen.add(digest.digest())
    if not num:
        return Finding("duplicates", "no passage is there twice")
    found = f"{num} passages repeat the text of another, such as {', '.join(repeated)}; a search shows one of each"
    return Finding("duplicates", found)


def _room(store: Store) -> Finding:
    manifest = store.manifest
    total = manifest.num_passages + manifest.num_deleted
    found = f"{manifest.num_deleted} of {total} passages are deleted; {len(manifest.segments)} segments"
    small = len(manifest.segments) > MANY_SEGMENTS and manifest.num_passages < MANY_SEGMENTS * 65_536
    if manifest.num_deleted > MANY_DELETED * max(total, 1) or small:
        return Finding("room", found, found, f"python -m retrieval compact --index {store.index}")
    return Finding("room", found)


def _left_behind(store: Store) -> Finding:
    left = leftovers(store.index, store.manifest)
    if not left:
        return Finding("leftovers", "none")
    num_bytes = 0
    with contextlib.suppress(FileNotFoundError):  # a writer that runs now sweeps up
        num_bytes = sum(file.stat().st_size for folder in left for file in folder.iterdir())
    problem = f"{len(left)} unfinished segments, {num_bytes / 1e6:.1f} MB, of a command that was killed or still runs"
    return Finding("leftovers", problem, problem, "run that command again to use them, or compact to clear them away")


def _calibration(manifest: Manifest, index: Path) -> Finding:
    if manifest.calibration is not None:
        return Finding("floor", f"{manifest.floor:.2f}, {manifest.calibration}")
    if manifest.floor > 0:
        return Finding("floor", f"{manifest.floor:.2f}, not fitted to these documents")
    problem = "there is no floor: a bot answers from the nearest passages, however far they are"
    remedy = f"python -m retrieval tune --index {index}; for few documents, with --questions of your own"
    return Finding("floor", problem, problem, remedy)
