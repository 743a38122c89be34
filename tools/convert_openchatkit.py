"""Write a checkpoint that OpenChatKit trained as a Hugging Face directory.

Run: python tools/convert_openchatkit.py model_ckpts/Pythia-Chat-Base-7B models/pythia-chat --model models/pythia-6.9b

A checkpoint is a folder `checkpoint_STEP` with `prank_N_checkpoint.pt` for each stage N of the pipeline, beside which
lie optimizers and schedulers. A stage is a list of modules, and a tensor's name begins with its module's number there:
first stage `0.` the embedding, then its layers from `1.`; other stages their layers from `0.`; the last stage's last
module is norm and head. How many stages there are, and how many layers each has, follows from that. Models are gpt_neox
and llama; `--model` is the one that training began with, for its config.json and tokenizer.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.cli import OneLineCommand
from common.files import expand, read_text
from common.models import loading_errors, resolve_model
from tools.model_writing import DTYPES, SHARD_SIZE, write_model
from tools.parity import beside
from tools.stored_tensors import Stored, names_of
from tools.torch_files import load, load_tensor

if TYPE_CHECKING:
    import torch

# Kind of model -> (what its layers' names begin with, names of the embedding, of norm and head).
LAYOUTS = {
    "gpt_neox": (
        "gpt_neox.layers",
        {"embed_in.weight": "gpt_neox.embed_in.weight"},
        {
            "final_layer_norm.weight": "gpt_neox.final_layer_norm.weight",
            "final_layer_norm.bias": "gpt_neox.final_layer_norm.bias",
            "embed_out.weight": "embed_out.weight",
        },
    ),
    "llama": (
        "model.layers",
        {"embed_tokens.weight": "model.embed_tokens.weight"},
        {"norm.weight": "model.norm.weight", "lm_head.weight": "lm_head.weight"},
    ),
}
# Masks and frequencies that older transformers kept among the weights; they follow from config.json.
CONSTANTS = {
    "attention.bias",
    "attention.masked_bias",
    "attention.rotary_emb.inv_freq",
    "self_attn.rotary_emb.inv_freq",
}


def convert(
    checkpoint: Path, target: Path, model: str, dtype: str | None = None, max_shard_size: str = SHARD_SIZE
) -> list[str]:
    """Write the directory `target`; what was done, in lines.

    Raises ValueError for what is no such checkpoint, is incomplete or mixed of several steps, does not fit `model`, or
    was never filled, and where `target` exists.
    """
    from transformers import AutoConfig

    folder, described = find_step(checkpoint), Path(resolve_model(model))
    with loading_errors(model):
        config = AutoConfig.from_pretrained(described, trust_remote_code=False)
    if config.model_type not in LAYOUTS:
        raise ValueError(f"'{model}' is a {config.model_type}; OpenChatKit's checkpoints are {' or '.join(LAYOUTS)}")
    stages = stage_files(folder)
    check_one_step(folder, len(stages))
    tensors, layers, constants = stored_in_stages(stages, *LAYOUTS[config.model_type])
    if sum(layers) != config.num_hidden_layers:
        raise ValueError(
            f"{folder} has {sum(layers)} layers ({len(stages)} stages of {', '.join(map(str, layers))}), but '{model}' "
            f"has {config.num_hidden_layers}: another model, a stage is missing, or it was trained cut short"
        )
    settings, lines = _rotary_settings(config)
    with beside(target) as made:
        written = write_model(tensors, described, made, dtype, max_shard_size, settings)
    others = sorted(each for each in folder.glob("*.pt") if each not in stages)
    lines += [f"left out: {constants} masks and frequencies, which follow from config.json"] if constants else []
    lines += [f"left out: {len(others)} files of optimizers and schedulers"] if others else []
    return [f"{folder}: {len(stages)} stages of {', '.join(map(str, layers))} layers; {written}", *lines]


def find_step(path: Path) -> Path:
    """The folder of one step: `path`, or the step that its file `latest` names."""
    if not path.is_dir():
        raise ValueError(f"{path} is no directory; name a folder that has prank_0_checkpoint.pt")
    if (path / "latest").is_file() and not any(path.glob("prank_*")):
        step = read_text(path / "latest").strip()
        if not (step.isdigit() and (path / f"checkpoint_{step}").is_dir()):
            raise ValueError(f"{path / 'latest'} names step '{step[:20]}', of which there is no folder")
        return path / f"checkpoint_{step}"
    return path


def stage_files(folder: Path) -> list[Path]:
    """The stages' files in order. Raises ValueError where one is missing."""
    numbers = {
        int(found[1]): path
        for path in folder.glob("prank_*_checkpoint.pt")
        if (found := re.fullmatch(r"prank_(\d+)_checkpoint\.pt", path.name))
    }
    if not numbers:
        raise ValueError(f"{folder} has no prank_0_checkpoint.pt; name OpenChatKit's folder checkpoint_STEP")
    if missing := [f"prank_{each}_checkpoint.pt" for each in range(max(numbers)) if each not in numbers]:
        raise ValueError(f"{folder} has no {names_of(missing)}: a stage is missing")
    return [numbers[each] for each in sorted(numbers)]


def check_one_step(folder: Path, num_stages: int) -> None:
    """Raise ValueError where the schedulers beside the stages stand at different steps."""
    steps: dict[int, list[str]] = {}
    for number in range(num_stages):
        file = folder / f"prank_{number}_scheduler.pt"
        if file.is_file() and isinstance(state := load(file), dict) and "last_epoch" in state:
            steps.setdefault(int(state["last_epoch"]), []).append(str(number))
    if len(steps) > 1:
        told = "; ".join(f"step {step}: {', '.join(numbers)}" for step, numbers in sorted(steps.items()))
        raise ValueError(f"{folder} mixes stages of different steps ({told}); take another checkpoint")


def stored_in_stages(
    stages: list[Path], prefix: str, embedding: dict[str, str], head: dict[str, str]
) -> tuple[dict[str, Stored], list[int], int]:
    """(tensors by their names in the model, layers of each stage, how many constants were left out)."""
    ends = embedding | head
    modules = [(file, position, held) for file in stages for position, held in _modules(file).items()]
    layers = [each for each in modules if not each[2].keys() <= ends.keys()]
    if not (
        modules[0][2].keys() <= embedding.keys() and modules[1:-1] == layers and modules[-1][2].keys() <= head.keys()
    ):
        raise ValueError(
            f"the {len(stages)} stages in {stages[0].parent} do not go from the embedding over layers to norm and "
            "head: are all there, under the numbers that they were trained with, and is --model of the right kind?"
        )
    found: dict[str, Stored] = {}
    constants = 0
    for number, (file, position, held) in enumerate(modules, -1):  # so that layers begin at 0
        for name, tensor in held.items():
            if name in CONSTANTS:
                constants += 1
            else:
                whole = ends.get(name, f"{prefix}.{number}.{name}")
                found[whole] = Stored(
                    tuple(tensor.shape), tensor.dtype, partial(load_tensor, file, f"{position}.{name}")
                )
    return found, [sum(each[0] == file for each in layers) for file in stages], constants


def _modules(file: Path) -> dict[int, dict[str, torch.Tensor]]:
    """Module's number -> name within it -> tensor, mapped and not read."""
    import torch

    state = load(file)
    if not isinstance(state, dict):
        raise ValueError(f"{file} has no tensors by name")
    modules: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        parts = re.fullmatch(r"(\d+)\.(.+)", key) if isinstance(key, str) else None
        if parts is None or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{file} has {str(key)[:80]!r}, which is no tensor of a stage's module")
        modules.setdefault(int(parts[1]), {})[parts[2]] = tensor
    if sorted(modules) != list(range(len(modules))):
        raise ValueError(f"{file} has modules {names_of([str(each) for each in sorted(modules)])}: one is missing")
    return {position: modules[position] for position in sorted(modules)}


def _rotary_settings(config: Any) -> tuple[dict[str, Any], list[str]]:
    """What config.json must say to mean what OpenChatKit's llama did, and a line that tells it.

    Its rotary base was always 10,000, and a context beyond 4,096 was scaled linearly where the configuration says
    nothing of scaling.
    """
    if config.model_type != "llama":
        return {}, []
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise ValueError(f"OpenChatKit could not train with rotary scaling '{kind}'; is --model the right one?")
    factor = float(rope["factor"] if kind == "linear" else max(config.max_position_embeddings / 4096, 1))
    if rope["rope_theta"] == 10000 and (kind == "linear" or factor == 1):
        return {}, []
    scaling = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
    trained = {"rope_theta": 10000.0, **scaling}
    line = f"config.json has the rotary settings that OpenChatKit trained with, and not those of --model: {trained}"
    return {"rope_parameters": trained, "rope_scaling": None, "rope_theta": None}, [line]


@click.command(cls=OneLineCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model that training began with: a directory, known name or id.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="The numbers' type.  [default: as they are]")
@click.option("--max-shard-size", default=SHARD_SIZE, show_default=True, help="The most that a file may hold.")
def cli(checkpoint: Path, output: Path, model: str, dtype: str | None, max_shard_size: str) -> None:
    """Write CHECKPOINT (OpenChatKit's folder checkpoint_STEP, or the one above it) as the model directory OUTPUT."""
    target = expand(output)
    for line in [*convert(expand(checkpoint), target, model, dtype, max_shard_size), f"written to {target}"]:
        click.echo(line, err=True)


if __name__ == "__main__":
    cli()
