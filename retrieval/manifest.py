"""manifest.json: what an index holds and how it was made. An index is what its manifest says; nothing else counts.

A reader sees either the old manifest or the new one (atomic rename), and refuses any file whose size or SHA-256 is
not the one the manifest gives.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import read_json, sha256_of, write_json
from retrieval.passages import SplitSettings

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
SEGMENT_NAME = re.compile(r"segment-[0-9a-f]{12}")
PASSAGES, OFFSETS, VECTORS = "passages.jsonl", "offsets.npy", "vectors.faiss"


@dataclass(frozen=True)
class EncoderInfo:
    """The encoder that made the vectors; see `types.Encoder`."""

    name: str
    fingerprint: str
    dim: int


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 sum in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """segment: the folder with the content. floor: see `types.Searcher`. factory: of the Faiss index. files: by name,
    those of the segment. created: UTC, ISO 8601."""

    segment: str
    encoder: EncoderInfo
    settings: SplitSettings
    factory: str
    floor: float
    num_documents: int
    num_passages: int
    files: Mapping[str, FileInfo]
    created: str


def file_info(path: Path) -> FileInfo:
    """Size and sum of a file as it is now."""
    return FileInfo(path.stat().st_size, sha256_of(path))


def write_manifest(index: Path, manifest: Manifest) -> None:
    """Put the manifest in place, atomically: this is the moment at which an index changes."""
    content = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    write_json(index / MANIFEST, {**content, "checksum": _checksum(content)})


def read_manifest(index: Path) -> Manifest:
    """Raises ValueError, with the remedy, where there is no index, or one that is damaged or of a newer format."""
    if not (index / MANIFEST).is_file():
        raise ValueError(f"there is no index in '{index}'; {_build_command(index)}")
    try:
        content = read_json(index / MANIFEST)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        version = content["format_version"]
        if not isinstance(version, int):
            raise ValueError(f"its format_version is {version!r}")
        if version <= FORMAT_VERSION:
            return _parse(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(index, MANIFEST, str(error)) from None
    raise ValueError(
        f"index '{index}' has format {version}, and this version of Parley reads up to {FORMAT_VERSION}; "
        f"update Parley, or {_build_command(index)}"
    )


def verify(index: Path, manifest: Manifest) -> None:
    """Raises ValueError unless every file of the segment has the size and the sum that the manifest gives."""
    for name, expected in manifest.files.items():
        path = index / manifest.segment / name
        if not path.is_file():
            raise damaged(index, name, "missing")
        if path.stat().st_size != expected.size:
            raise damaged(index, name, f"{path.stat().st_size} bytes, the manifest says {expected.size}")
        if sha256_of(path) != expected.sha256:
            raise damaged(index, name, "SHA-256 differs from the manifest")


def damaged(index: Path, name: str, problem: str) -> ValueError:
    """The error for an index that is not what its manifest says."""
    return ValueError(f"index '{index}' is damaged ({name}: {problem}); re{_build_command(index)}")


def _build_command(index: Path) -> str:
    return f"build it with: python -m retrieval build DOCUMENTS --index {index}"


def _parse(content: dict[str, Any]) -> Manifest:
    """Raises KeyError, TypeError or ValueError for anything but what `write_manifest` writes."""
    checksum = content.pop("checksum")
    if checksum != _checksum(content):
        raise ValueError("its content differs from its checksum")
    del content["format_version"]
    files = {name: FileInfo(**info) for name, info in content.pop("files").items()}
    if set(files) != {PASSAGES, OFFSETS, VECTORS}:
        raise ValueError(f"it names the files {', '.join(sorted(files))}")
    encoder = EncoderInfo(**content.pop("encoder"))
    manifest = Manifest(encoder=encoder, settings=SplitSettings(**content.pop("settings")), files=files, **content)
    if not SEGMENT_NAME.fullmatch(manifest.segment):  # it becomes a path that is read, and deleted later
        raise ValueError(f"'{manifest.segment}' is no segment name")
    return manifest


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content, whatever its layout in the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()
