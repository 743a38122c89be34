"""What a sentence encoder's directory says about how its texts are treated, whichever library runs the model.

Reads the layout that sentence-transformers saves (https://sbert.net): modules.json with Transformer, Pooling and
perhaps Normalize; without it, the model is taken as a plain Hugging Face model and its tokens are averaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.files import expand, read_json, sha256_of

_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Recipe:
    """How a model directory wants its texts treated.

    subfolder: where config, weights and tokenizer are. pooling: 'mean' or 'cls'. max_length: in tokens; None for what
    tokenizer and model allow.
    """

    subfolder: str = ""
    pooling: str = "mean"
    max_length: int | None = None
    lower_case: bool = False


def read_recipe(folder: Path) -> Recipe:
    """Read modules.json and what it names. Raises ValueError for anything that is not followed here."""
    if not (folder / "modules.json").is_file():
        return Recipe()
    try:
        listed = read_json(folder / "modules.json")
        modules = {module["type"].rpartition(".")[2]: str(module["path"]) for module in listed}
    except (AttributeError, KeyError, TypeError):
        raise ValueError("its modules.json is not a list of modules, each with type and path") from None
    if unknown := [kind for kind in modules if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ValueError(f"its modules.json asks for '{unknown[0]}'; known: Transformer, Pooling, Normalize")
    if "Transformer" not in modules or "Pooling" not in modules:
        raise ValueError("its modules.json lacks a Transformer or a Pooling module")
    if prompt := _settings(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise ValueError(f"it puts the prompt '{prompt}' before every text, which is not supported")
    transformer = _settings(folder / modules["Transformer"] / "sentence_bert_config.json")
    return Recipe(
        subfolder=modules["Transformer"],
        pooling=_pooling(_settings(folder / modules["Pooling"] / "config.json")),
        max_length=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case", False)),
    )


def stable_name(name: str, folder: Path) -> str:
    """`name`, or the absolute path where it is one: a relative path would mean something else elsewhere."""
    return str(folder.resolve()) if folder == expand(name) else name


def clean(texts: Iterable[str], lower_case: bool) -> list[str]:
    """Texts as a tokenizer is given them: stripped, and lower-cased where asked, as sentence-transformers does.

    Half of a surrogate pair, which no tokenizer takes, becomes a question mark.
    """
    stripped = (text.strip() for text in texts)
    whole = (text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8") for text in stripped)
    return [text.lower() if lower_case else text for text in whole]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model. Raises ValueError where there are none."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(
            f"{missing[0]} is missing; only safetensors weights are loaded, since pickled ones can run code: convert "
            "them with AutoModel.from_pretrained(...).save_pretrained(...)"
        )
    return [folder / name for name in names]


def fingerprint_of(weights: Sequence[Path], recipe: Recipe, max_length: int) -> str:
    """SHA-256 over all that decides the vectors. Of the weights only samples: opening an index must be fast."""
    folder = weights[0].parent
    digest = hashlib.sha256(repr((sorted(asdict(recipe).items()), max_length)).encode())
    tokenizer = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else _VOCABULARIES
    for name in ("config.json", *tokenizer):
        if (folder / name).is_file():
            digest.update(f"{name} {sha256_of(folder / name)}".encode())
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as opened:
            digest.update(opened.read(64 << 10))
            for i in range(16):
                opened.seek(size * i // 16)
                digest.update(opened.read(4 << 10))
    return digest.hexdigest()


def _pooling(settings: dict[str, Any]) -> str:
    """'mean' or 'cls', from today's `pooling_mode` or the `pooling_mode_*` flags of older versions."""
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = [flags.get(key, key) for key, on in settings.items() if key.startswith("pooling_mode_") and on is True]
    mode = settings.get("pooling_mode", "+".join(modes) or "mean")
    if mode not in ("mean", "cls"):
        raise ValueError(f"its pooling is '{mode}'; known: mean, cls")
    return str(mode)


def _settings(file: Path) -> dict[str, Any]:
    """A JSON object; {} where the file is missing."""
    settings = read_json(file) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"its {file.name} is not a JSON object")
    return settings
