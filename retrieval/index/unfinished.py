"""Segments that no manifest names yet: what says that one is whole, and how it gets its name.

journal.jsonl    while it is written: the sums of each batch of passages
segment.json     written last: the SegmentInfo, and what the writer needs to know to go on after it
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import read_json, sync_folder, write_json
from retrieval.index.manifest import FileInfo, SegmentInfo, checksum, file_info

JOURNAL, WHOLE = "journal.jsonl", "segment.json"


def holds_work(folder: Path) -> bool:
    """Whether a segment, or what there is of one, holds passages that were encoded."""
    if (folder / WHOLE).is_file():
        return True
    return (folder / JOURNAL).is_file() and (folder / JOURNAL).stat().st_size > 0


def read_whole(folder: Path) -> dict[str, Any] | None:
    """What `write_whole` said of a folder that no manifest vouches for, with the SegmentInfo under 'info'.

    None unless all is there, and as it was written: whatever is not can be made again.
    """
    try:
        stored = read_json(folder / WHOLE)
        if stored.pop("checksum") != checksum(stored):
            return None
        stored["info"] = info = _segment_info(stored["info"])
        sound = all(file_info(folder / name) == expected for name, expected in info.files.items())
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None
    return stored if sound else None


def write_whole(folder: Path, stored: dict[str, Any]) -> None:
    """Say that the segment in `folder` is whole; `stored` holds its SegmentInfo, as a dict, under 'info'."""
    stored = json.loads(json.dumps(stored))  # as it will be read
    write_json(folder / WHOLE, {**stored, "checksum": checksum(stored)})


def put_in_place(folder: Path, info: SegmentInfo) -> SegmentInfo:
    """Give a whole segment its name; returns the info of the segment that has it then."""
    target = folder.with_name(info.name)
    while folder != target:
        try:
            folder.rename(target)
            sync_folder(target.parent)
            break
        except OSError:
            if not target.is_dir():
                raise
        if (other := read_whole(target)) is not None:  # of another run of the same work
            found: SegmentInfo = other["info"]
            return found
        target.rename(folder.with_name(f"segment-{secrets.token_hex(6)}"))
    return info


def _segment_info(stored: Mapping[str, Any]) -> SegmentInfo:
    """The SegmentInfo in segment.json."""
    info = dict(stored)
    return SegmentInfo(files={name: FileInfo(**each) for name, each in info.pop("files").items()}, **info)
