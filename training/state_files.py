"""Nested states (optimizer, random generators) on disk as safetensors and JSON: exact, and nothing in them can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.files import read_json


def save_tree(folder: Path, name: str, tree: Any) -> None:
    """Write `tree` (dicts, lists, tuples, tensors, numbers, text, None) as `name.json` and `name.safetensors`."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()

    def described(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            key, whole = str(len(tensors)), node.detach().cpu().contiguous()
            memory = whole.untyped_storage().data_ptr()
            # Files have no shared tensors. Only those are copied: states may be as large as what memory is left.
            tensors[key] = whole.clone() if memory in seen else whole
            seen.add(memory)
            return {"tensor": key}
        if isinstance(node, dict):
            return {"dict": [[described(key), described(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {type(node).__name__: [described(each) for each in node]}
        if node is None or isinstance(node, bool | int | float | str):
            return {"value": node}
        raise TypeError(f"a state holds a {type(node).__name__}, which cannot be written")

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(described(tree))
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(text, "utf-8")


def load_tree(folder: Path, name: str) -> Any:
    """What `save_tree` wrote, tensors on the CPU. Raises ValueError for a file that is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / name}.safetensors cannot be read: {error}") from None

    def restored(node: dict[str, Any]) -> Any:
        ((kind, content),) = node.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {restored(key): restored(value) for key, value in content}
        if kind in ("list", "tuple"):
            items = [restored(each) for each in content]
            return items if kind == "list" else tuple(items)
        return content

    try:
        return restored(read_json(folder / f"{name}.json"))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / name}.json is damaged ({error})") from None


def random_state() -> dict[str, Any]:
    """The states of all random generators of this process."""
    import random

    import numpy as np
    import torch

    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, *rest = legacy
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    import random

    import numpy as np
    import torch

    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
