"""Write a checkpoint of a training run as one Hugging Face directory: one process, a pipeline's shards, FSDP's shards.

Run: python tools/convert_checkpoint.py runs/perle models/perle --dtype bf16
     python tools/convert_checkpoint.py runs/perle/checkpoints/step-000100 models/perle --max-shard-size 2GB

Of a run without a final model its newest checkpoint is taken. What there is to read, and what the model must consist
of, is found in the checkpoint's own files. Tensors are read, checked and written one after another, at most one shard
of them in memory; then every one is compared with its source, and the directory appears by one rename.
"""

from __future__ import annotations

from pathlib import Path

import click

from chatbot.engines import LoadOptions
from chatbot.engines.decoding.loading import load_weights
from common.cli import OneLineCommand
from common.files import expand
from common.models import resolve_model
from tools.merge_lora import merge
from tools.model_writing import DTYPES, SHARD_SIZE, write_model
from tools.parity import Reference, beside, check_directory
from tools.stored_tensors import Stored, stored_in
from tools.torch_files import METADATA, stored_in_dcp
from training.checkpoints import Checkpoints

FSDP = "pytorch_model_fsdp_0"  # where accelerate puts the model in a checkpoint of FSDP with SHARDED_STATE_DICT
ADAPTER = "adapter_config.json"


def convert(
    checkpoint: Path,
    target: Path,
    dtype: str | None = None,
    max_shard_size: str = SHARD_SIZE,
    model: str | None = None,
    parity: bool = False,
) -> list[str]:
    """Write the directory `target`; what was done, in lines.

    `model` is where config.json and tokenizer are, for a checkpoint that has none. With `parity` both are loaded too,
    and must say the same. Raises ValueError for what is no checkpoint, lacks something or has too much, and where
    `target` exists.
    """
    place = find_checkpoint(checkpoint)
    if (place / ADAPTER).is_file():
        raise ValueError(f"{place} is an adapter; --merge adds it to its base model")
    tensors, lines = _tensors(place)
    described = place if (place / "config.json").is_file() else None
    if described is None and model is None:
        raise ValueError(f"{place} has no config.json; name the model that was trained with --model")
    described = described or Path(resolve_model(str(model)))
    if parity and described != place:
        raise ValueError(f"{place} cannot be loaded as it is, and so not compared with --parity")
    with beside(target) as made:
        lines.append(f"{place}: {write_model(tensors, described, made, dtype, max_shard_size)}")
        if parity:
            source, tokenizer = load_weights(str(place), LoadOptions(device="cpu", dtype="float32"))
            reference = Reference.of(source, tokenizer)
            del source
            lines.append(str(check_directory(reference, made, _coarsest(tensors, dtype))))
        if not any(made.glob("tokenizer*")):
            lines.append(f"it has no tokenizer, since {described} has none")
    return lines


def convert_adapter(
    checkpoint: Path,
    target: Path,
    dtype: str | None = None,
    max_shard_size: str = SHARD_SIZE,
    model: str | None = None,
) -> list[str]:
    """The same for an adapter, merged into its base model or into `model`; both must fit into memory."""
    place = find_checkpoint(checkpoint)
    if not (place / ADAPTER).is_file():
        raise ValueError(f"{place} is no adapter, and there is nothing to merge; leave --merge out")
    parity = merge(str(place), target, model, DTYPES[dtype] if dtype else None, max_shard_size)
    return [f"{place}: merged; {parity}"]


def find_checkpoint(path: Path) -> Path:
    """The folder with the weights: `path`, or the newest checkpoint of a run that has no model of its own yet.

    Raises ValueError where there is none, and for formats of others.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no directory; name a run, or one of its checkpoints")
    if any(path.glob("prank_*_checkpoint.pt")):
        raise ValueError(f"{path} is OpenChatKit's; convert it with tools/convert_openchatkit.py")
    if (path / "zero_to_fp32.py").is_file() and not any(path.glob("model*.safetensors")):
        raise ValueError(f"{path} is DeepSpeed's; its own script there makes weights of it: zero_to_fp32.py")
    if any((path / name).exists() for name in ("config.json", ADAPTER, METADATA, FSDP)):
        return path
    newest = Checkpoints(path / "checkpoints", keep=1).newest()
    if newest is None:
        raise ValueError(f"{path} is neither a checkpoint nor a run with one: it has no config.json")
    return find_checkpoint(newest.path)


def _tensors(place: Path) -> tuple[dict[str, Stored], list[str]]:
    """What is stored at `place`, and what there is to say about it."""
    sharded = next((each for each in (place, place / FSDP) if (each / METADATA).is_file()), None)
    if sharded is None or any(place.glob("model*.safetensors")):
        return stored_in(place), []
    found, others = stored_in_dcp(sharded)
    return found, [f"{sharded} has {others} entries besides the model, which are left out"] if others else []


def _coarsest(tensors: dict[str, Stored], dtype: str | None) -> str:
    """The type of numbers in what was written, the one of fewest bits where there are several."""
    if dtype:
        return DTYPES[dtype]
    types = {str(each.dtype).removeprefix("torch.") for each in tensors.values()}
    return next(each for each in ("bfloat16", "float16", "float32") if each in types)


@click.command(cls=OneLineCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="The numbers' type.  [default: as they are]")
@click.option("--max-shard-size", default=SHARD_SIZE, show_default=True, help="The most that a file may hold.")
@click.option("--merge", "merged", is_flag=True, help="CHECKPOINT is an adapter: add it to its base model.")
@click.option("--model", help="What was trained: for a checkpoint without config.json, or an adapter that is moved.")
@click.option("--parity", is_flag=True, help="Also load both and compare what they say; both must fit into memory.")
def cli(
    checkpoint: Path,
    output: Path,
    dtype: str | None,
    max_shard_size: str,
    merged: bool,
    model: str | None,
    parity: bool,
) -> None:
    """Write CHECKPOINT (a run, or one of its checkpoints) as one Hugging Face directory OUTPUT."""
    source, target = expand(checkpoint), expand(output)
    if merged:  # which always compares
        lines = convert_adapter(source, target, dtype, max_shard_size, model)
    else:
        lines = convert(source, target, dtype, max_shard_size, model, parity)
    for line in [*lines, f"written to {target}"]:
        click.echo(line, err=True)


if __name__ == "__main__":
    cli()
