"""Tensors in files, known by name, shape and type before a number of them is read; those of a model directory.

A reader of another format gives the same: a dictionary of `Stored`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import read_json
from training.pipeline.loading import INDEX, SINGLE

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. `read` reads it anew each time and keeps nothing; it raises ValueError where it cannot."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def stored_in(folder: Path) -> dict[str, Stored]:
    """The tensors of a model directory by name.

    Raises ValueError where its safetensors cannot be read, are not what its index says, or hold a name twice.
    """
    from safetensors import SafetensorError, safe_open

    listed = _listed(folder)
    found: dict[str, Stored] = {}
    places: dict[str, str] = {}
    for file in sorted(set(listed.values())) if listed else [SINGLE]:
        try:
            with safe_open(folder / file, "pt") as opened:
                # Mapped, not read.
                held = {name: opened.get_tensor(name) for name in list(opened.keys())}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / file} cannot be read: {error}") from None
        if twice := sorted(held.keys() & found.keys()):
            raise ValueError(f"{names_of(twice)}: in {file} and in {places[twice[0]]} of {folder}")
        for name, tensor in held.items():
            found[name] = Stored(tuple(tensor.shape), tensor.dtype, partial(_read, folder / file, name))
            places[name] = file
    if listed and (wrong := sorted(name for name in {*places, *listed} if places.get(name) != listed.get(name))):
        raise ValueError(f"{folder}: {INDEX} and the files differ over where {names_of(wrong)} is")
    return found


def names_of(names: Collection[str]) -> str:
    """The first few of some names, and how many more there are."""
    shown, more = ", ".join(list(names)[:4]), len(names) - 4
    return f"{shown} and {more} more" if more > 0 else shown


def _listed(folder: Path) -> dict[str, str]:
    """Name -> file as the index has it; empty for a model in one file. Raises ValueError for shards besides."""
    shards = {path.name for path in folder.glob("model*.safetensors")}
    if not (folder / INDEX).is_file():
        if strays := sorted(shards - {SINGLE}):
            raise ValueError(f"{folder} has {names_of(strays)} without {INDEX}: a part of the checkpoint is missing")
        return {}
    content = read_json(folder / INDEX)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not (isinstance(listed, dict) and listed and all(Path(str(each)).name == each for each in listed.values())):
        raise ValueError(f"{folder / INDEX} has no list of tensors and their files (weight_map)")
    if strays := sorted(shards - set(listed.values())):
        raise ValueError(f"{folder} has {names_of(strays)}, which {INDEX} does not name: two models in one folder?")
    return listed


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    return tensor
