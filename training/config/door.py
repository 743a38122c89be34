"""From a command line to a checked `Config`, through Hydra.

Names, types and choices are checked before anything is loaded; an unknown key is answered with the nearest valid one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from common.files import read_text
from training.config.schema import Config
from training.methods import METHODS, method_config

# What a bare `model=X` is short for. `method=X` is a Hydra group and chooses a dataclass.
SHORT = {"model": "model.name", "data": "data.train", "peft": "peft.name", "distributed": "distributed.mode"}
PRIMARY = "parley"
# Keys of paths, names and mixtures.
_VERBATIM = (
    "model.name model.tokenizer data.train data.eval data.cache trainer.output trainer.resume trainer.upload"
    " distributed.deepspeed method.reward"
)
VERBATIM = frozenset(_VERBATIM.split())
# Sections that take any key: a library's own settings.
OPEN = (
    "model.config",
    "data.columns",
    "peft.options",
    "trainer.schedule_options",
    "distributed.fsdp",
    "method.labels",
    "method.coeffs",
    "method.settings",
)

# What these learn of a text is not a reply.
_WITHOUT_REPLIES = {"ntp": "learns running text", "prefix_lm": "learns all that follows a random beginning"}


def register() -> None:
    """Tell Hydra of the schema, and of each method's dataclass."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name=PRIMARY, node=Config)
    for name in METHODS:
        store.store(group="method", name=name, node=method_config(name))


def spell_out(overrides: Sequence[str]) -> list[str]:
    """`model=X` -> `model.name=X`, and `method=sft` -> `+method=sft`, which chooses the dataclass of a method."""
    spelled = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if key == "method" and separator:
            check_method(value)
            spelled.append(f"+method={value}")
        else:
            key = SHORT.get(key, key)
            may_be_new = "++" if key.startswith(OPEN) else ""
            spelled.append(f"{may_be_new}{key}{separator}{quoted(value) if key in VERBATIM else value}")
    return spelled


def quoted(value: str) -> str:
    """A value that is text, whatever Hydra's grammar would make of its commas, colons and blanks."""
    if not value or value == "null" or value[0] in "[{'\"":
        return value
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", value) + "'"


def check_method(name: str) -> None:
    """ValueError, with the choices, for a name that is no method."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown method '{name}'{meant} The methods are: {', '.join(METHODS)}")


def compose(overrides: Sequence[str], file: Path | None = None) -> Config:
    """The checked configuration for `overrides` (`key=value`, in Hydra's grammar) over a YAML `file`, as dataclasses.

    Raises ValueError for a missing or unknown method, unknown keys, wrong types and impossible values.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()
    try:
        with initialize(version_base="1.3", config_path=None):
            root = PRIMARY if file is None else _register_file(file, overrides)
            composed = hydra_compose(root, overrides=spell_out(overrides))
            config: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]  # the root is a Config
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explained(error, overrides)) from None
    check(config)
    return config


def _register_file(path: Path, overrides: Sequence[str]) -> str:
    """Tell Hydra of a YAML file that is laid over the schema; the name it has there."""
    import yaml
    from hydra.core.config_store import ConfigStore

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a configuration is a mapping of keys to values")
    for short, key in SHORT.items():
        if short in content and not isinstance(content[short], dict):
            section, _, name = key.partition(".")
            content[section] = {name: content[short]}
    defaults: list[Any] = [PRIMARY]
    method = content.pop("method", None)
    chosen = method.get("name") if isinstance(method, dict) else method
    if chosen is not None:
        check_method(chosen)
        if not any(each.startswith("method=") for each in overrides):
            defaults.append({"method": chosen})
            if isinstance(method, dict):
                content["method"] = method
    ConfigStore.instance().store(name="file", node={"defaults": [*defaults, "_self_"], **content})
    return "file"


def explained(error: Exception, overrides: Sequence[str]) -> str:
    """One line for an error of Hydra or OmegaConf: which key, and the nearest valid one."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)  # type: ignore[arg-type]
    text = " ".join(str(each) for each in causes)
    method = next((each.partition("=")[2] for each in overrides if each.startswith("method=")), None)
    if unknown := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text):
        wrong = unknown[1] or unknown[2]
        near = difflib.get_close_matches(wrong, keys(method), n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else "see docs/training-reference.md for all of them"
        return f"unknown key '{wrong}'; {remedy}"
    deepest = str(causes[-1]).strip().splitlines()
    place = re.search(r"full_key: (\S+)", text)
    return f"{place[1]}: {deepest[0]}" if place else deepest[0]


def keys(method: str | None = None) -> list[str]:
    """All valid keys, as they are typed."""
    found = ["method", *SHORT]
    sections: list[tuple[str, Any]] = [
        (name, hint) for name, hint in get_type_hints(Config).items() if is_dataclass(hint)
    ]
    if method in METHODS:
        sections.append(("method", method_config(method)))
    for name, section in sections:
        found += [f"{name}.{each.name}" for each in fields(section)]
    return found


def check(config: Config) -> None:
    """ValueError for what no type can say: ranges, and settings that exclude each other."""
    if config.method is None:
        raise ValueError(f"method= is missing; choose one of: {', '.join(METHODS)}")
    if not config.model.name:
        raise ValueError("model= is missing; give a known name such as smollm2-135m, a directory or a Hugging Face id")
    if not config.data.train:
        raise ValueError("data= is missing; give a file, a folder, a URL, or several as path:weight,path:weight")
    trainer, data = config.trainer, config.data
    at_least_1 = {
        "trainer.batch_size": trainer.batch_size,
        "trainer.accumulate": trainer.accumulate,
        "trainer.log_every": trainer.log_every,
        "trainer.keep_checkpoints": trainer.keep_checkpoints,
        "trainer.max_steps": trainer.max_steps,
        "trainer.eval_every": trainer.eval_every,
        "trainer.save_every": trainer.save_every,
        "trainer.early_stop": trainer.early_stop,
        "data.max_length": data.max_length,
        "peft.r": config.peft.r,
    }
    for key, count in at_least_1.items():
        if count is not None and count < 1:
            raise ValueError(f"{key}={count} must be at least 1")
    not_negative = {
        "trainer.lr": trainer.lr,
        "trainer.warmup": trainer.warmup,
        "trainer.weight_decay": trainer.weight_decay,
        "trainer.max_grad_norm": trainer.max_grad_norm,
        "trainer.samples": trainer.samples,
        "peft.dropout": config.peft.dropout,
    }
    for key, number in not_negative.items():
        if number is not None and not 0 <= number < float("inf"):
            raise ValueError(f"{key}={number} must be 0 or more")
    if trainer.max_steps is None and not 0 < trainer.epochs < float("inf"):
        raise ValueError(f"trainer.epochs={trainer.epochs} must be more than 0")
    if not 0 <= data.eval_fraction < 1:
        raise ValueError(f"data.eval_fraction={data.eval_fraction} must be at least 0 and less than 1")
    if data.train_on.value == "last" and config.method.name in _WITHOUT_REPLIES:
        raise ValueError(
            f"data.train_on=last learns the last reply of a conversation, and method={config.method.name} "
            f"{_WITHOUT_REPLIES[config.method.name]}; leave it out, or use method=sft"
        )
    if data.eval and data.eval_fraction:
        raise ValueError("data.eval and data.eval_fraction are two ways to say the same; give one")
    if config.model.from_scratch and config.peft.name:
        raise ValueError("model.from_scratch and an adapter exclude each other: random weights must all be trained")
    if config.model.config and not config.model.from_scratch:
        raise ValueError("model.config changes the shape of a model, which only model.from_scratch=true allows")
    if config.model.quantize.value != "none" and not config.peft.name:
        raise ValueError("model.quantize needs an adapter (peft=lora): quantised weights cannot be trained")
    evaluates = bool(data.eval or data.eval_fraction)
    if not evaluates and (trainer.keep.value == "best" or trainer.early_stop or trainer.eval_every):
        raise ValueError(
            "trainer.keep=best, early_stop and eval_every need evaluation data; set data.eval or data.eval_fraction"
        )
    if config.distributed.fsdp and config.distributed.deepspeed:
        raise ValueError("distributed.fsdp and distributed.deepspeed exclude each other; give one")
