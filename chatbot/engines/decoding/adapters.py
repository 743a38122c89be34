"""LoRA adapters on a loaded model: several at once, one or none in use (peft does the work)."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.models import loading_errors, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: str) -> bool:
    """Whether a directory holds an adapter and no model."""
    place = Path(folder)
    return (place / _CONFIG).is_file() and not (place / "config.json").is_file()


def base_of(folder: str) -> str:
    """The model that an adapter was trained on, as its configuration names it. ValueError where it does not."""
    try:
        base = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        raise ValueError(f"adapter '{folder}' has no valid {_CONFIG}") from None
    if not isinstance(base, str) or not base:
        raise ValueError(f"adapter '{folder}' does not say which model it is for; load that, and give --adapter")
    return base


class Adapters:
    """The adapters of one model, by name: the last part of their path."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._keys: dict[str, str] = {}  # name -> peft's name, which must not hold a full stop

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were loaded."""
        return tuple(self._keys)

    def load(self, adapter: str) -> str:
        """Load one; its name. ValueError for what is no adapter, does not fit the model, or is called like another."""
        place = Path(resolve_model(adapter))
        if not (place / _CONFIG).is_file():
            raise ValueError(f"'{adapter}' is no adapter: it has no {_CONFIG}")
        if not (place / _WEIGHTS).is_file():
            raise ValueError(f"adapter '{adapter}' has no {_WEIGHTS}; save it in that format")
        if importlib.util.find_spec("peft") is None:
            raise ValueError("adapters need peft; install it with: pip install 'parley[lora]'")
        name = place.resolve().name
        if name in self._keys:
            raise ValueError(f"two adapters are called '{name}'; rename the directory of one")
        key = f"adapter{len(self._keys)}"
        with loading_errors(adapter), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")  # several are meant
            report = self._model.load_adapter(
                str(place), adapter_name=key, use_safetensors=True, adapter_kwargs={"local_files_only": True}
            )
        # peft starts from weights that do nothing, or from chance: an adapter for another model must not pass for one.
        missing = sorted(each for each in report.missing_keys if key in each)
        if wrong := [*missing, *sorted(report.unexpected_keys)]:
            raise ValueError(f"adapter '{adapter}' does not fit this model ({wrong[0]}, ...)")
        self._keys[name] = key
        return name

    def check(self, name: str | None) -> None:
        """ValueError, with the choices, for a name that is not loaded."""
        if name is not None and name not in self._keys:
            known = ", ".join(self._keys) or "none; give --adapter when loading"
            raise ValueError(f"unknown adapter '{name}'; loaded: {known}")

    def use(self, name: str | None) -> None:
        """Switch the model to one of them, or to none."""
        if name is not None:
            self._model.enable_adapters()
            self._model.set_adapter(self._keys[name])
        elif self._keys:
            self._model.disable_adapters()
