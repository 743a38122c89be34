"""What torch has pickled, read so that nothing in it can run: the only file here that reads pickles.

`torch.load` with `weights_only` makes nothing but tensors and plain values. A checkpoint of
torch.distributed.checkpoint (DCP, which FSDP writes) is a folder of `.distcp` files, in which chunks of tensors stand
one after another as `torch.save` writes them, and a `.metadata` that says where. That is an ordinary pickle: of the
classes it may name, which are DCP's, only records without behaviour are made, and any other is refused.
"""

from __future__ import annotations

import io
import pickle  # what it may make is listed below
import zipfile
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.stored_tensors import Stored

if TYPE_CHECKING:
    import torch

METADATA = ".metadata"
_PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}
_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
}  # fmt: skip


def load(file: Path) -> Any:
    """What `torch.save` wrote: tensors, which are mapped and not read, and plain values.

    Raises ValueError for a file whose bytes have changed, or that holds anything else.
    """
    _check_sums(file, str(file))
    return _load(file, str(file), mmap=True)


def load_tensor(file: Path, key: str) -> torch.Tensor:
    """A tensor of a dictionary that `load` has had before."""
    tensor: torch.Tensor = _load(file, str(file), mmap=True)[key]
    return tensor


def stored_in_dcp(folder: Path) -> tuple[dict[str, Stored], int]:
    """The tensors of the model in a DCP folder, by their names in the model, and how many other entries it has.

    The model is what was saved by itself, or as "model" beside other things. Raises ValueError for what cannot be read
    or is incomplete.
    """
    import torch

    metadata = _read_metadata(folder / METADATA)
    found: dict[str, Stored] = {}
    others = 0
    try:
        chunks: dict[str, list[tuple[tuple[int, ...], Any]]] = {}
        for index, place in metadata.storage_data.items():
            chunks.setdefault(index.fqn, []).append((getattr(index, "offset", ()) or (), place))
        for key, entry in metadata.state_dict_metadata.items():
            *parents, name = (metadata.planner_data or {}).get(key, (key,))
            if parents not in ([], ["model"]) or not hasattr(entry, "properties"):
                others += 1
                continue
            sizes = {tuple(each.offsets): tuple(each.sizes) for each in entry.chunks}
            shape, dtype = tuple(entry.size), entry.properties.state[0]
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"'{key}' has no type of numbers")
            parts = [(offset, sizes[tuple(offset)], _part(folder, place)) for offset, place in chunks.get(key, [])]
            if sum(prod(size) for _, size, _ in parts) != prod(shape):
                raise ValueError(f"{folder} has only parts of '{name}': it was not written to its end")
            found[str(name)] = Stored(shape, dtype, partial(_assemble, str(name), shape, dtype, parts))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / METADATA} is no list of a checkpoint's contents ({error})") from None
    return found, others


def _part(folder: Path, place: Any) -> tuple[Path, int, int]:
    """(file, offset, length) in bytes."""
    if Path(place.relative_path).name != place.relative_path:
        raise ValueError(f"{folder / METADATA} names a file outside of its folder: {place.relative_path}")
    if getattr(place, "transform_descriptors", None):
        raise ValueError(f"{folder} is compressed or encrypted ({place.transform_descriptors}), which is not read")
    return folder / place.relative_path, int(place.offset), int(place.length)


def _assemble(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    parts: list[tuple[tuple[int, ...], tuple[int, ...], tuple[Path, int, int]]],
) -> torch.Tensor:
    """A whole tensor from its chunks; numbers that no chunk has are NaN."""
    import torch

    whole = torch.full(shape, float("nan") if dtype.is_floating_point else 0, dtype=dtype)
    for offsets, sizes, (file, start, length) in parts:
        what = f"{file} ('{name}')"
        try:
            if not 0 <= start <= start + length <= file.stat().st_size:
                raise OSError(f"it has no {length} bytes at {start}")
            with open(file, "rb") as opened:
                opened.seek(start)
                content = opened.read(length)
        except OSError as error:
            raise ValueError(f"{what} cannot be read: {error}") from None
        _check_sums(io.BytesIO(content), what)
        chunk = _load(io.BytesIO(content), what, mmap=False)
        if not isinstance(chunk, torch.Tensor) or tuple(chunk.shape) != sizes or chunk.dtype != dtype:
            raise ValueError(f"{file} has another tensor than '{name}' at byte {start}")
        place = tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
        if tuple(whole[place].shape) != sizes:
            raise ValueError(f"{file} has a part of '{name}' that lies outside of it")
        whole[place] = chunk
    return whole


def _check_sums(source: Path | io.BytesIO, what: str) -> None:
    """Compare the sums that `torch.save` wrote: torch itself does not look at them."""
    try:
        with zipfile.ZipFile(source) as archive:
            changed = archive.testzip()
    except Exception as error:  # a damaged archive can fail in any way
        raise ValueError(f"{what} cannot be read: {_reason(error)}") from None
    if changed:
        raise ValueError(f"{what} is damaged: {changed} has another sum than when it was written")


def _load(source: Path | io.BytesIO, what: str, mmap: bool) -> Any:
    import torch

    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise ValueError(f"{what} is damaged, or holds something else than tensors and plain values") from None
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{what} cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


class _Record:
    """Stands for an object of a class that is not made: its arguments, and its attributes or state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class _Reader(pickle._Unpickler):
    """Makes records of DCP's classes, tuples of torch.Size, torch's own types of numbers, and nothing else.

    The one in C takes as much memory as a damaged pickle asks for; this one is written in Python.
    """

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if name in _RECORDS.get(module, ()):
            return type(name, (_Record,), {})
        if module == "torch" and name == "Size":
            return tuple
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place there")


def _read_metadata(file: Path) -> Any:
    try:
        return _Reader(io.BytesIO(file.read_bytes())).load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{file} cannot be read: {_reason(error)}") from None
