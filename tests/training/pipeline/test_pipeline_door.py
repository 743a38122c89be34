"""Whole runs cut into stages, against the same runs in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from door_cases import MOVED

from training.adapters import open_adapter
from training.config.door import compose
from training.main import cli
from training.methods import method_run
from training.pipeline.plan import plan_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("door")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("door_cases.py")), str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


def logged(run: Path) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = ("loss", "eval_loss", "grad_norm", "learning_rate")
    return {kind: [line[kind] for line in lines if kind in line] for kind in kinds}


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: each for file in run.glob("*.safetensors") for name, each in load_file(file).items()}


def furthest(first: Path, second: Path) -> float:
    own, other = weights(first), weights(second)
    assert own.keys() == other.keys()
    return max(float((own[name] - other[name]).abs().max()) for name in own)


@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        ("stages", "one"),
        ("square", "one"),
        ("adapter-stages", "adapter"),
        ("prefix-stages", "prefix"),
        ("packed-stages", "packed"),
    ],
)
def test_a_run_in_stages_is_the_run_of_one_process(runs, cut, whole):
    expected, found = logged(runs / whole), logged(runs / cut)
    assert len(expected["loss"]) >= 3
    assert expected["loss"][-1] < expected["loss"][0]
    for kind, values in expected.items():
        assert found[kind] == pytest.approx(values, rel=3e-5), kind
    assert furthest(runs / cut, runs / whole) < 2e-5


def test_bf16_in_stages_rounds_like_bf16_in_one_process(runs):
    full, expected, found = (logged(runs / name) for name in ("one", "halves", "halves-stages"))
    assert expected["loss"] != pytest.approx(full["loss"], rel=1e-6)
    assert found["loss"] != pytest.approx(full["loss"], rel=1e-6)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2)  # 8 bits: 2^-8 for each number
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-3)


@pytest.mark.parametrize("name", MOVED)
def test_a_run_goes_on_with_other_stages(runs, name):
    assert logged(runs / name)["loss"][-3:] == pytest.approx(logged(runs / "one")["loss"][-3:], rel=3e-5)
    assert furthest(runs / name, runs / "one") < 2e-5
    assert len(list((runs / name).glob("model*.safetensors"))) == MOVED[name][0]


def test_what_is_told_of_a_run_is_of_the_whole_model(runs):
    whole, cut = (json.loads((runs / name / "run.json").read_text())["model"] for name in ("one", "stages"))
    assert {name: cut[name] for name in whole} == whole
    assert cut["stages"] == [2, 2]
    adapted, in_stages = (
        json.loads((runs / name / "run.json").read_text())["model"] for name in ("adapter", "adapter-stages")
    )
    assert in_stages["trainable"] == adapted["trainable"]
    assert in_stages["parameters"] == adapted["parameters"]
    rows = [
        json.loads(line)["train_samples_per_second"] * json.loads(line)["train_runtime"]
        for name in ("one", "stages", "square")
        for line in (runs / name / "metrics.jsonl").read_text().splitlines()
        if "train_runtime" in line
    ]
    assert rows == pytest.approx([rows[0]] * 3, rel=0.02)


def test_a_finished_run_loads_as_a_model(runs):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    made = AutoModelForCausalLM.from_pretrained(runs / "stages")
    assert made.config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(runs / "stages").chat_template
    assert GenerationConfig.from_pretrained(runs / "stages").eos_token_id is not None
    adapter = open_adapter(made, runs / "adapter-stages")
    opened = [name for name, each in adapter.named_parameters() if each.requires_grad]
    assert len(opened) == len(weights(runs / "adapter-stages"))
    settings = json.loads((runs / "adapter-stages" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(runs / "model")


BASE = ("method=sft", "model=m", "data=d", "distributed=pipeline")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("model.from_scratch=true",), "exclude each other"),
        (("trainer.compile=true",), "exclude each other"),
        (("distributed.fsdp.x=1",), "exclude each other"),
        (("distributed.schedule=2f2b",), "no pipeline schedule '2f2b'"),
        (("distributed.schedule=zbv", "distributed.stages=3"), "stages=3 cannot be shared by processes with 2"),
    ],
)
def test_what_a_pipeline_does_not_have_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        plan_of(compose([*BASE, *settings]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((), "need 2 processes, not 1; start so many with torchrun --nproc-per-node 2"),
        (("distributed.stages=9", "trainer.accumulate=9"), "need 9 processes, not 1"),
        (("method=dpo",), "distributed=pipeline is not for method=dpo"),
        (
            ("distributed.stages=1", "peft=prompt_tuning", "peft.options={num_virtual_tokens:4}"),
            "puts virtual tokens before a text",
        ),
        (("model.device=cuda",), "cuda"),
    ],
)
def test_a_run_that_cannot_be_is_told_in_one_line(tiny_chat_model, tmp_path, settings, told):
    data = tmp_path / "d.jsonl"
    data.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    given = ["method=sft", f"model={tiny_chat_model}", f"data={data}", "distributed=pipeline", "model.device=cpu"]
    given += [f"trainer.output={tmp_path / 'run'}", "trainer.accumulate=2"]
    taken = {each.partition("=")[0] for each in settings}
    result = CliRunner().invoke(cli, [*(each for each in given if each.partition("=")[0] not in taken), *settings])
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_model_with_too_few_layers_is_refused_before_it_is_read(tiny_chat_model):
    config = compose([f"model={tiny_chat_model}", "method=sft", "data=d", "distributed=pipeline", "model.device=cpu"])
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(tiny_chat_model)
    config.distributed.stages = settings.num_hidden_layers + 1
    with pytest.raises(ValueError, match=f"{settings.num_hidden_layers} layers cannot make"):
        plan_of(config).cuts(settings, tokens=64)


def test_encoder_decoders_are_refused(tmp_path, tiny_chat_model):
    from transformers import AutoTokenizer, T5Config

    AutoTokenizer.from_pretrained(tiny_chat_model).save_pretrained(tmp_path)
    T5Config(vocab_size=400).save_pretrained(tmp_path)
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "Hi", "response": "Hello."}\n')
    config = compose(
        [f"model={tmp_path}", "method=sft", f"data={data}", "distributed=pipeline", "distributed.stages=1"]
    )
    with pytest.raises(ValueError, match="encoder and a decoder is not cut"):
        method_run("sft")(config)
