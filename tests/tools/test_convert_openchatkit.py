"""OpenChatKit's stages become the model they were cut from; what is damaged, mixed or never filled is refused.

The checkpoints are made here from whole models, as OpenChatKit lays them out; those models are the oracle.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.convert_openchatkit import cli, convert

LAYERS = 5
KINDS = ("gpt_neox", "llama")
ENDS = {
    "gpt_neox": (
        "gpt_neox.layers",
        {"gpt_neox.embed_in.weight": "embed_in.weight"},
        {
            "gpt_neox.final_layer_norm.weight": "final_layer_norm.weight",
            "gpt_neox.final_layer_norm.bias": "final_layer_norm.bias",
            "embed_out.weight": "embed_out.weight",
        },
    ),
    "llama": (
        "model.layers",
        {"model.embed_tokens.weight": "embed_tokens.weight"},
        {"model.norm.weight": "norm.weight", "lm_head.weight": "lm_head.weight"},
    ),
}


def make_model(kind: str) -> Any:
    """A whole model with random weights, biases too."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 300}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0, "num_hidden_layers": LAYERS, "max_position_embeddings": 64}
    config = GPTNeoXConfig(**sizes) if kind == "gpt_neox" else LlamaConfig(**sizes)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


@pytest.fixture(scope="module")
def bases(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What training began with: config.json, tokenizer, and other weights, which must not come into it."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        model = make_model(kind)
        for parameter in model.parameters():
            parameter.data.fill_(7.0)
        model.save_pretrained(made[kind])
        for file in tiny_base_model.glob("tokenizer*"):
            shutil.copy(file, made[kind])
    return made


@cache
def values_of(kind: str) -> dict[str, Any]:
    """The model's tensors under the names that transformers stores them by."""
    from safetensors.torch import load_file

    with TemporaryDirectory() as folder:
        make_model(kind).save_pretrained(folder)
        return {name: each.clone() for name, each in load_file(Path(folder) / "model.safetensors").items()}


def save_stages(folder: Path, kind: str, counts: Sequence[int], half: bool = False, step: int = 100) -> Path:
    """`checkpoint_STEP` below `folder`, of stages of so many layers, with all that lies there besides."""
    import torch

    values = {name: each.half() if half else each for name, each in values_of(kind).items()}
    prefix, embedding, head = ENDS[kind]
    place = folder / f"checkpoint_{step}"
    place.mkdir(parents=True)
    layer = 0
    for rank, count in enumerate(counts):
        modules = [{new: values[old] for old, new in embedding.items()}] if rank == 0 else []
        for _ in range(count):
            start = f"{prefix}.{layer}."
            module = {name.removeprefix(start): each for name, each in values.items() if name.startswith(start)}
            if kind == "gpt_neox":
                module["attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
                module["attention.masked_bias"] = torch.tensor(-1e9)
                module["attention.rotary_emb.inv_freq"] = torch.ones(4)
            else:
                module["self_attn.rotary_emb.inv_freq"] = torch.ones(4)
            modules.append(module)
            layer += 1
        if rank == len(counts) - 1:
            modules.append({new: values[old] for old, new in head.items()})
        state = {f"{number}.{name}": each for number, module in enumerate(modules) for name, each in module.items()}
        torch.save(state, place / f"prank_{rank}_checkpoint.pt")
        torch.save({"state": {0: {"exp_avg": torch.zeros(3)}}}, place / f"prank_{rank}_optimizer.pt")
        scheduler = {"last_epoch": step, "_step_count": step + 1, "lr_lambdas": [None], "_last_lr": [1e-5]}
        torch.save(scheduler, place / f"prank_{rank}_scheduler.pt")
    (place / "meta.json").write_text(json.dumps({"step": step}))
    (folder / "latest").write_text(str(step))
    return place


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.arange(40).reshape(2, 20)).logits


def opened(folder: Path, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **more)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [(2, 2, 1), (5,), (1, 1, 1, 1, 1)], ids=str)
def test_logits_are_the_trained_models_to_the_bit(
    kind: str, counts: tuple[int, ...], bases: dict[str, Path], tmp_path: Path
) -> None:
    import torch

    place = save_stages(tmp_path / "theirs", kind, counts)
    lines = convert(place, tmp_path / "ours", str(bases[kind]))
    assert torch.equal(logits(opened(tmp_path / "ours")), logits(make_model(kind)))
    assert f"{len(counts)} stages of {', '.join(map(str, counts))} layers" in lines[0]
    constants = 15 if kind == "gpt_neox" else 5
    assert lines[1] == f"left out: {constants} masks and frequencies, which follow from config.json"
    assert lines[2] == f"left out: {2 * len(counts)} files of optimizers and schedulers"


@settings(max_examples=6, deadline=None)
@given(cuts=st.sets(st.integers(1, LAYERS - 1)))
def test_where_the_layers_are_cut_changes_nothing(
    cuts: set[int], bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from safetensors.torch import load_file

    bounds = [0, *sorted(cuts), LAYERS]
    folder = tmp_path_factory.mktemp("cuts")
    place = save_stages(folder, "gpt_neox", [end - start for start, end in pairwise(bounds)])
    convert(place, folder / "ours", str(bases["gpt_neox"]))
    written, expected = load_file(folder / "ours" / "model.safetensors"), values_of("gpt_neox")
    assert written.keys() == expected.keys()
    assert all(written[name].equal(each) for name, each in expected.items())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_and_the_command_finds_the_latest_step(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    import torch

    save_stages(tmp_path / "theirs", kind, (3, 2), step=90)
    save_stages(tmp_path / "theirs", kind, (3, 2), half=True)
    command = [
        str(tmp_path / "theirs"),
        str(tmp_path / "ours"),
        "--model",
        str(bases[kind]),
        "--max-shard-size",
        "80KB",
    ]
    result = CliRunner().invoke(cli, command)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert "checkpoint_100: 2 stages of 3, 2 layers" in result.stderr
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "float16"
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    assert (tmp_path / "ours" / "tokenizer.json").read_bytes() == (bases[kind] / "tokenizer.json").read_bytes()
    found, expected = opened(tmp_path / "ours"), make_model(kind).half()
    assert found.dtype == torch.float16
    assert all(torch.equal(each, found.state_dict()[name]) for name, each in expected.state_dict().items())
    torch.testing.assert_close(logits(found.float()), logits(make_model(kind)), atol=0.03, rtol=0)


def test_llama_was_scaled_beyond_4096_whatever_its_configuration_said(bases: dict[str, Path], tmp_path: Path) -> None:
    place, long = save_stages(tmp_path / "theirs", "llama", (3, 2)), shutil.copytree(bases["llama"], tmp_path / "long")
    config = json.loads((long / "config.json").read_text())
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 1e4, "rope_type": "linear", "factor": 8.0}),
        (
            {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0},
            {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0},
        ),
    ]
    for number, (said, trained) in enumerate(cases):
        (long / "config.json").write_text(
            json.dumps(config | {"max_position_embeddings": 32768, "rope_parameters": said})
        )
        lines = convert(place, tmp_path / str(number), str(long))
        assert opened(tmp_path / str(number)).config.rope_parameters == trained
        assert any("rotary settings" in line for line in lines) == (said != trained)
    said = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}
    (long / "config.json").write_text(json.dumps(config | {"rope_parameters": said}))
    with pytest.raises(ValueError, match="could not train with rotary scaling 'dynamic'"):
        convert(place, tmp_path / "no", str(long))


# What is refused -----------------------------------------------------------------------------------------------------


class Runs:
    """Pickled so that reading it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.folder,)


def changed(place: Path, rank: int, change: Callable[[dict[str, Any]], Any]) -> None:
    import torch

    file = place / f"prank_{rank}_checkpoint.pt"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)


def truncated(place: Path) -> None:
    file = place / "prank_1_checkpoint.pt"
    file.write_bytes(file.read_bytes()[:-2000])


def flipped(place: Path) -> None:
    file = place / "prank_1_checkpoint.pt"
    content = bytearray(file.read_bytes())
    weight = values_of("gpt_neox")["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"]
    content[content.index(weight.numpy().tobytes()) + 100] ^= 1
    file.write_bytes(content)


def mixed(place: Path) -> None:
    other = save_stages(place.parent, "gpt_neox", (2, 2, 1), step=200)
    for file in other.glob("prank_1_*"):
        shutil.copy(file, place)


def swapped(place: Path) -> None:
    first, last, away = place / "prank_0_checkpoint.pt", place / "prank_2_checkpoint.pt", place / "away"
    first.rename(away), last.rename(first), away.rename(last)


def set_nan(state: dict[str, Any]) -> None:
    state["0.mlp.dense_4h_to_h.bias"][3] = float("nan")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, r"prank_1_checkpoint\.pt cannot be read"),
    "a changed bit": (flipped, r"prank_1_checkpoint\.pt is damaged: .* has another sum than when it was written"),
    "empty": (lambda place: (place / "prank_1_checkpoint.pt").write_bytes(b""), r"prank_1_checkpoint\.pt "),
    "no stage": (lambda place: (place / "prank_1_checkpoint.pt").unlink(), r"has no prank_1_checkpoint\.pt"),
    "no last stage": (lambda place: (place / "prank_2_checkpoint.pt").unlink(), "the 2 stages in .* do not go from"),
    "two steps": (mixed, "mixes stages of different steps .step 100: 0, 2; step 200: 1"),
    "swapped": (swapped, "the 3 stages in .* do not go from the embedding over layers to norm and head"),
    "a tensor less": (
        lambda place: changed(place, 1, lambda state: state.pop("1.mlp.dense_h_to_4h.weight")),
        r"missing: gpt_neox\.layers\.3\.mlp\.dense_h_to_4h\.weight$",
    ),
    "a layer less": (
        lambda place: changed(place, 1, lambda state: [state.pop(name) for name in list(state) if name[0] == "1"]),
        r"has 4 layers \(3 stages of 2, 1, 1\), but .* has 5",
    ),
    "a layer between": (
        lambda place: changed(place, 1, lambda state: [state.pop(name) for name in list(state) if name[0] == "0"]),
        "has modules 1: one is missing",
    ),
    "a tensor more": (
        lambda place: changed(place, 0, lambda state: state.update({"1.attention.lora_A": state["1.attention.bias"]})),
        r"not part of it: gpt_neox\.layers\.0\.attention\.lora_A",
    ),
    "another shape": (
        lambda place: changed(
            place, 2, lambda state: state.update({"1.embed_out.weight": state["1.embed_out.weight"].T})
        ),
        r"of another shape: embed_out\.weight \[32, 300\] instead of \[300, 32\]",
    ),
    "never filled": (
        lambda place: changed(place, 2, lambda state: state["1.final_layer_norm.weight"].zero_()),
        r"gpt_neox\.final_layer_norm\.weight is all zero: it was never filled",
    ),
    "not a number": (
        lambda place: changed(place, 1, set_nan),
        r"gpt_neox\.layers\.2\.mlp\.dense_4h_to_h\.bias has infinite numbers or NaN",
    ),
    "no tensors": (
        lambda place: changed(place, 1, lambda state: state.update({"step": 3})),
        "has 'step', which is no tensor of a stage's module",
    ),
    "a pickle that runs": (
        lambda place: changed(place, 1, lambda state: state.update({"0.x": Runs(place / "ran")})),
        "is damaged, or holds something else than tensors and plain values",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line_and_nothing_is_written(
    damage: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    place = save_stages(tmp_path / "theirs", "gpt_neox", (2, 2, 1))
    damaging, message = DAMAGES[damage]
    damaging(place)
    with pytest.raises(ValueError, match=message):
        convert(place, tmp_path / "out" / "ours", str(bases["gpt_neox"]))
    result = CliRunner().invoke(cli, [str(place), str(tmp_path / "out" / "ours"), "--model", str(bases["gpt_neox"])])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert not any((tmp_path / "out").glob("*"))
    assert not (place / "ran").exists()


def test_other_mistakes_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    place = save_stages(tmp_path / "theirs", "gpt_neox", (3, 2))
    short = shutil.copytree(bases["gpt_neox"], tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    cases = (
        (place, "ours", short, r"has 5 layers \(2 stages of 3, 2\), but .* has 4"),
        (place, "ours", bases["llama"], "is --model of the right kind"),
        (place, "ours", tmp_path / "bert", "is a bert; OpenChatKit's checkpoints are gpt_neox or llama"),
        (tmp_path / "empty", "ours", short, r"has no prank_0_checkpoint\.pt; name"),
        (tmp_path / "none", "ours", short, "is no directory"),
        (place, "there", bases["gpt_neox"], "there exists; remove it first"),
    )
    for checkpoint, out, model, message in cases:
        with pytest.raises(ValueError, match=message):
            convert(checkpoint, tmp_path / out, str(model))
    (tmp_path / "theirs" / "latest").write_text("../..")
    with pytest.raises(ValueError, match=r"names step '\.\./\.\.', of which there is no folder"):
        convert(tmp_path / "theirs", tmp_path / "ours", str(bases["gpt_neox"]))
    assert not (tmp_path / "ours").exists()
