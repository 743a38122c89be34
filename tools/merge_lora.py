"""Merge a LoRA adapter (or another that peft can merge) into its base model: a full Hugging Face directory.

Run: python tools/merge_lora.py runs/my-adapter --out models/my-model

The sums are made in float32 and stored in the base's precision. The directory is loaded and compared with base and
adapter (tools/parity.py) before it appears, by one rename. Tokenizer and chat template are the adapter directory's,
where it has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from chatbot.engines import LoadOptions
from chatbot.engines.decoding.adapters import base_of
from chatbot.engines.decoding.loading import load_tokenizer, load_weights
from common.cli import OneLineCommand
from common.files import expand
from common.models import loading_errors, resolve_model
from tools.parity import Parity, Reference, beside, check_directory


def merge(
    adapter: str, target: Path, base: str | None = None, dtype: str | None = None, max_shard_size: str = "5GB"
) -> Parity:
    """Write the directory `target`; `base` is the model, where it is not the one that the adapter names, and `dtype`
    the precision, where it is not the base's.

    Raises ValueError for what is no adapter, cannot be merged or does not fit the base, where `target` exists, and
    where the result does not say what base and adapter say together.
    """
    import torch
    from transformers import AutoConfig

    place = Path(resolve_model(adapter))
    if not (place / "adapter_config.json").is_file():
        raise ValueError(f"'{adapter}' is no adapter: it has no adapter_config.json")
    if not (place / "adapter_model.safetensors").is_file():
        raise ValueError(f"adapter '{adapter}' has no adapter_model.safetensors; save it in that format")
    base = base or base_of(str(place))
    model, tokenizer = load_weights(base, LoadOptions(device="cpu", dtype="float32"))
    if (place / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(str(place))
    with loading_errors(base):
        own = AutoConfig.from_pretrained(resolve_model(base), trust_remote_code=False).dtype or torch.float32
    adapted = _adapted(model, adapter, place)
    reference = Reference.of(adapted, tokenizer)
    precision = getattr(torch, dtype) if dtype else own
    merged = adapted.merge_and_unload(safe_merge=True).to(precision)
    merged.config.dtype = precision
    with beside(target) as made:
        made.mkdir()
        merged.save_pretrained(made, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(made)
        del merged, adapted, model
        return check_directory(reference, made, str(precision).removeprefix("torch."))


def _adapted(model: Any, adapter: str, place: Path) -> Any:
    """The model with the adapter's weights beside its own."""
    try:
        from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
    except ImportError:
        raise ValueError("merging needs peft; install it with: pip install 'parley[lora]'") from None

    with loading_errors(adapter):
        config = PeftConfig.from_pretrained(str(place))
        config.inference_mode = True
        config.base_model_name_or_path = model.name_or_path  # another may be meant than the one it names
        adapted = get_peft_model(model, config)
        if not hasattr(adapted, "merge_and_unload"):
            raise ValueError(f"{config.peft_type} adapters have no weights that could be added to the model's")
        report: Any = set_peft_model_state_dict(adapted, load_peft_weights(str(place), device="cpu"))
    # peft starts from weights that do nothing, or from chance: an adapter for another model must not pass for one.
    own = {name for name in adapted.state_dict() if config.peft_type.value.lower() in name.lower()}
    if wrong := [*sorted(own & set(report.missing_keys)), *sorted(report.unexpected_keys)]:
        raise ValueError(f"adapter '{adapter}' does not fit its base model ({wrong[0]}, ...)")
    return adapted.eval()


@click.command(cls=OneLineCommand)
@click.argument("adapter")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The directory to write.")
@click.option("--base", help="The base model.  [default: the one that the adapter names]")
def cli(adapter: str, out: Path, base: str | None) -> None:
    """Merge ADAPTER, a directory that peft saved, into its base model."""
    target = expand(out)
    parity = merge(adapter, target, base)
    click.echo(f"{target}: {parity}", err=True)


if __name__ == "__main__":
    cli()
