"""JSON lines that are found by their number: a file of them, and beside it where each begins."""

from __future__ import annotations

import json
import mmap
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def index_name(name: str) -> str:
    """'passages.jsonl' -> 'passages.idx'."""
    return Path(name).stem + ".idx"


class LineFile:
    """JSON lines on their way to disk, and where each begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115
        self._offsets = array("Q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def add(self, value: object) -> bytes:
        """Append a line; returns it."""
        line = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"
        self._file.write(line)
        self._offsets.append(self._offsets[-1] + len(line))
        return line

    def write_offsets(self) -> None:
        """Write the file beside it."""
        path = self._path.parent / index_name(self._path.name)
        path.write_bytes(np.array(self._offsets, dtype="<u8").tobytes())

    def flush(self) -> None:
        """Hand everything to the system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file of lines."""
        self._file.close()


class Lines:
    """The JSON lines of a file by number, read from a memory map."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError where the two files cannot be read or do not fit each other."""
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offsets = np.memmap(path.parent / index_name(path.name), dtype="<u8", mode="r")
        self._offsets: NDArray[np.uint64] = np.asarray(offsets)
        if int(self._offsets[-1]) != len(self._map):
            raise ValueError(f"{path.name} does not fit its offsets")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def get(self, i: int) -> dict[str, Any]:
        """Line i, from 0."""
        line: dict[str, Any] = json.loads(self._map[int(self._offsets[i]) : int(self._offsets[i + 1])].decode("utf-8"))
        return line
