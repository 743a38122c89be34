"""Write a GGUF file as a Hugging Face model directory: float32 safetensors, tokenizer, chat template.

Run: python tools/convert_gguf_to_hf.py smollm2.Q8_0.gguf --out models/my-smollm2

transformers reads the file and its numbers become float32, once; a quantised file does not regain what it lost. The
directory is loaded and compared with the file (tools/parity.py) before it appears: with what transformers reads from
the file, and where the `gguf` extra is installed with what llama.cpp makes of it. It appears by one rename.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatbot.engines.gguf_file import read_header
from common.cli import OneLineCommand
from common.files import expand
from tools.parity import Parity, Reference, beside, check_directory, check_gguf, load_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# llama.cpp's number for how a file stores most of its weights -> whose tolerance applies; quantised ones differ a
# little, since llama.cpp rounds what it multiplies them with.
_EXACT = {0: "f32", 1: "f16"}


def convert(file: Path, target: Path) -> Parity:
    """Write the directory `target`. Raises ValueError where transformers cannot read the file or would leave out
    something of it, where `target` exists, and where the directory does not agree with the file."""
    header = read_header(file)
    with beside(target) as made:
        source, tokenizer = write_directory(file, made)
        reference = Reference.of(source, tokenizer)
        if importlib.util.find_spec("xllamacpp") is not None:
            check_gguf(reference, file, _EXACT.get(header.values.get("general.file_type", -1), "q8_0"))
        return check_directory(reference, made, "float32")


def write_directory(file: Path, target: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Write the directory, unchecked; what it was made of, as transformers reads the file."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, source = load_gguf(file)
    # A model that remembers being quantised refuses to be saved, so its weights move to a fresh one.
    config = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    outcome = fresh.load_state_dict(source.state_dict(), strict=False, assign=True)
    fresh.tie_weights()
    tied = set(getattr(fresh, "all_tied_weights_keys", ()))
    if outcome.unexpected_keys or set(outcome.missing_keys) - tied:
        raise ValueError(f"{file.name}: weights do not fit {config.model_type}: {outcome}")
    fresh.generation_config = _generation_config(tokenizer)
    target.mkdir(parents=True)
    fresh.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # safetensors makes its file private; a model directory may be shared
    return source, tokenizer


def _generation_config(tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )


@click.command(cls=OneLineCommand)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The directory to write.")
def cli(file: Path, out: Path) -> None:
    """Write the GGUF FILE as a Hugging Face model directory."""
    target = expand(out)
    parity = convert(expand(file), target)
    click.echo(f"{target}: {parity}", err=True)


if __name__ == "__main__":
    cli()
