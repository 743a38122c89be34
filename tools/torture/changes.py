"""Changes of an index to be tortured: documents, every kind of change, what an index holds, what it should not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.index.manifest import MANIFEST, IndexSettings, read_manifest
from retrieval.index.store import Store
from retrieval.index.unfinished import WHOLE
from retrieval.types import Encoder
from retrieval.writing.building import build_index
from retrieval.writing.pool import Source
from retrieval.writing.removal import compact_index, delete_documents
from retrieval.writing.runners import OnProgress, RunInProcesses, Runner, run_here
from retrieval.writing.shards import Shard, ShardResult
from retrieval.writing.updating import update_index

FACTORY = "PQfs"  # so that segments have a Faiss index, small as they are
Content = dict[str, Any]


class ManySegments:
    """A runner that makes more shards, and smaller segments, than so few documents would get."""

    def __init__(self, run: Runner, num_shards: int, max_passages: int) -> None:
        self.num_workers = num_shards  # as many shards are made
        self._run, self._max_passages = run, max_passages

    def __call__(
        self, shards: Sequence[Shard], encoder: Encoder, known: Sequence[Source], on_progress: OnProgress | None
    ) -> list[ShardResult]:
        """See `Runner`."""
        smaller = [replace(shard, max_passages=self._max_passages) for shard in shards]
        return self._run(smaller, encoder, known, on_progress)


@dataclass(frozen=True)
class Kind:
    """A change to be killed. `prepared`: the index it starts from, None for none. `parent_alone`: its workers are not
    killed with it."""

    name: str
    change: Callable[[Path], object]
    prepared: Path | None
    parent_alone: bool = False


def content(index: Path) -> Content | None:
    """All that an index says and holds, read in full; None where there is no index."""
    if not (index / MANIFEST).exists():
        return None
    store = Store(index)
    passages = {}
    for (number, i), passage in store.live_passages():
        if passage.id in passages:
            raise RuntimeError(f"passage {passage.id} is there twice")
        stored = (passage.text, passage.title, passage.start, passage.end, passage.source, dict(passage.meta))
        passages[passage.id] = (stored, store.segments[number].vectors[i].tobytes())
    if len(passages) != store.manifest.num_passages:
        raise RuntimeError(f"{len(passages)} passages, the manifest says {store.manifest.num_passages}")
    files: dict[str, list[Any]] = {}
    for source, records in store.files().items():
        live = [store.segments[number].count_live(record.first, record.count) for number, record in records]
        files[source] = [*sorted({(record.sha256, record.size) for _, record in records}), sum(live)]
    return {"passages": passages, "order": list(passages), "files": files, "documents": store.manifest.num_documents}


def left_over(index: Path) -> list[str]:
    """Files in an index that are not of it."""
    manifest = read_manifest(index)
    known = {MANIFEST, "lock", "verified.json"}
    known |= {name for segment in manifest.segments for name in (segment.deleted_file, segment.screened_file)}
    known |= {f"{segment.name}/{name}" for segment in manifest.segments for name in [*segment.files, WHOLE]}
    found = {path.relative_to(index).as_posix() for path in index.rglob("*") if not path.is_dir()}
    return sorted(found - known) + sorted(
        path.name for path in index.iterdir() if path.is_dir() and not any(path.iterdir())
    )


def write_records(path: Path, num: int, prefix: str, changed: int = 0) -> None:
    """A file of `num` records, every `changed`-th of which differs from the usual."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(num):
            new = f" It was rebuilt in {i}." if changed and i % changed == 0 else ""
            text = f"The {prefix} number{i} stands by river{i % 97}.{new} Its tower{i % 31} was opened in {1000 + i}."
            file.write(json.dumps({"id": f"r{i}", "title": f"{prefix} {i}", "text": text}) + "\n")


def write_documents(docs: Path, num: int) -> None:
    """About `num` passages in eight files."""
    docs.mkdir(parents=True)
    for i in range(6):
        write_records(docs / f"{i}.jsonl", num // 6, f"castle{i}")
    (docs / "a.txt").write_text("A mill of wood.\n\nIt turns in the wind.\n")
    (docs / "b.md").write_text("# Bridges\n\nA bridge of stone.\n")


def change_documents(docs: Path, num: int) -> None:
    """A file is changed in part, one is gone, one is new."""
    write_records(docs / "1.jsonl", num // 6, "castle1", changed=5)
    (docs / "2.jsonl").unlink()
    write_records(docs / "6.jsonl", num // 6, "castle6")


def kinds(folder: Path, num_records: int) -> list[Kind]:
    """Every kind of change, on indexes of about `num_records` passages, made in `folder`."""
    docs = folder / "docs"
    settings = IndexSettings(factory=FACTORY)
    max_passages = max(num_records // 3, 1)
    alone = ManySegments(run_here, 2, max_passages)
    together = ManySegments(RunInProcesses(2), 3, max_passages)

    def build(run: Runner) -> Callable[[Path], object]:
        return lambda index: build_index([docs], index, "hash", settings, calibrate=False, run=run)

    def update(run: Runner) -> Callable[[Path], object]:
        return lambda index: update_index(index, run=run)

    write_documents(docs, num_records)
    old, changed = folder / "old", folder / "changed"
    build(alone)(old)
    delete_documents(old, [f"{docs}/4.jsonl#r1*"])
    change_documents(docs, num_records)
    shutil.copytree(old, changed)
    update(alone)(changed)
    return [
        Kind("first build", build(alone), None),
        Kind("first build, 2 workers", build(together), None),
        Kind("first build, parent killed", build(together), None, parent_alone=True),
        Kind("build", build(alone), old),
        Kind("update", update(alone), old),
        Kind("update, 2 workers", update(together), old),
        Kind("delete", lambda index: delete_documents(index, [f"{docs}/3.jsonl", f"{docs}/5.jsonl#r?5"]), old),
        Kind("compact", compact_index, changed),
    ]
