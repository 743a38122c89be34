"""Which files of a repository make a model, and whether those that came do."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from common.files import parse_json, read_json
from common.models import UNWANTED, WANTED

RECORD = "parley.json"  # of an earlier preparation
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
# What a server that lists nothing is asked for; the shards are named in INDEX.
STANDARD = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
    *(WHOLE, INDEX),
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class PickledError(ValueError):
    """The only weights are pickle."""


def chosen(names: Iterable[str]) -> list[str]:
    """Of all names of a repository those of the model: safetensors, configuration, tokenizer, chat template.

    Of weights in one file and in shards the one file, as transformers does; weights at the top by another name, such as
    those of another precision, are left. Raises PickledError, and ValueError where there is no model.
    """
    every = list(names)
    if "config.json" not in every:
        raise ValueError("there is no config.json, so it is no model of transformers")
    wanted = [name for name in every if _matches(name, WANTED) and not _matches(name, (*UNWANTED, RECORD))]
    weights = [name for name in wanted if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name)]
    if not weights and (bins := [name for name in every if _is_pickle(name)]):
        raise PickledError(f"its weights are only there as pickle ({bins[0]}), which can run code when it is opened")
    if not weights and any(name.lower().endswith(".gguf") for name in every):
        raise ValueError("it has GGUF files only: fetch one, and make a model of it with tools/convert_gguf_to_hf.py")
    if not weights:
        raise ValueError("there are no weights (model.safetensors, or model-00001-of-0000N.safetensors)")
    if WHOLE in weights:
        weights = [WHOLE]
    top = {name for name in wanted if "/" not in name and name.endswith(".safetensors")}
    left = (top - set(weights)) | ({INDEX} if weights == [WHOLE] else set())
    return [name for name in wanted if name not in left]


def shards(index: Any) -> list[str]:
    """The names of the files that an index of weights lists. Raises ValueError where it is none."""
    listed = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(listed, Mapping) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{INDEX} lists no weights")
    return sorted(set(listed.values()))


def parsed_index(content: bytes) -> list[str]:
    """The same of the content of an index."""
    return shards(parse_json(content.decode("utf-8", "replace"), Path(INDEX)))


def check(folder: Path) -> list[str]:
    """Whether the files of a folder are a whole model, without loading it; returns what a person should know of it.

    Raises ValueError, which names the file, where one is missing, cut off, or not what the index says.
    """
    from safetensors import SafetensorError, safe_open

    if not isinstance(read_json(folder / "config.json"), dict):
        raise ValueError("config.json is no JSON object")
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else None
    names = shards(index) if index is not None else [WHOLE]
    found: dict[str, str] = {}
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing, which {INDEX if index is not None else 'a model'} needs")
        try:
            with safe_open(folder / name, framework="numpy") as file:  # reads the head alone, and checks the size
                found |= dict.fromkeys(file.keys(), name)
        except SafetensorError as error:
            raise ValueError(f"{name} is no sound safetensors file ({error})") from None
    lost = [key for key, name in index["weight_map"].items() if found.get(key) != name] if index is not None else []
    if lost:
        raise ValueError(f"{len(lost):,} weights are not where {INDEX} says, such as {lost[0]}")
    return [] if any((folder / name).is_file() for name in _TOKENIZERS) else ["it has no tokenizer: give --tokenizer"]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_pickle(name: str) -> bool:
    return re.fullmatch(r"(pytorch_)?model.*\.(bin|pt|pth)", PurePosixPath(name).name) is not None
