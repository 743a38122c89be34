"""One directory out of what training writes: equal to its source tensor by tensor and in what it says, or refused.

Two processes (sharding_cases.py) write the checkpoints of pipelines and of FSDP; transformers, torch's own gathering of
shards and the model that was there before are the oracles.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from two_processes import run_on_two

from tools.convert_checkpoint import cli, convert, convert_adapter, find_checkpoint
from tools.merge_lora import merge
from tools.model_writing import expected
from tools.parity import Reference, check_directory

ROOT = Path(__file__).resolve().parents[2]


def save_model(folder: Path, kind: str, tokenizer_of: Path, **more: Any) -> Path:
    """A model of four layers with random weights, and the tokenizer of another."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 400}
    sizes |= {"num_hidden_layers": 4, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0, **more}
    config = GPTNeoXConfig(**sizes) if kind == "neox" else LlamaConfig(**sizes, tie_word_embeddings=kind == "tied")
    config.initializer_range = 0.3
    torch.manual_seed(len(kind))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer_of / name, folder)
    return folder


def under_own_names(folder: Path, target: Path) -> None:
    """A copy with tensors named as in the modules, which stages read: a head is stored as `embed_out` by gpt_neox."""
    from safetensors.torch import save_file

    shutil.copytree(folder, target)
    names = {"embed_out.weight": "lm_head.weight"}
    tensors = {names.get(name, name): each for name, each in tensors_in(folder).items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def sharded(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, in all cases: started once."""
    folder = tmp_path_factory.mktemp("sharded")
    for kind in ("llama", "tied", "neox"):
        save_model(folder / kind, kind, tiny_chat_model)
        under_own_names(folder / kind, folder / "own" / kind)
    return run_on_two(Path(__file__).with_name("sharding_cases.py"), folder)


def tensors_in(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: each for file in sorted(folder.glob("model*.safetensors")) for name, each in load_file(file).items()}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(each.equal(wanted[name]) for name, each in found.items())


def logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.inference_mode():
        return model.eval()(torch.arange(40).reshape(2, 20)).logits


def as_checkpoint(folder: Path, run: Path, step: int = 1) -> Path:
    """A copy of a model in a run's folder."""
    place = run / "checkpoints" / f"step-{step:06d}"
    shutil.copytree(folder, place)
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (run / "run.json").write_text("{}")
    return place


# What training writes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "tied", "neox"])
def test_a_model_cut_into_stages_and_put_together_is_the_same_to_the_bit(
    kind: str, sharded: Path, tmp_path: Path
) -> None:
    assert len(list((sharded / f"pipeline-{kind}").glob("*.safetensors"))) == 2
    convert(sharded / f"pipeline-{kind}", tmp_path / "whole")
    assert [each.name for each in (tmp_path / "whole").glob("*.safetensors")] == ["model.safetensors"]
    assert same(tensors_in(tmp_path / "whole"), tensors_in(sharded / kind))


@pytest.mark.parametrize("kind", ["llama", "tied", "neox"])
def test_a_trained_pipeline_says_the_same_from_one_directory(kind: str, sharded: Path, tmp_path: Path) -> None:
    import torch

    place = as_checkpoint(sharded / f"trained-{kind}", tmp_path / "run")
    lines = convert(tmp_path / "run", tmp_path / "whole", max_shard_size="60KB")
    assert str(place) in lines[0]
    assert lines[1] == f"it has no tokenizer, since {place} has none"
    assert torch.equal(logits(tmp_path / "whole"), logits(place))
    assert not same(tensors_in(tmp_path / "whole"), tensors_in(sharded / kind)), "it has learned"
    files = list((tmp_path / "whole").glob("*.safetensors"))
    assert len(files) > 2
    assert all(each.stat().st_size < 64_000 for each in files)


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_shards_of_fsdp_are_what_torch_gathers(kind: str, sharded: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    lines = convert(sharded / f"fsdp-{kind}", tmp_path / "whole", model=str(sharded / kind))
    gathered = load_file(sharded / f"gathered-{kind}.safetensors")
    written = tensors_in(tmp_path / "whole")
    assert same(written, {name: gathered[name] for name in written})
    assert gathered.keys() - written.keys() == ({"lm_head.weight"} if kind == "tied" else set())
    logits(tmp_path / "whole")
    others = [line for line in lines if "besides the model, which are left out" in line]
    assert len(others) == (kind == "tied")
    assert (tmp_path / "whole" / "chat_template.jinja").is_file()
    # The folder of shards itself will do too.
    inner = sharded / f"fsdp-{kind}" / "pytorch_model_fsdp_0"
    convert(inner, tmp_path / "again", model=str(sharded / kind))
    assert same(tensors_in(tmp_path / "again"), written)


# peft 0.21 asks transformers 5.23 for a property by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapter_over_stages_is_merged(sharded: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    place = shutil.copytree(sharded / "adapter", tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter; --merge adds it to its base model"):
        convert(place, tmp_path / "none")
    command = [str(place), str(tmp_path / "merged"), "--merge", "--model", str(sharded / "tied"), "--dtype", "bf16"]
    result = CliRunner().invoke(cli, [*command, "--max-shard-size", "60KB"])
    assert result.exit_code == 0, result.stderr
    assert "4 conversations have the same text and token ids" in result.stderr
    merge(str(place), tmp_path / "oracle", str(sharded / "tied"))
    written, wanted = tensors_in(tmp_path / "merged"), load_file(tmp_path / "oracle" / "model.safetensors")
    assert same(written, {name: each.bfloat16() for name, each in wanted.items()})
    assert not same(wanted, tensors_in(sharded / "tied"))
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    with pytest.raises(ValueError, match="is no adapter, and there is nothing to merge"):
        convert_adapter(sharded / "tied", tmp_path / "none")
    assert torch.isfinite(logits(tmp_path / "merged")).all()


# What is written -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("source") / "model", "tied", tiny_chat_model)


@pytest.mark.parametrize(("dtype", "name"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_numbers_get_the_type_asked_for(dtype: str, name: str, source: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    command = [str(source), str(tmp_path / "out"), "--dtype", dtype, "--parity", "--max-shard-size", "50KB"]
    result = CliRunner().invoke(cli, command)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert f"in {name}" in result.stderr
    assert "4 conversations have the same text and token ids" in result.stderr
    wanted = {key: each.to(getattr(torch, name)) for key, each in tensors_in(source).items()}
    assert same(tensors_in(tmp_path / "out"), wanted)
    assert str(AutoConfig.from_pretrained(tmp_path / "out").dtype) == f"torch.{name}"
    # The repository's gate, and the same files as transformers makes of it.
    model = AutoModelForCausalLM.from_pretrained(source)
    reference = Reference.of(model.eval(), AutoTokenizer.from_pretrained(source))
    assert check_directory(reference, tmp_path / "out", name).num_tokens == 128
    model.to(getattr(torch, name)).save_pretrained(tmp_path / "oracle", max_shard_size="50KB")
    files = sorted(each.name for each in (tmp_path / "oracle").glob("*.safetensors"))
    assert sorted(each.name for each in (tmp_path / "out").glob("*.safetensors")) == files
    index = [json.loads((tmp_path / each / "model.safetensors.index.json").read_text()) for each in ("out", "oracle")]
    assert index[0]["weight_map"].keys() == index[1]["weight_map"].keys()
    assert index[0]["metadata"]["total_size"] == index[1]["metadata"]["total_size"]


def test_config_tokenizer_and_template_come_along_and_nothing_else(source: Path, tmp_path: Path) -> None:
    place = shutil.copytree(source, tmp_path / "checkpoint")
    (place / "training").mkdir()
    for name in ("trainer_state.json", "run.json", "parley.json", "optimizer.pt", "training/optimizer.json"):
        (place / name).write_text("{}")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"my_key": [1, 2]}))
    convert(place, tmp_path / "out")
    names = {"config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {each.name for each in (tmp_path / "out").iterdir()} == names
    for name in names - {"config.json", "model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (place / name).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config | {"my_key": [1, 2]}


def test_of_a_run_its_model_is_taken_or_its_newest_checkpoint(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    as_checkpoint(source, run, 1)
    newest = as_checkpoint(source, run, 20)
    assert find_checkpoint(run) == newest
    assert find_checkpoint(newest) == newest
    shutil.copytree(source, run, dirs_exist_ok=True)
    assert find_checkpoint(run) == run
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "prank_0_checkpoint.pt").write_bytes(b"")
    deepspeed = tmp_path / "deepspeed"
    deepspeed.mkdir()
    (deepspeed / "zero_to_fp32.py").write_text("")
    for place, message in (
        (theirs, r"is OpenChatKit's; convert it with tools/convert_openchatkit\.py"),
        (deepspeed, r"is DeepSpeed's; its own script there makes weights of it: zero_to_fp32\.py"),
        (tmp_path / "none", "is no directory"),
        (tmp_path, "is neither a checkpoint nor a run with one"),
    ):
        with pytest.raises(ValueError, match=message):
            find_checkpoint(place)


def test_experts_are_taken_in_either_form(tiny_chat_model: Path, tmp_path: Path) -> None:
    """transformers stores experts one by one, and its modules hold them together."""
    import torch
    from safetensors.torch import save_file
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, vocab_size=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "stored")
    shutil.copytree(tmp_path / "stored", tmp_path / "own")
    save_file(dict(model.state_dict()), tmp_path / "own" / "model.safetensors", {"format": "pt"})
    for form in ("stored", "own"):
        convert(tmp_path / form, tmp_path / f"{form}-out")
        assert torch.equal(logits(tmp_path / f"{form}-out"), logits(tmp_path / "stored"))
    names = tensors_in(tmp_path / "stored")
    assert expected(tmp_path / "stored", names).shapes.keys() == names.keys()


def test_memory_is_bounded_by_a_shard(tiny_chat_model: Path, tmp_path: Path) -> None:
    """The most that a process held beside what it held before, reading a model of many shards in one file."""
    from safetensors.torch import load_file

    big = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 4000}
    folder = save_model(tmp_path / "big", "llama", tiny_chat_model, **big)
    size, shard = (folder / "model.safetensors").stat().st_size, 16_000_000
    assert size > 12 * shard
    small = save_model(tmp_path / "small", "llama", tiny_chat_model)
    code = f"""
import json, sys
from pathlib import Path
from tools.convert_checkpoint import convert
def most():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
convert(Path({str(small)!r}), Path({str(tmp_path / "warm")!r}), "bf16")
found = []
for dtype in (None, "bf16"):
    Path("/proc/self/clear_refs").write_text("5")
    before = most()
    convert(Path({str(folder)!r}), Path({str(tmp_path)!r}) / f"out-{{dtype}}", dtype, "16MB")
    found.append(most() - before)
print(json.dumps(found))
"""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not tell a process's peak of memory anew")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert max(json.loads(done.stdout)) < 2 * shard
    assert len(list((tmp_path / "out-None").glob("*.safetensors"))) > 12
    assert same(tensors_in(tmp_path / "out-None"), load_file(folder / "model.safetensors"))


# What is refused -----------------------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], file: str = "model-00002-of-00002.safetensors") -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: each.clone() for name, each in load_file(folder / file).items()}
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def edit_json(folder: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
NAME = "model.layers.3.mlp.up_proj.weight"


def set_value(value: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        edit(folder, lambda tensors: tensors[NAME][3].fill_(value))

    return damage


def without(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.pop(NAME))
    edit_json(folder, INDEX, lambda index: index["weight_map"].pop(NAME))


def with_more(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"model.extra": tensors[NAME].clone()}))
    edit_json(folder, INDEX, lambda index: index["weight_map"].update({"model.extra": SECOND}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor less": (without, rf"missing: {NAME}$"),
    "a tensor less than the index says": (
        lambda folder: edit(folder, lambda tensors: tensors.pop(NAME)),
        rf"index\.json and the files differ over where {NAME} is",
    ),
    "a tensor more": (with_more, "not part of it: model.extra"),
    "a tensor twice": (
        lambda folder: edit(
            folder, lambda tensors: tensors.update({"model.embed_tokens.weight": tensors[NAME].clone()})
        ),
        rf"model\.embed_tokens\.weight: in {SECOND} and in {FIRST}",
    ),
    "another shape": (
        lambda folder: edit(folder, lambda tensors: tensors.update({NAME: tensors[NAME].T.contiguous()})),
        r"up_proj\.weight \[32, 64\] instead of \[64, 32\]",
    ),
    "another configuration": (
        lambda folder: edit_json(folder, "config.json", lambda config: config.update({"num_hidden_layers": 5})),
        r"missing: model\.layers\.4\.self_attn\.q_proj\.weight.* and 5 more",
    ),
    "NaN": (set_value(float("nan")), f"{NAME} has infinite numbers or NaN"),
    "infinite": (set_value(-float("inf")), f"{NAME} has infinite numbers or NaN"),
    "never filled": (
        lambda folder: edit(folder, lambda tensors: tensors[NAME].zero_()),
        f"{NAME} is all zero: it was never filled",
    ),
    "a shard less": (lambda folder: (folder / SECOND).unlink(), rf"{SECOND} cannot be read"),
    "half a shard": (
        lambda folder: (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-500]),
        rf"{SECOND} cannot be read",
    ),
    "a shard of another": (
        lambda folder: shutil.copy(folder / SECOND, folder / "model-00003-of-00003.safetensors"),
        r"model-00003-of-00003\.safetensors, which .* does not name: two models in one folder",
    ),
    "no index": (lambda folder: (folder / INDEX).unlink(), "a part of the checkpoint is missing"),
    "an index that leads outside": (
        lambda folder: edit_json(
            folder, INDEX, lambda index: index["weight_map"].update({NAME: "../model.safetensors"})
        ),
        "has no list of tensors and their files",
    ),
    "no configuration": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json"),
    "unknown architecture": (
        lambda folder: edit_json(folder, "config.json", lambda config: config.update({"architectures": ["pipeline"]})),
        "names the architecture pipeline, which transformers does not have",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line_and_nothing_is_written(damage: str, sharded: Path, tmp_path: Path) -> None:
    place = shutil.copytree(sharded / "pipeline-llama", tmp_path / "checkpoint")
    damaging, message = DAMAGES[damage]
    damaging(place)
    with pytest.raises(ValueError, match=message):
        convert(place, tmp_path / "out" / "whole")
    result = CliRunner().invoke(cli, [str(place), str(tmp_path / "out" / "whole")])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert not any((tmp_path / "out").glob("*"))


def test_a_tied_tensor_is_written_once_and_must_be_the_same(source: Path, tmp_path: Path) -> None:
    place = shutil.copytree(source, tmp_path / "twice")
    head = {"lm_head.weight": tensors_in(source)["model.embed_tokens.weight"].clone()}
    edit(place, lambda tensors: tensors.update(head), "model.safetensors")
    convert(place, tmp_path / "once")
    assert same(tensors_in(tmp_path / "once"), tensors_in(source))
    head["lm_head.weight"][0, 0] += 1
    edit(place, lambda tensors: tensors.update(head), "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        convert(place, tmp_path / "other")


def test_other_mistakes_are_refused(source: Path, sharded: Path, tmp_path: Path) -> None:
    large = shutil.copytree(source, tmp_path / "large")
    edit(large, lambda tensors: tensors["model.norm.weight"].fill_(70000), "model.safetensors")
    fsdp, model = sharded / "fsdp-llama", str(sharded / "llama")
    (tmp_path / "there").mkdir()
    cases: list[tuple[Path, str, dict[str, Any], str]] = [
        (large, "out", {"dtype": "fp16"}, r"model\.norm\.weight has 70000, more than the 65504 .* use bf16"),
        (source, "out", {"max_shard_size": "5 bytes"}, "'5 bytes' is no size of shards"),
        (source, "there", {}, "there exists; remove it first, or name another"),
        (fsdp, "out", {}, "has no config.json; name the model that was trained with --model"),
        (fsdp, "out", {"model": str(sharded / "neox")}, "the tensors are not those of the model"),
        (fsdp, "out", {"model": model, "parity": True}, "cannot be loaded as it is"),
    ]
    for place, out, more, message in cases:
        with pytest.raises(ValueError, match=message):
            convert(place, tmp_path / out, **more)
    assert not (tmp_path / "out").exists()
    convert(large, tmp_path / "out", dtype="bf16")
