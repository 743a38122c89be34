"""Zstandard files, read as a stream. (Python's own module for them comes with 3.14.)"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from training.data.extras import needed

_PIECE_BYTES = 1 << 10  # of compressed data: what repeats itself unpacks to ten thousand times as much
_MAX_WINDOW = 1 << 31  # files made with --long=31 can be read


def open_zst(path: Path) -> io.BufferedReader:
    """The content of a .zst file, of one frame or several. Reading it raises EOFError where it is cut off or broken;
    ValueError without the zstandard package."""
    return io.BufferedReader(_Unpacked(path))


class _Unpacked(io.RawIOBase):
    # zstandard's own stream_reader ends quietly where a file is cut off.

    def __init__(self, path: Path) -> None:
        self._zstandard = needed("zstandard", f"{path.name} is a .zst file")
        self._file = open(path, "rb")  # noqa: SIM115  # closed with this
        self._frame: Any = None
        self._compressed = self._unpacked = b""
        self._place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._place == len(self._unpacked):
            self._compressed = self._compressed or self._file.read(_PIECE_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self._unpacked, self._place = self._unpack(), 0
        piece = self._unpacked[self._place : self._place + len(buffer)]
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def _unpack(self) -> bytes:
        if self._frame is None:
            self._frame = self._zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        try:
            unpacked: bytes = self._frame.decompress(self._compressed)
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        self._compressed = b""
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None
        return unpacked

    def close(self) -> None:
        self._file.close()
        super().close()
