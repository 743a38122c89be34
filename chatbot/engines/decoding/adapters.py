"""Adapters on a loaded model (LoRA and PEFT's other methods): several at once, one or none in use.

Most change layers of the model. Some are virtual tokens that stand before every prompt (prompt tuning and p-tuning: as
embeddings; prefix tuning: as keys and values); these the runner has to put there.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.models import loading_errors, resolve_model

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: str) -> bool:
    """Whether a directory holds an adapter and no model."""
    place = Path(folder)
    return (place / _CONFIG).is_file() and not (place / "config.json").is_file()


def base_of(folder: str) -> str:
    """The model that an adapter was trained on, as its configuration names it. ValueError where it does not, and where
    that model cannot be had."""
    try:
        base = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        raise ValueError(f"adapter '{folder}' has no valid {_CONFIG}") from None
    if not isinstance(base, str) or not base:
        raise ValueError(f"adapter '{folder}' does not say which model it is for; load that, and give --adapter")
    try:
        resolve_model(base)
    except ValueError as error:
        raise ValueError(
            f"adapter '{folder}' is for a model that is not there; load that, and give --adapter: {error}"
        ) from None
    return base


class Adapters:
    """The adapters of one model, by name: the last part of their path.

    Virtual tokens are refused unless the caller says that it puts them before each prompt (`virtual_tokens`).
    """

    def __init__(self, model: PreTrainedModel, virtual_tokens: bool = False) -> None:
        self._model: Any = model
        self._takes_virtual = virtual_tokens
        self._keys: dict[str, str] = {}  # name -> peft's name, which must not hold a full stop
        self._virtual: dict[str, Any] = {}  # name -> what makes its virtual tokens, for those that are such
        self._in_use: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were loaded."""
        return tuple(self._keys)

    @property
    def num_virtual_tokens(self) -> int:
        """The most that one of them puts before a prompt."""
        return max((each.active_peft_config.num_virtual_tokens for each in self._virtual.values()), default=0)

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
        from peft import PeftConfig

        key = f"adapter{len(self._keys)}"
        with loading_errors(adapter), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")  # several are meant
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            config = PeftConfig.from_pretrained(str(place))
            if config.is_prompt_learning:
                self._load_virtual(name, place, key, config)
            else:
                self._load_layers(adapter, place, key)
        self._keys[name] = key
        return name

    def _load_layers(self, adapter: str, place: Path, key: str) -> None:
        report = self._model.load_adapter(
            str(place), adapter_name=key, use_safetensors=True, adapter_kwargs={"local_files_only": True}
        )
        # peft starts from weights that do nothing, or from chance: an adapter for another model must not pass for one.
        missing = sorted(each for each in report.missing_keys if key in each)
        if wrong := [*missing, *sorted(report.unexpected_keys)]:
            raise ValueError(f"adapter '{adapter}' does not fit this model ({wrong[0]}, ...)")

    def _load_virtual(self, name: str, place: Path, key: str, config: Any) -> None:
        from peft import PeftModel, PeftType

        if not self._takes_virtual:
            raise ValueError("its virtual tokens before the prompt work in chat alone; use lora or ia3 here")
        if self._model.config.is_encoder_decoder or config.peft_type == PeftType.MULTITASK_PROMPT_TUNING:
            kind = str(config.peft_type.value).lower()
            raise ValueError(f"{kind} cannot be used in chat with this model; use lora or ia3")
        self._virtual[name] = PeftModel.from_pretrained(self._model, str(place), adapter_name=key, config=config).eval()

    def check(self, name: str | None) -> None:
        """ValueError, with the choices, for a name that is not loaded."""
        if name is not None and name not in self._keys:
            known = ", ".join(self._keys) or "none; give --adapter when loading"
            raise ValueError(f"unknown adapter '{name}'; loaded: {known}")

    def use(self, name: str | None) -> None:
        """Switch the model to one of them, or to none. ValueError for what is not loaded."""
        self.check(name)
        self._in_use = name
        if len(self._keys) == len(self._virtual):
            return  # none changes layers
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        key = None if name is None or name in self._virtual else self._keys[name]
        for module in self._model.modules():
            # transformers' own switch leaves whole modules that an adapter replaces as they were.
            if isinstance(module, BaseTunerLayer):
                has = key is not None
            elif isinstance(module, ModulesToSaveWrapper):
                has = key is not None and key in module.modules_to_save
            else:
                continue
            if has:
                module.set_adapter(key)
            module.enable_adapters(has)

    def virtual_tokens(self) -> torch.Tensor | Cache | None:
        """What the adapter in use puts before a prompt: embeddings (1, V, d), keys and values, or nothing."""
        if self._in_use not in self._virtual:
            return None
        made: torch.Tensor | Cache = self._virtual[self._in_use].get_prompt(batch_size=1)
        return made
