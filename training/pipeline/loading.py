"""Single tensors out of a model directory's safetensors: a stage reads its own and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def reader(folder: Path) -> Callable[[str], torch.Tensor]:
    """A function from a tensor's name to the tensor, on the CPU.

    Some directories hold a model without its head, and names without the prefix that the head's model gives them:
    both are found. Raises ValueError for a directory without safetensors; the function, for a missing tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if (folder / INDEX).is_file():
            files = {
                name: folder / file for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items()
            }
        else:
            with safe_open(folder / SINGLE, "pt") as opened:
                files = dict.fromkeys(opened.keys(), folder / SINGLE)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} has no readable {SINGLE} or {INDEX} ({error}); stages are loaded from safetensors alone"
        ) from None

    def read(name: str) -> torch.Tensor:
        found = next((each for each in (name, name.partition(".")[2]) if each in files), None)
        if found is None:
            raise ValueError(f"{folder} has no tensor '{name}'")
        try:
            with safe_open(files[found], "pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(found)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{files[found]} cannot be read: {error}") from None
        return tensor

    return read
