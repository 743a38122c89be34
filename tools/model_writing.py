"""Write tensors that were found somewhere as a Hugging Face directory: checked, in shards, compared with their source.

Only one shard is in memory at a time. What the model must consist of follows from its config.json alone.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.files import read_json, write_json
from common.models import loading_errors
from tools.stored_tensors import Stored, names_of, stored_in
from training.pipeline.loading import INDEX

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SHARD_SIZE = "5GB"
# Files besides the weights that make a directory a model: tokenizer, chat template, defaults of generation.
_CARRIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja",
    "chat_template*", "generation_config.json",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"
_MAY_BE_ZERO = "token_type_embeddings"  # RoBERTa has these without using them


def write_model(
    tensors: Mapping[str, Stored],
    described: Path,
    made: Path,
    dtype: str | None = None,
    max_shard_size: str = SHARD_SIZE,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Write `tensors` into the new folder `made`, as the model that `described` has config.json and tokenizer of.

    `dtype` is a key of DTYPES, without it numbers stay as they are; `settings` replace some of config.json, and None
    drops one. Returns what was written, in words. Raises ValueError where a tensor is missing, too many, of another
    shape than the configuration says, not finite or all zero, where it does not fit `dtype`, where the disk is too
    small, and where what was written is not what was read.
    """
    import torch
    from huggingface_hub import split_state_dict_into_shards_factory

    target = getattr(torch, DTYPES[dtype]) if dtype else None
    wanted = _checked(tensors, described)
    types = {_type_of(each, target) for each in wanted.values() if each.dtype.is_floating_point}
    try:
        split = split_state_dict_into_shards_factory(
            wanted,
            get_storage_size=lambda each: math.prod(each.shape) * _type_of(each, target).itemsize,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError:
        raise ValueError(f"'{max_shard_size}' is no size of shards, which is a number with KB, MB, GB or TB") from None
    size = int(split.metadata["total_size"])
    if (free := shutil.disk_usage(made.parent).free) < size:
        raise ValueError(f"{made.parent} has {free >> 20:,} MiB free; the model needs {size >> 20:,}")
    made.mkdir()
    _write_shards(wanted, split.filename_to_tensors, made, target)
    if split.is_sharded:
        write_json(made / INDEX, {"metadata": {"total_size": size}, "weight_map": split.tensor_to_filename})
    kind = str(types.pop()).removeprefix("torch.") if len(types) == 1 else None
    _describe(described, made, {**({"dtype": kind} if kind else {}), **(settings or {})})
    _compare(wanted, made, target)
    numbers = sum(math.prod(each.shape) for each in wanted.values())
    files = len(split.filename_to_tensors)
    return (
        f"{len(wanted)} tensors with {numbers:,} numbers in {kind or 'several types'}, {size / 1e9:.2f} GB in {files} "
        f"file{'s' if files > 1 else ''}, each compared with its source"
    )


@dataclass(frozen=True)
class Expected:
    """What a model consists of: shapes by name, tied tensors with the one that each is the same as, and the names under
    which transformers stores those that it stores under another."""

    shapes: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    stored_as: dict[str, str]


def expected(described: Path, found: Iterable[str]) -> Expected:
    """Of the model that config.json in `described` describes. Where tensors are stored in another form than that of the
    modules (experts one by one, a head of another name), the form that the names `found` are nearer to is taken.

    Raises ValueError for an architecture that is not known.
    """
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    with loading_errors(str(described)):
        config = transformers.AutoConfig.from_pretrained(described, trust_remote_code=False)
        name = (config.architectures or ["none"])[0]
        architecture: Any = getattr(transformers, name, None)
        if not (isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)):
            raise ValueError(f"its config.json names the architecture {name}, which transformers does not have")
        with torch.device("meta"):
            model = architecture(config)
        own: dict[str, torch.Tensor] = model.state_dict()
        stored: dict[str, torch.Tensor] = revert_weight_conversion(model, own)
    names = set(found)
    form = min((stored, own), key=lambda each: len(each.keys() ^ names))
    unchanged = {id(tensor): name for name, tensor in stored.items()}
    stored_as = {name: unchanged[id(tensor)] for name, tensor in own.items() if id(tensor) in unchanged}
    tied = dict(model.all_tied_weights_keys)
    tied |= {stored_as.get(each, each): stored_as.get(source, source) for each, source in tied.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in form.items() if name not in tied}
    return Expected(shapes, tied, stored_as if form is own else {})


def _checked(tensors: Mapping[str, Stored], described: Path) -> dict[str, Stored]:
    """Those of `tensors` that are to be written, by the names that they get, in the model's order."""
    import torch

    model = expected(described, tensors)
    missing = [name for name in model.shapes if name not in tensors]
    extra = [name for name in tensors if name not in model.shapes and name not in model.tied]
    other = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in model.shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    wrong = {"missing": missing, "not part of it": extra, "of another shape": other}
    if told := "; ".join(f"{what}: {names_of(names)}" for what, names in wrong.items() if names):
        raise ValueError(f"the tensors are not those of the model that {described / 'config.json'} describes: {told}")
    for name, source in model.tied.items():
        if name in tensors and source in tensors and not torch.equal(tensors[name].read(), tensors[source].read()):
            raise ValueError(
                f"{name} differs from {source}, but {described / 'config.json'} says that they are one tensor "
                "(tie_word_embeddings); set that to false there if they were trained apart"
            )
    return {model.stored_as.get(name, name): tensors[name] for name in model.shapes}


def _type_of(stored: Stored, target: torch.dtype | None) -> torch.dtype:
    return target if target is not None and stored.dtype.is_floating_point else stored.dtype


def _sound(name: str, stored: Stored, target: torch.dtype | None) -> torch.Tensor:
    """The tensor as it is written. Raises ValueError for numbers that no trained weight has."""
    import torch

    tensor = stored.read()
    low, high = (float(each) for each in torch.aminmax(tensor)) if tensor.numel() else (0.0, 1.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has infinite numbers or NaN: the model diverged, or was not all saved")
    weight = tensor.ndim > 1 or name.endswith(".weight")
    if low == high == 0 and weight and _MAY_BE_ZERO not in name:
        raise ValueError(f"{name} is all zero: it was never filled")
    if target is None or not tensor.is_floating_point():
        return tensor.contiguous()
    if max(-low, high) > (largest := torch.finfo(target).max):
        raise ValueError(f"{name} has {max(-low, high):g}, more than the {largest:g} that {target} can be; use bf16")
    return tensor.to(target).contiguous()


def _write_shards(
    wanted: Mapping[str, Stored], files: Mapping[str, list[str]], made: Path, target: torch.dtype | None
) -> None:
    from safetensors.torch import save_file

    with _shown(len(wanted), "writing") as bar:
        for file, names in files.items():
            shard = {}
            for name in names:
                shard[name] = _sound(name, wanted[name], target)
                bar.update(1)
            save_file(shard, made / file, metadata={"format": "pt"})


def _compare(wanted: Mapping[str, Stored], made: Path, target: torch.dtype | None) -> None:
    """Read what was written, and its source once more, a tensor at a time."""
    import torch

    written = stored_in(made)
    if wrong := sorted(written.keys() ^ wanted.keys()):
        raise ValueError(f"what was written to {made.parent} has other tensors than were read: {names_of(wrong)}")
    with _shown(len(wanted), "comparing") as bar:
        for name, source in wanted.items():
            if not torch.equal(written[name].read(), _sound(name, source, target)):
                raise ValueError(f"{name} was written with other numbers than were read: check disk and memory")
            bar.update(1)


def _describe(described: Path, made: Path, settings: Mapping[str, Any]) -> None:
    """config.json with `settings`, tokenizer and templates."""
    settings = {"torch_dtype": None, **settings}  # what `dtype` was called
    config = {**read_json(described / "config.json"), **settings}
    dropped = {key for key, value in settings.items() if value is None}
    write_json(made / "config.json", {key: value for key, value in config.items() if key not in dropped})
    for pattern in _CARRIED:
        for file in described.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, made / file.name)
    if (described / _TEMPLATES).is_dir():
        shutil.copytree(described / _TEMPLATES, made / _TEMPLATES)


def _shown(length: int, label: str) -> AbstractContextManager[Any]:
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=not sys.stderr.isatty())
