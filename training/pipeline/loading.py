"""Single tensors out of a model directory's safetensors: a stage reads its own and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.pipeline.stages import Stage, global_name, stored_names

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def reader(folder: Path, stage: Stage) -> Callable[[str], torch.Tensor]:
    """A function from the global name of one of the stage's tensors to the tensor, on the CPU.

    Files may call tensors otherwise, lack the name of the model before them, or hold experts one by one: what
    transformers knows of that is applied. Raises ValueError for a directory without safetensors; the function, for a
    missing tensor.
    """
    from safetensors import SafetensorError, safe_open

    files, model = _files(folder), stage.model
    sources, converters = _sources(files, model, [global_name(stage, name) for name in stored_names(stage)])

    def stored(key: str) -> torch.Tensor:
        try:
            with safe_open(files[key], "pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{files[key]} cannot be read: {error}") from None
        return tensor

    def read(name: str) -> torch.Tensor:
        if name not in sources:
            raise ValueError(f"{folder} has no tensor '{name}'")
        (key, pattern), *others = sources[name]
        if pattern is None:
            return stored(key)
        converter = deepcopy(converters[pattern])
        for each, own in ((key, pattern), *others):
            converter.add_tensor(name, each, own, stored(each))
        made: Any = converter.convert(name, model=model, config=model.config)[name]
        tensor: torch.Tensor = made[0] if isinstance(made, list) else made
        return tensor

    return read


def _files(folder: Path) -> dict[str, Path]:
    """Which file each tensor is in."""
    from safetensors import SafetensorError, safe_open

    try:
        if (folder / INDEX).is_file():
            stored = json.loads((folder / INDEX).read_text())["weight_map"]
            return {name: folder / file for name, file in stored.items()}
        with safe_open(folder / SINGLE, "pt") as opened:
            return dict.fromkeys(opened.keys(), folder / SINGLE)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} has no readable {SINGLE} or {INDEX} ({error}); stages are loaded from safetensors alone"
        ) from None


Sources = dict[str, list[tuple[str, str | None]]]


def _sources(files: Collection[str], model: Any, names: Collection[str]) -> tuple[Sources, dict[str, Any]]:
    """(what each of `names` is made of: tensors in files, each with the pattern of the converter it goes through or
    None, those converters by their patterns)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    known = get_model_conversion_mapping(model)
    renamings = [each for each in known if isinstance(each, WeightRenaming)]
    converters = [each for each in known if isinstance(each, WeightConverter)]
    wanted, sources = dict.fromkeys(names, True), Sources()
    for key in sorted(files, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if key in wanted and name not in wanted:
            name, pattern = key, None
        if name in wanted:
            sources.setdefault(name, []).append((key, pattern))
    return sources, {pattern: each for each in converters for pattern in each.source_patterns}
