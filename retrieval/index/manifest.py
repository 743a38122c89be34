"""manifest.json: what an index holds and how it was made. An index is what its manifest says; nothing else counts.

    INDEX/manifest.json             written last, by atomic rename: the one commit point
    INDEX/segment-<12 hex>/         an immutable part of the index; see `segment.py`
    INDEX/deleted-<12 hex>.u32      which passages of a segment are deleted: sorted uint32 ids, little-endian
    INDEX/screened-<12 hex>.f32     what a screener thinks of each passage of a segment: float32, little-endian
    INDEX/verified.json             which files were found sound, so that they are not read again; see `integrity.py`
    INDEX/lock                      held by the one writer

A reader sees either the old manifest or the new one, and refuses any file whose size or SHA-256 is not the one the
manifest gives.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common.files import json_text, parse_json, read_text, sha256_of, write_json
from retrieval.passages import SplitSettings
from retrieval.scoring.calibration import Calibration
from retrieval.scoring.fusion import FusionSettings
from retrieval.scoring.lexical import LexicalSettings

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
SEGMENT_NAME = re.compile(r"segment-[0-9a-f]{12}")
DELETED_NAME = re.compile(r"deleted-[0-9a-f]{12}\.u32")
SCREENED_NAME = re.compile(r"screened-[0-9a-f]{12}\.f32")
_FILE_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True)
class EncoderInfo:
    """The encoder that made the vectors; see `types.Encoder`."""

    name: str
    fingerprint: str
    dim: int


@dataclass(frozen=True)
class ScreenerInfo:
    """Who judged the passages; see `types.Screener`."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 sum in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class SegmentInfo:
    """A segment and which of its passages are deleted. `files`: those in its folder, by name. `factory`: of its Faiss
    index. `deleted_file`: '' where nothing is deleted, else the name of the file that lists `num_deleted` passages,
    described by `deleted_info`. `screened_file`, `screened_info`: the same for the scores of the screener, '' where
    none has seen the segment."""

    name: str
    num_passages: int
    num_documents: int
    factory: str
    files: Mapping[str, FileInfo]
    deleted_file: str = ""
    deleted_info: FileInfo | None = None
    num_deleted: int = 0
    screened_file: str = ""
    screened_info: FileInfo | None = None


@dataclass(frozen=True)
class IndexSettings:
    """All that decides what an index of given documents holds and how it is searched. `factory`: a Faiss factory
    string for the vectors, or 'auto' (by size)."""

    split: SplitSettings = field(default_factory=SplitSettings)
    lexical: LexicalSettings = field(default_factory=LexicalSettings)
    fusion: FusionSettings = field(default_factory=FusionSettings)
    factory: str = "auto"


@dataclass(frozen=True)
class Manifest:
    """segments: in the order of their making. num_documents: live ones. floor: see `types.Searcher`. calibration: how
    the floor was found, where it was. sources: the paths that were indexed, as given, `folder`: where they were given
    from. excluded: names of documents that were deleted, and that an update leaves out. created, updated: UTC, ISO
    8601. screener: who judged all passages, None for nobody."""

    encoder: EncoderInfo
    settings: IndexSettings
    segments: tuple[SegmentInfo, ...]
    num_documents: int
    floor: float
    calibration: Calibration | None
    sources: tuple[str, ...]
    folder: str
    created: str
    updated: str
    excluded: tuple[str, ...] = ()
    screener: ScreenerInfo | None = None

    @property
    def num_passages(self) -> int:
        """Live ones: deleted passages do not count."""
        return sum(segment.num_passages - segment.num_deleted for segment in self.segments)

    @property
    def num_deleted(self) -> int:
        """Passages that are deleted and still take room."""
        return sum(segment.num_deleted for segment in self.segments)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(info.size for segment in self.segments for info in segment.files.values())


def now() -> str:
    """This second, UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def file_info(path: Path) -> FileInfo:
    """Size and sum of a file as it is now."""
    return FileInfo(path.stat().st_size, sha256_of(path))


def write_manifest(index: Path, manifest: Manifest) -> None:
    """Put the manifest in place, atomically: this is the moment at which an index changes."""
    content = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    content = json.loads(json.dumps(content))  # as it will be read: tuples become lists
    write_json(index / MANIFEST, {**content, "checksum": checksum(content)})


def read_manifest(index: Path) -> Manifest:
    """Raises ValueError, with the remedy, where there is no index, or one that is damaged or of another format."""
    if not (index / MANIFEST).is_file():
        raise ValueError(f"there is no index in '{index}'; {_build_command(index)}")
    try:
        text = read_text(index / MANIFEST)
        content = parse_json(text, index / MANIFEST)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        version = content["format_version"]
        if not isinstance(version, int):
            raise ValueError(f"its format_version is {version!r}")
        if version == FORMAT_VERSION:
            written = json_text(content)
            manifest = _parse(content)
            if text != written:
                raise ValueError("it was changed after it was written")
            return manifest
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise damaged(index, MANIFEST, str(error)) from None
    remedy = f"re{_build_command(index)}" if version < FORMAT_VERSION else f"update Parley, or {_build_command(index)}"
    raise ValueError(
        f"index '{index}' has format {version}, and this version of Parley reads {FORMAT_VERSION}; {remedy}"
    )


def damaged(index: Path, name: str, problem: str) -> ValueError:
    """The error for an index that is not what its manifest says."""
    return ValueError(f"index '{index}' is damaged ({name}: {problem}); re{_build_command(index)}")


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever their layout in a file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def _build_command(index: Path) -> str:
    return f"build it with: python -m retrieval build DOCUMENTS --index {index}"


def _parse(content: dict[str, Any]) -> Manifest:
    """Raises KeyError, TypeError or ValueError for anything but what `write_manifest` writes."""
    if content.pop("checksum") != checksum(content):
        raise ValueError("its content differs from its checksum")
    del content["format_version"]
    settings = content.pop("settings")
    found, screener = content.pop("calibration"), content.pop("screener", None)
    return replace(
        Manifest(
            encoder=EncoderInfo(**content.pop("encoder")),
            settings=IndexSettings(
                SplitSettings(**settings["split"]),
                LexicalSettings(**settings["lexical"]),
                FusionSettings(**settings["fusion"]),
                settings["factory"],
            ),
            segments=tuple(_segment(**segment) for segment in content.pop("segments")),
            calibration=None if found is None else Calibration.from_dict(found),
            screener=None if screener is None else ScreenerInfo(**screener),
            **content,
        ),
        sources=tuple(content["sources"]),
        excluded=tuple(content["excluded"]),
    )


def _segment(files: dict[str, Any], **rest: Any) -> SegmentInfo:
    infos = {name: FileInfo(**info) for name, info in files.items()}
    lists = {name: FileInfo(**rest.pop(name)) for name in ("deleted_info", "screened_info") if rest.get(name)}
    info = SegmentInfo(files=infos, **{**rest, **lists})
    # These become paths that are read, and deleted later.
    if not SEGMENT_NAME.fullmatch(info.name):
        raise ValueError(f"'{info.name}' is no segment name")
    if bad := [name for name in infos if not _FILE_NAME.fullmatch(name)]:
        raise ValueError(f"'{bad[0]}' is no file of a segment")
    for name, described, pattern in (
        (info.deleted_file, info.deleted_info, DELETED_NAME),
        (info.screened_file, info.screened_info, SCREENED_NAME),
    ):
        if bool(name) != (described is not None) or (name and not pattern.fullmatch(name)):
            raise ValueError(f"'{name}' is no list of passages")
    return info
