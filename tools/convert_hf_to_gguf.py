"""Write a model directory as a GGUF file, for llama.cpp: whole (f32, f16) or quantised (q8_0, q4_0).

Run: python tools/convert_hf_to_gguf.py models/smollm2-135m --out smollm2.Q8_0.gguf --type q8_0

Weights, vocabulary, merges, special tokens and chat template go into the file. Tensors are read, quantised and written
one by one. Then the file is loaded and compared with the directory (tools/parity.py), for which the model is loaded
in float32; it appears by one rename when it has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatbot.engines import LoadOptions
from chatbot.engines.decoding.loading import load_weights
from common.cli import OneLineCommand
from common.files import expand, read_json
from common.models import resolve_model
from tools.gguf_vocabulary import add_vocabulary
from tools.parity import Parity, Reference, beside, check_gguf

if TYPE_CHECKING:
    import numpy as np

TYPES = ("f32", "f16", "q8_0", "q4_0")
# Architecture -> llama.cpp's name for it, and whether it wants the rows of queries and keys in another order.
ARCHITECTURES = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", False),
}


def convert(folder: Path, target: Path, kind: str = "q8_0") -> Parity:
    """Write the model directory `folder` as the GGUF file `target`, if it then says what the directory says.

    Raises ValueError for an architecture, a tokenizer or a type that is not supported, where the directory is
    incomplete, where `target` exists, and where the file does not agree with the directory.
    """
    _checked(folder, kind)  # seconds of loading should not come before this
    with beside(target) as made:
        write_gguf(folder, made, kind)
        model, tokenizer = load_weights(str(folder), LoadOptions(device="cpu", dtype="float32"))
        reference = Reference.of(model, tokenizer)
        del model
        return check_gguf(reference, made, kind)


def write_gguf(folder: Path, target: Path, kind: str) -> None:
    """Write the file, unchecked. Raises ValueError for what is not supported or incomplete."""
    import gguf

    config, architecture = _checked(folder, kind)
    name, permuted = ARCHITECTURES[architecture]
    writer = gguf.GGUFWriter(target, name)
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(target.stem)
    writer.add_context_length(_context_length(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_size)
    writer.add_vocab_size(config["vocab_size"])
    scaling = _add_rope(writer, folder, config)
    add_vocabulary(writer, folder, config["vocab_size"])

    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, name.upper()), layers)
    tied = bool(config.get("tie_word_embeddings"))

    def converted(name: str, weight: np.ndarray[Any, Any]) -> tuple[str, np.ndarray[Any, Any]] | None:
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            return None
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise ValueError(f"{folder}: a tensor called {name} belongs to no {architecture}")
        if permuted and (".q_proj." in name or ".k_proj." in name):
            weight = _neighbouring_pairs(weight, heads if ".q_proj." in name else kv_heads)
        return new, weight

    try:
        _write_tensors(writer, folder, kind, converted, scaling)
    finally:
        writer.close()


def _checked(folder: Path, kind: str) -> tuple[dict[str, Any], str]:
    """The configuration and the name of the architecture."""
    if kind not in TYPES:
        raise ValueError(f"unknown type '{kind}'; choose one of: {', '.join(TYPES)}")
    config = read_json(folder / "config.json")
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{architecture} cannot be written as GGUF yet; supported: {', '.join(ARCHITECTURES)}. For others there is "
            "convert_hf_to_gguf.py of llama.cpp; or use the directory as it is: --engine transformers"
        )
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise ValueError(f"{folder}: llama.cpp computes {architecture} with silu, not {activation}")
    return config, architecture


def _context_length(config: dict[str, Any]) -> int:
    """Tokens of context; no more than a sliding window, which llama.cpp does not know for these architectures."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    known = int(config["max_position_embeddings"])
    return min(known, window or known)


def _add_rope(writer: Any, folder: Path, config: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """The rotary encoding's settings. What Llama 3.1 divides its frequencies by is returned: it is stored as a tensor
    (head size / 2)."""
    import gguf

    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    writer.add_rope_freq_base(base)
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif scaling == "llama3":
        import torch
        from transformers import AutoConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](loaded, torch.device("cpu"))
        plain = base ** -(torch.arange(len(scaled), dtype=torch.float64) / len(scaled))
        return (plain / scaled.double()).float().numpy()
    elif scaling != "default":
        raise ValueError(
            f"rope scaling '{scaling}' cannot be written as GGUF yet; supported: default, linear, llama3. Use the "
            "directory as it is: --engine transformers"
        )
    return None


def _neighbouring_pairs(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a query or key projection, reordered within each head: transformers rotates row i with row i + half,
    llama.cpp rotates neighbours."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


# Tensors --------------------------------------------------------------------------------------------------------------


def _write_tensors(
    writer: Any,
    folder: Path,
    kind: str,
    converted: Callable[[str, Any], tuple[str, Any] | None],
    scaling: np.ndarray[Any, Any] | None,
) -> None:
    """Header and tensors, in two passes over the weights: the header needs every shape before the first number."""
    import gguf
    import numpy as np

    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if scaling is not None:
        writer.add_tensor_info("rope_freqs.weight", scaling.shape, scaling.dtype, scaling.nbytes)
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
    if scaling is not None:
        writer.write_tensor_data(scaling)
    for name, weight in _weights(folder):
        if made := converted(name, weight):
            data = gguf.quants.quantize(np.ascontiguousarray(made[1]), _kind_of(made[0], weight.shape, kind))
            writer.write_tensor_data(data)


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


@click.command(cls=OneLineCommand, context_settings={"show_default": True})
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@click.option("--type", "kind", default="q8_0", help=f"One of: {', '.join(TYPES)}.")
def cli(model: str, out: Path, kind: str) -> None:
    """Write MODEL (a directory, a known name or a Hugging Face id) as a GGUF file."""
    target = expand(out)
    parity = convert(Path(resolve_model(model)), target, kind)
    click.echo(f"{target}: {target.stat().st_size >> 20} MiB; {parity}", err=True)


if __name__ == "__main__":
    cli()
