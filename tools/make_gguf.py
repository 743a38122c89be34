"""Write a model directory as a GGUF file, for llama.cpp: whole (f32, f16) or quantised (q8_0, q4_0).

Run: python tools/make_gguf.py models/smollm2-135m smollm2.Q8_0.gguf --type q8_0

Weights, vocabulary, merges, special tokens and chat template go into the file. Tensors are read, quantised and written
one by one, so that memory does not grow with the model. The file appears by one rename when it is whole.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.cli import OneLineCommand
from common.files import check_can_write, expand, read_json, read_text
from common.models import resolve_model

if TYPE_CHECKING:
    import numpy as np

TYPES = ("f32", "f16", "q8_0", "q4_0")
# tokenizer.json's way of cutting text before BPE -> llama.cpp's name for it. Parley gives llama.cpp token ids, so
# that this matters to other programs only.
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def make_gguf(folder: Path, target: Path, kind: str = "f32") -> None:
    """Write the model directory `folder` as the GGUF file `target`. Raises ValueError for an architecture, a tokenizer
    or a quantisation that is not supported, and where the directory is incomplete."""
    if kind not in TYPES:
        raise ValueError(f"unknown type '{kind}'; choose one of: {', '.join(TYPES)}")
    config = read_json(folder / "config.json")
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{architecture} cannot be written as GGUF yet; supported: {', '.join(ARCHITECTURES)}")
    check_can_write(target)
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    try:
        ARCHITECTURES[architecture](folder, config | {"name": target.stem}, Path(scratch), kind)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(target)
    finally:
        Path(scratch).unlink(missing_ok=True)


# The llama family -----------------------------------------------------------------------------------------------------


def _llama(folder: Path, config: dict[str, Any], target: Path, kind: str) -> None:
    import gguf

    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise ValueError(f"rope scaling '{scaling}' cannot be written as GGUF yet; supported: default")
    writer = gguf.GGUFWriter(target, "llama")
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(config["name"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_rope_dimension_count(head_size)
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, config["vocab_size"])

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    tied = bool(config.get("tie_word_embeddings"))

    def converted(name: str, weight: np.ndarray[Any, Any]) -> tuple[str, np.ndarray[Any, Any]] | None:
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            return None
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise ValueError(f"{folder}: a tensor called {name} belongs to no llama model")
        if ".q_proj." in name or ".k_proj." in name:
            weight = _neighbouring_pairs(weight, heads if ".q_proj." in name else kv_heads)
        return new, weight

    _write_tensors(writer, folder, kind, converted)


def _neighbouring_pairs(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query or key projection, reordered within each head: transformers rotates row i with row i + half,
    llama.cpp rotates neighbours."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


ARCHITECTURES: dict[str, Callable[[Path, dict[str, Any], Path, str], None]] = {"LlamaForCausalLM": _llama}


# Tensors --------------------------------------------------------------------------------------------------------------


def _write_tensors(
    writer: Any, folder: Path, kind: str, converted: Callable[[str, Any], tuple[str, Any] | None]
) -> None:
    """Header and tensors, in two passes over the weights: the header needs every shape before the first number."""
    import gguf
    import numpy as np

    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, shape in _shapes(folder):
        # Names and shapes alone matter here; the stand-in takes no memory.
        if made := converted(name, np.broadcast_to(np.float32(0), shape)):
            quantised = _kind_of(made[0], shape, kind)
            size = gguf.quants.quant_shape_to_byte_shape(shape, quantised) if quantised.name[0] == "Q" else shape
            stored = {"F32": np.float32, "F16": np.float16}.get(quantised.name, np.uint8)
            num_bytes = int(np.prod(size)) * np.dtype(stored).itemsize
            writer.add_tensor_info(made[0], size, np.dtype(stored), num_bytes, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight in _weights(folder):
        if made := converted(name, weight):
            data = gguf.quants.quantize(np.ascontiguousarray(made[1]), _kind_of(made[0], weight.shape, kind))
            writer.write_tensor_data(data)
    writer.close()


def _kind_of(name: str, shape: tuple[int, ...], kind: str) -> Any:
    """The type of one tensor. Norms and biases stay whole. Where 4 bits are asked for, the embedding takes 8 (what it
    loses is lost to every token), and so do rows that cannot be cut into blocks of 32, in 16 bits."""
    import gguf

    types = gguf.GGMLQuantizationType
    if len(shape) < 2 or kind == "f32":
        return types.F32
    if kind == "f16" or shape[-1] % 32:
        return types.F16
    return types.Q8_0 if name.startswith(("token_embd", "output.")) else types[kind.upper()]


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    return [folder / "model.safetensors"]


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import SafetensorError, safe_open

    for file in _files(folder):
        try:
            with safe_open(file, framework="np") as tensors:
                names = list(tensors.keys())
                yield from ((name, tuple(tensors.get_slice(name).get_shape())) for name in names)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file}: cannot be read ({error}); a model directory holds safetensors") from None


def _weights(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor in float32, in the order of `_shapes`."""
    import torch
    from safetensors import safe_open

    for file in _files(folder):
        with safe_open(file, framework="pt") as tensors:  # NumPy knows no bfloat16
            for name in list(tensors.keys()):
                yield name, tensors.get_tensor(name).to(torch.float32).numpy()


# Vocabulary -----------------------------------------------------------------------------------------------------------


def _add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    """Byte-level BPE, as tokenizer.json has it, its special tokens, and the chat template."""
    import gguf
    from transformers import AutoTokenizer

    stored = read_json(folder / "tokenizer.json")
    model = stored["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise ValueError(f"{folder}: only byte-level BPE vocabularies can be written as GGUF yet, not {model['type']}")
    words = {id_: word for word, id_ in model["vocab"].items()}
    added = {each["id"]: each for each in stored["added_tokens"]}
    kinds = gguf.TokenType
    tokens, types = [], []
    for id_ in range(vocab_size):
        if id_ in added:
            tokens.append(added[id_]["content"])
            types.append(kinds.CONTROL if added[id_]["special"] else kinds.USER_DEFINED)
        else:
            tokens.append(words.get(id_, f"[PAD{id_}]"))
            types.append(kinds.NORMAL if id_ in words else kinds.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(stored.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in model["merges"]])
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ends = _end_ids(folder) or [tokenizer.eos_token_id]
    special: tuple[tuple[Callable[[int], None], int | None], ...] = (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, ends[0]),
        (writer.add_eot_token_id, ends[1] if len(ends) > 1 else None),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    )
    for add, id_or_none in special:
        if id_or_none is not None:
            add(id_or_none)
    writer.add_add_bos_token(tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(stored: dict[str, Any] | None) -> str:
    steps = (stored or {}).get("pretokenizers", [stored])
    if steps == [_GPT2]:
        return "gpt-2"
    if steps == [_DIGITS, _GPT2]:
        return "smollm"
    text = json.dumps(stored)
    if r"\\p{N}{1,3}" in text:
        return "llama-bpe"
    if r"[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" in text:
        return "qwen2"
    raise ValueError("the tokenizer cuts text in a way that cannot be named in a GGUF file yet")


def _end_ids(folder: Path) -> list[int]:
    file = folder / "generation_config.json"
    ids = json.loads(read_text(file)).get("eos_token_id") if file.is_file() else None
    return [ids] if isinstance(ids, int) else list(ids or [])


@click.command(cls=OneLineCommand, context_settings={"show_default": True})
@click.argument("model")
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--type", "kind", default="q8_0", help=f"One of: {', '.join(TYPES)}.")
def cli(model: str, target: Path, kind: str) -> None:
    """Write MODEL (a directory or a known name) as the GGUF file TARGET."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    make_gguf(Path(resolve_model(model)), expand(target), kind)
    click.echo(f"{target}: {target.stat().st_size >> 20} MiB", err=True)


if __name__ == "__main__":
    cli()
