"""The configuration of the model that a run names, without its weights and without a network."""

from __future__ import annotations

import json
from pathlib import Path

from common.files import expand, read_json
from common.models import HUB_MODELS, is_prepared, loading_errors, models_folder, resolve_model
from training.estimate.known import known_config


def model_config(name: str) -> str:
    """The config.json of the model that `name` stands for: of a directory (of an adapter's that of its base model), of
    a prepared model, of the hub's cache, or as known.py describes it.

    Raises ValueError where none is at hand.
    """
    folder = expand(name)
    if is_prepared(name):
        folder = models_folder() / name
    if folder.is_dir():
        adapter = folder / "adapter_config.json"
        if adapter.is_file() and (base := read_json(adapter).get("base_model_name_or_path")):
            return model_config(str(base))
        return _read(name, folder)
    known = known_config(name)
    if "/" in name and not folder.is_absolute() and (cached := _cached(name)) is not None:
        return _read(name, cached)
    if known is not None:
        return known
    if folder.is_absolute() or name.startswith(".") or not name.strip() or "/" not in name:
        resolve_model(name)  # says what is wrong with it
    raise ValueError(
        f"the configuration of model '{name}' is not here; prepare it with: python tools/prepare_model.py {name}; or "
        f"name a directory with config.json, or one of: {', '.join(HUB_MODELS)}"
    )


def _read(name: str, folder: Path) -> str:
    from transformers import AutoConfig

    with loading_errors(name):
        text: str = AutoConfig.from_pretrained(folder).to_json_string(use_diff=False)
    return text


def _cached(name: str) -> Path | None:
    """The directory in the hub's cache that has the model's configuration."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def describe(config: str) -> str:
    """The kind of a model, as one says it: `llama, 30 layers of width 576, 49,152 tokens`."""
    settings = json.loads(config)
    return (
        f"{settings['model_type']}, {settings['num_hidden_layers']} layers of width {settings['hidden_size']:,}, "
        f"a vocabulary of {settings['vocab_size']:,}"
    )
