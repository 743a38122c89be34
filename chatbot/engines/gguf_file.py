"""What a GGUF file says of itself, read without loading it, and which of a folder's files an engine takes.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package reads it too, in seconds rather than
milliseconds, since it keeps every word of the vocabulary; here lists are skipped.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 27  # bytes of one string: a damaged length must not be read as one
_MOST_DIMENSIONS = 4  # of a tensor, in ggml
# Preferred first: nearly the answers of full precision (docs/engines.md has figures), then smaller, then larger ones.
_PREFERENCE = ("q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "f16", "bf16", "f32")


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file, without its lists; of those `lengths` has the number of items. `tensors` has the
    number of elements of each tensor, by llama.cpp's names."""

    path: Path
    values: dict[str, Any]
    lengths: dict[str, int]
    tensors: dict[str, int]

    @property
    def architecture(self) -> str:
        """Such as `llama`; '' where the file does not say."""
        return str(self.values.get("general.architecture", ""))

    @property
    def is_adapter(self) -> bool:
        """Whether this is a LoRA adapter and no model."""
        return self.values.get("general.type") == "adapter"

    def number(self, name: str, default: int = 0) -> int:
        """The value of `{architecture}.{name}`; `default` where it is missing or a list."""
        value = self.values.get(f"{self.architecture}.{name}", default)
        return value if isinstance(value, int) else default

    @property
    def context_length(self) -> int:
        """Tokens that the model was trained for."""
        return self.number("context_length", 2048)

    @property
    def cache_bytes(self) -> int:
        """Bytes of key-value cache that one token takes in 16 bits, at most (sliding windows take less)."""
        heads = self.number("attention.head_count", 32)
        width = self.number("embedding_length", 4096) // max(heads, 1)
        per_head = self.number("attention.key_length", width) + self.number("attention.value_length", width)
        return 2 * self.number("block_count", 32) * self.number("attention.head_count_kv", heads) * per_head


def read_header(path: Path) -> GgufHeader:
    """Read and check a GGUF file's header. Raises ValueError, with the remedy, for a file that is not there, is no
    GGUF or is cut off."""
    try:
        with open(path, "rb") as file:
            return _Reader(path, file).header()
    except FileNotFoundError:
        raise ValueError(f"GGUF file '{path}' does not exist") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = path.stat().st_size

    def header(self) -> GgufHeader:
        if self._file.read(4) != _MAGIC:
            raise ValueError(f"{self._path} is no GGUF file (it does not begin with 'GGUF')")
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"{self._path} is GGUF version {version}, not 2 or 3; convert the model anew")
        num_tensors, num_values = self._number("<Q"), self._number("<Q")
        values: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(num_values):
            name, kind = self._string(), self._number("<I")
            if kind == _ARRAY:
                lengths[name] = self._skip_array()
            else:
                values[name] = self._value(kind)
        return GgufHeader(self._path, values, lengths, self._tensors(num_tensors, values.get("general.alignment", 32)))

    def _tensors(self, num_tensors: int, alignment: int) -> dict[str, int]:
        """Elements of each. The last tensor must begin within the file: a download that broke off is smaller."""
        tensors = {}
        farthest = 0
        for _ in range(num_tensors):
            name = self._string()
            if (num_dimensions := self._number("<I")) > _MOST_DIMENSIONS:
                raise self._cut_off()
            tensors[name] = math.prod(self._number("<Q") for _ in range(num_dimensions))
            self._read(4)
            farthest = max(farthest, self._number("<Q"))
        start = -(-self._file.tell() // alignment) * alignment
        if num_tensors and start + farthest >= self._size:
            raise self._cut_off()
        return tensors

    def _read(self, size: int) -> bytes:
        if size > _LONGEST or len(data := self._file.read(size)) < size:
            raise self._cut_off()
        return data

    def _cut_off(self) -> ValueError:
        return ValueError(f"{self._path} is damaged or cut off ({self._size} bytes); download or convert it anew")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._read(struct.calcsize(form)))[0]

    def _string(self) -> str:
        return self._read(self._number("<Q")).decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise self._cut_off()
        return self._number(_SCALARS[kind])

    def _skip_array(self) -> int:
        kind, length = self._number("<I"), int(self._number("<Q"))
        if length > self._size:
            raise self._cut_off()
        if kind in _SCALARS:
            self._read(struct.calcsize(_SCALARS[kind]) * length)
            return length
        skip: Callable[[], object] = self._skip_array if kind == _ARRAY else self._string
        for _ in range(length):
            skip()
        return length


def find_gguf(folder: Path) -> Path | None:
    """The GGUF file in `folder` that an engine should take, or None where there is none.

    A file's name tells how it is quantised, as is the custom (`model.Q8_0.gguf`).
    """
    files = sorted(file for file in folder.glob("*.gguf") if not file.name.startswith((".", "mmproj")))
    return min(files, key=_rank) if files else None


def _rank(file: Path) -> int:
    name = file.name.lower()
    return next((place for place, kind in enumerate(_PREFERENCE) if kind in name), len(_PREFERENCE))
