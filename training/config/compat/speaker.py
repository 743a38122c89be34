"""Speaker's keys, for `python training/main.py train_mode=sft train_data=pairs.json pretrained_path=MODEL ...`.

`train_mode` or `eval_mode` says that a command, or a YAML file, is in Speaker's language. KEYS is the whole of it, with
Speaker's defaults; docs/migrating.md tells what differs.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import expand, read_text
from training.config.door import keys as our_keys

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Key:
    """`kind`: the type, or the choices; `default` is Speaker's; `ours`: the key of ours that means the same."""

    kind: type | tuple[str, ...]
    default: Value = None
    ours: str | None = None


KEYS = {
    "train_mode": Key(("ntp", "sft"), ours="method"),
    "train_data": Key(str, ours="data"),
    "pretrained_path": Key(str, ours="model"),
    "save_folder": Key(str, ours="trainer.output"),
    "save_freq": Key(int, 1000, "trainer.save_every"),
    "length": Key(int, 1_000_000, "method.length"),
    "context_window": Key(int, 512, "data.max_length"),
    "epochs": Key(int, 1000, "trainer.epochs"),
    "lr": Key(float, 0.001, "trainer.lr"),
    "batch_size": Key(int, 512, "trainer.batch_size"),
    "precision": Key(("bfloat16", "float16", "float32"), ours="trainer.precision"),
    "device": Key(str, ours="model.device"),
    "use_auth_token": Key(str),
    "peft": Key(("lora",), ours="peft"),
    "lora": Key(("train", "load")),
    "r": Key(int, 16, "peft.r"),
    "alpha": Key(float, 16.0, "peft.alpha"),
    "dropout": Key(float, 0.1, "peft.dropout"),
    "eval_mode": Key(("complete", "chat")),
    "eval_data": Key(str),
    "few_shot_pairs": Key(str),
    "save_conversation_pairs": Key(str),
    "system": Key(str),
    "stream": Key(bool, False),
    "temperature": Key(float),
}
MODES = ("train_mode", "eval_mode")
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "full"}
_OF_EVALUATION = (
    *("eval_data", "few_shot_pairs", "save_conversation_pairs", "system", "stream", "temperature"),
    *("context_window", "device", "precision"),
)
# What Speaker does without being asked: one rate from the first step to the last, and no checkpoint deleted.
_ALWAYS = (
    *("trainer.schedule=constant", "trainer.warmup=0", "trainer.folder_names=epoch_step"),
    "trainer.keep_checkpoints=1000000",
)
_LARGEST_BATCH = 8  # examples at once; larger batches of Speaker's are summed from smaller ones


@dataclass(frozen=True)
class Request:
    """What a command asks for. `overrides` of ours over a `file` (None: no training); `evaluation`: the arguments of
    `parley.speaker` (None: none); `model`: what is tried where nothing is trained; `told`: what Speaker's keys mean."""

    overrides: list[str] | None
    file: Path | None = None
    evaluation: dict[str, Any] | None = None
    model: str = ""
    told: str = ""


def translated(overrides: Sequence[str], file: Path | None = None) -> Request:
    """What a command asks for; one in our own language comes back as it is.

    A token that Speaker's keys name goes into HF_TOKEN of this process, and nowhere else. Raises ValueError for unknown
    keys, wrong types, missing keys, and keys of both languages in one command.
    """
    given = dict(_given(overrides))
    in_file = _in_file(file) if file is not None else {}
    if not any(mode in given or mode in in_file for mode in MODES):
        return Request(list(overrides), file)
    values = _checked(in_file | given)
    _put_token(values.pop("use_auth_token"))
    if not (values["train_mode"] or values["eval_mode"]):
        raise ValueError("nothing to do; give train_mode=ntp or sft, eval_mode=complete or chat, or both")
    if not values["pretrained_path"]:
        raise ValueError("pretrained_path= is missing; give a model directory or a Hugging Face id")
    ours = _training(values) if values["train_mode"] else None
    evaluation = None
    if values["eval_mode"]:
        evaluation = {"mode": values["eval_mode"]} | {name: values[name] for name in _OF_EVALUATION}
    told = f"in Parley's own keys: {shlex.join(ours)}" if ours else ""
    return Request(ours, None, evaluation, values["pretrained_path"], told)


def _given(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [override.partition("=") for override in overrides]
    return [(_plain(key), value) for key, _, value in pairs]


def _plain(key: str) -> str:
    """`peft.lora_alpha`, as it is called in Speaker's group `peft=lora`, is `alpha`."""
    short = key.removeprefix("peft.").removeprefix("lora_")
    return short if short in ("r", "alpha", "dropout") else key


def _in_file(path: Path) -> dict[str, Any]:
    """The keys of a YAML file; those of its `peft` section stand beside the others."""
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError:
        return {}  # the door says what is wrong with it
    if not isinstance(content, dict):
        return {}
    if isinstance(section := content.get("peft"), dict):
        content = content | {"peft": "lora"} | section
    return {_plain(str(key)): value for key, value in content.items()}


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of KEYS with its value, given or by default."""
    for name in given:
        if name not in KEYS:
            raise ValueError(_unknown(name))
    values = {name: _value(name, given[name]) if name in given else key.default for name, key in KEYS.items()}
    return {name: KEYS[name].default if value is None else value for name, value in values.items()}


def _unknown(name: str) -> str:
    if name in our_keys() or name.partition(".")[0] in ("method", "trainer", "model", "data", "distributed"):
        theirs = next((key for key, each in KEYS.items() if each.ours == name), None)
        instead = f"say {theirs}" if theirs else "leave it out"
        return (
            f"'{name}' is a key of Parley, and {' and '.join(MODES)} are Speaker's: a command has those of one alone; "
            f"{instead}, or say it all in Parley's (docs/migrating.md)"
        )
    near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"Speaker's are: {', '.join(KEYS)}"
    return f"unknown key '{name}'; {remedy}"


def _value(name: str, given: Any) -> Value:
    """A value of its key's type, from a command line's text or a YAML file's value."""
    kind = KEYS[name].kind
    text = given if isinstance(given, str) else "null" if given is None else str(given)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # as Hydra wants texts with commas and blanks
        text = text[1:-1].replace(f"\\{given[0]}", given[0])
    if text in ("null", ""):
        return None
    if isinstance(kind, tuple):
        if text not in kind:
            raise ValueError(f"{name}={text} is unknown; choose one of: {', '.join(kind)}, null")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}={text} must be true or false")
        return text.lower() == "true"
    return text if kind is str else _number(name, text, kind)


def _number(name: str, text: str, kind: type) -> int | float:
    try:
        number: int | float = kind(text)
    except ValueError:
        raise ValueError(f"{name}={text} must be a {'whole ' if kind is int else ''}number") from None
    least = 1 if kind is int else 0
    if not least <= number < float("inf"):
        raise ValueError(f"{name}={text} must be {least} or more")
    return number


def _put_token(token: str | None) -> None:
    """Where huggingface_hub looks for it. Speaker itself looked into HF_AUTH_TOKEN."""
    if token := token or (os.environ.get("HF_AUTH_TOKEN") if "HF_TOKEN" not in os.environ else None):
        os.environ["HF_TOKEN"] = token


def _training(values: Mapping[str, Any]) -> list[str]:
    """The same in our keys."""
    if not values["train_data"]:
        raise ValueError("train_data= is missing; give a file of text (ntp) or of [prompt, response] pairs (sft)")
    ours = {key.ours: values[name] for name, key in KEYS.items() if key.ours and values[name] is not None}
    if values["train_mode"] == "ntp":
        ours["method.sampling"] = "windows"
    else:
        del ours["method.length"]
    ours["trainer.batch_size"] = max(n for n in range(1, _LARGEST_BATCH + 1) if values["batch_size"] % n == 0)
    ours["trainer.accumulate"] = values["batch_size"] // ours["trainer.batch_size"]
    if _wants_adapter(values):
        ours["peft"] = "lora"
    else:
        for name in ("peft.r", "peft.alpha", "peft.dropout"):
            del ours[name]
    precision = values["precision"] or _usual_precision(values["device"])
    ours["trainer.precision"] = _PRECISIONS[precision]
    return [*(f"{key}={value}" for key, value in ours.items()), *_ALWAYS]


def _wants_adapter(values: Mapping[str, Any]) -> bool:
    if values["lora"] == "load" and not (expand(values["pretrained_path"]) / "adapter_config.json").is_file():
        raise ValueError(
            f"lora=load: {values['pretrained_path']} is no directory with adapter_config.json; say lora=train to begin "
            "an adapter"
        )
    return bool(values["lora"] or values["peft"])


def _usual_precision(device: str | None) -> str:
    """bfloat16 as in Speaker, but on a CPU float32, which is many times faster there."""
    from common.devices import choose_device

    return "float32" if device == "cpu" or choose_device(device).type == "cpu" else "bfloat16"
