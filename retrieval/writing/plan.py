"""What a build or an update has to do, carried out so that the next run can go on where this one is killed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import read_json, write_json
from retrieval.documents import Limits
from retrieval.index.manifest import IndexSettings
from retrieval.index.segment import Segment
from retrieval.index.store import WORK, Store, leftovers
from retrieval.index.unfinished import WHOLE, read_whole
from retrieval.types import Encoder, SourceFile
from retrieval.writing.pool import Source
from retrieval.writing.runners import OnProgress, Runner
from retrieval.writing.shards import ShardResult, make_shards, plan_key

SHARD_BYTES = 96 << 20


class Plan:
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
        return [vectors_of(segment, 0, len(segment))]


def vectors_of(segment: Segment, first: int, count: int) -> Source:
    return Source(str(segment.folder), segment.info, first, count)
