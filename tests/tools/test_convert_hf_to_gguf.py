"""Model directory -> GGUF: what llama.cpp and transformers read from the file is what was in the directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from chatbot.engines.gguf_file import read_header
from tools.convert_gguf_to_hf import convert as convert_gguf
from tools.convert_hf_to_gguf import TYPES, cli, convert, write_gguf

PROMPTS = (
    "The bridge was opened",
    "Hello, who are you?",
    "1 + 1 = 2",
    "Où est la gare?",
    "Title",
    "It carries",
    "a b c",
)


def logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.arange(100)[None] % model.config.vocab_size).logits


@pytest.fixture(scope="session")
def variants(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Llamas of several kinds: as it comes; with biases, tied embeddings, all heads alike and one file per two tensors;
    in bfloat16; with a stretched rotary encoding. Others of the family."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
    )

    base = tmp_path_factory.mktemp("variants")
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_model)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    biased = LlamaForCausalLM(config)
    for name, parameter in biased.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    biased.save_pretrained(base / "biased", max_shard_size="10KB")
    biased.to(torch.bfloat16).save_pretrained(base / "half")
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    llama3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    configs = {
        "llama3": LlamaConfig(**shape, rope_parameters=llama3),
        "linear": LlamaConfig(**shape, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
        "mistral": MistralConfig(**shape, head_dim=16, sliding_window=400),
        "qwen2": Qwen2Config(**shape, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**shape, head_dim=16),
    }
    for name, each in configs.items():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(each)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases, and norms that are not all one
                torch.nn.init.normal_(parameter, 1, 0.3)
        model.save_pretrained(base / name)
    for name in ("biased", "half", *configs):
        tokenizer.save_pretrained(base / name)
    for name in ("qwen2", "qwen3"):  # as transformers cuts text for a qwen2, whatever tokenizer.json says
        AutoTokenizer.from_pretrained(base / "qwen2").save_pretrained(base / name)
    assert (base / "biased" / "model.safetensors.index.json").is_file()
    return {"plain": tiny_chat_model} | {name: base / name for name in ("biased", "half", *configs)}


def sentencepiece_tokenizer(template: str) -> Any:
    """As Llama 2 and Mistral have it: BPE over characters, bytes for what the vocabulary lacks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer

    trained = Tokenizer(models.BPE(byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    own = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=own, show_progress=False)
    trained.train_from_iterator([each for each in PROMPTS for _ in range(3)], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer: Any = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(each) for each in model["merges"]])
    tokenizer.chat_template = template
    return tokenizer


def test_a_sentencepiece_vocabulary(tiny_chat_model: Path, tmp_path: Path) -> None:
    """llama.cpp cuts texts into as many tokens as transformers, and what comes back is the same tokenizer."""
    pytest.importorskip("xllamacpp")
    from transformers import AutoTokenizer

    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{{ 'assistant:' }}"
    tokenizer = sentencepiece_tokenizer(template)
    folder = shutil.copytree(tiny_chat_model, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert len(tokenizer) <= config["vocab_size"]
    convert(folder, tmp_path / "model.gguf", "f32")
    assert read_header(tmp_path / "model.gguf").values["tokenizer.ggml.model"] == "llama"
    convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
    before, after = (AutoTokenizer.from_pretrained(each) for each in (folder, tmp_path / "back"))
    for text in (*PROMPTS, "  two spaces\n\n你好 😀", "The bridge</s> was opened"):
        assert after(text)["input_ids"] == before(text)["input_ids"], text


KINDS = ("plain", "biased", "half", "llama3", "linear", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("variant", KINDS)
def test_llama_cpp_computes_what_transformers_computes(variant: str, variants: dict[str, Path], tmp_path: Path) -> None:
    """The log-probabilities of the likeliest next tokens of a prompt, from both."""
    pytest.importorskip("xllamacpp")
    import torch
    from transformers import AutoModelForCausalLM

    from chatbot.engines import LoadOptions, open_engine
    from chatbot.engines.base import Generation

    folder = variants[variant]
    parity = convert(folder, tmp_path / "model.gguf", "f32")
    assert (parity.num_tokens, parity.by) == (128, "llama.cpp")
    assert parity.num_same >= 126
    model: Any = open_engine("llamacpp", str(tmp_path / "model.gguf"), LoadOptions(threads=1))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    compared = 0
    for prompt in PROMPTS:
        deltas = list(model.complete(prompt, Generation(max_tokens=4, logprobs=5)))
        told = next((each for delta in deltas for each in delta.logprobs), None)
        if told is None or len(model.tokenizer(told.token)["input_ids"]) != 1:
            continue  # the first character took several tokens, of which llama.cpp tells the last
        compared += 1
        with torch.inference_mode():
            logits_V = reference(torch.tensor([model.renderer.plain_ids(prompt)])).logits[0, -1]
        expected = logits_V.log_softmax(-1).topk(5).values.tolist()
        assert [value for _, value in told.top] == pytest.approx(expected, abs=0.02), prompt
    assert compared >= 3


@pytest.mark.parametrize("variant", ["plain", "biased", "mistral", "qwen2", "qwen3"])
def test_there_and_back_gives_the_same_model(variant: str, variants: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    write_gguf(variants[variant], tmp_path / "model.gguf", "f32")
    convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
    torch.testing.assert_close(logits(tmp_path / "back"), logits(variants[variant]))
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (variants[variant], tmp_path / "back"))
    text = "<|im_start|>user\nWhere is Zürich? 你好 😀<|im_end|>\n\n  1932"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert (after.chat_template, after.eos_token, after.bos_token) == (
        before.chat_template,
        before.eos_token,
        before.bos_token,
    )


@pytest.mark.parametrize(("kind", "bits"), [("f32", 32), ("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_each_type_stores_weights_as_its_name_says(
    kind: str, bits: float, tiny_chat_model: Path, tmp_path: Path
) -> None:
    """The blocks of Q8_0 and Q4_0 are 32 numbers with a scale of 16 bits: at most half a step away from the weight."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    convert(tiny_chat_model, tmp_path / "model.gguf", kind)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = load_file(tiny_chat_model / "model.safetensors")
    for name, theirs in (("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"),):
        tensor, weight = stored[name], weights[theirs]
        assert tensor.tensor_type.name == kind.upper()
        assert tensor.n_bytes * 8 == weight.size * bits
        near = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        steps = {"q8_0": 127, "q4_0": 8}.get(kind)
        largest = np.abs(weight.reshape(-1, 32)).max(axis=1, keepdims=True)
        allowed = largest / steps * 1.02 if steps else np.abs(weight.reshape(-1, 32)) / 2**11 + 1e-7
        assert (np.abs(near - weight).reshape(-1, 32) <= allowed).all()
    assert stored["token_embd.weight"].tensor_type.name == ("Q8_0" if kind == "q4_0" else kind.upper())
    assert stored["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert len(stored) == len(weights)


def test_a_killed_or_failed_run_leaves_nothing(tiny_chat_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_chat_model, folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        convert(folder, tmp_path / "out" / "model.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_other_architectures_are_refused_by_name(tiny_base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GPTNeoXForCausalLM cannot be written as GGUF yet; supported: LlamaForCausal"):
        convert(tiny_base_model, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, "rope scaling 'yarn'"),
        ("config.json", {"hidden_act": "gelu"}, "computes LlamaForCausalLM with silu, not gelu"),
        ("tokenizer.json", {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["x", 0.0]]}}, "not Unigram"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "cuts text in a way"),
        # It can be written, but what comes out is another model.
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "token ids differ|does not fit it"),
    ],
)
def test_what_cannot_be_written_is_refused(
    file: str, change: dict[str, Any], message: str, tiny_chat_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_chat_model, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "model.gguf")
    assert {each.name for each in tmp_path.iterdir()} == {"model"}


def test_the_command(tiny_chat_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    result = CliRunner().invoke(cli, [str(tiny_chat_model), "--out", str(target)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert target.read_bytes()[:4] == b"GGUF"
    assert target.stat().st_mode & 0o777 == 0o644
    assert "128 greedy tokens are the same" in result.stderr
    for arguments, message in (
        ([str(tmp_path / "none"), "--out", str(target)], "does not exist"),
        ([str(tiny_chat_model), "--out", str(target)], "exists; remove it first, or name another"),
        (
            [str(tiny_chat_model), "--out", str(target), "--type", "q3"],
            f"unknown type 'q3'; choose one of: {', '.join(TYPES)}",
        ),
    ):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 2
        assert message in result.stderr
