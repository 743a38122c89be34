"""`training/main.py --dry-run`: what it tells, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from training.estimate.models import model_config
from training.main import cli
from training.pipeline.plan import Plan

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a configuration alone."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def plan(*overrides: Any, **environment: str) -> Any:
    return CliRunner(env=environment).invoke(cli, [*map(str, overrides), "--dry-run"])


def test_a_run_of_one_process(model, tmp_path):
    data = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    data.write_text(f"{json.dumps(row)}\n" * 10)
    before = sorted(tmp_path.rglob("*"))
    keys = ("method=sft", f"model={model}", f"data={data}", "data.max_length=64", f"data.cache={tmp_path / 'cache'}")
    steps = ("trainer.batch_size=2", "trainer.epochs=3", "trainer.accumulate=2", f"trainer.output={tmp_path / 'run'}")
    done = plan(*keys, *steps)
    assert done.exit_code == 0, done.output
    assert "llama, 6 layers of width 32, a vocabulary of 300" in done.output
    assert "100.0% of them trained" in done.output
    assert "a step: 256 tokens at most" in done.output  # 2 rows of 64, twice
    assert "10 rows of data, 9 steps" in done.output  # 5 batches, 3 steps an epoch
    assert "it fits into" in done.output
    assert "torchrun" not in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pipeline_says_what_each_process_has_and_how_to_start_it(model):
    keys = ("method=sft", f"model={model}", "data=none.jsonl", "distributed=pipeline", "data.max_length=64")
    keys += (
        "distributed.stages=3",
        "distributed.layers=[1,2,3]",
        "distributed.data_parallel=2",
        "trainer.accumulate=4",
    )
    done = plan(*keys)
    assert done.exit_code == 0, done.output
    layers = re.findall(r"^ +(\d) +(\d-\d) ", done.output, re.MULTILINE)
    assert layers == [("0", "0-0"), ("1", "1-2"), ("2", "3-5")]
    assert "3 stages in the order 1f1b, 2 pipelines side by side: 6 processes" in done.output
    assert "torchrun --nproc-per-node 6 training/main.py method=sft" in done.output
    assert "steps are not known: none.jsonl: no such file or folder" in done.output
    assert f"a step: {8 * 64 * 4 * 2:,} tokens at most" in done.output


def refusal(plan_: Plan, processes: int) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # its words are what is compared
        plan_.check(processes)
    return str(error.value)


def test_it_refuses_what_the_run_would_in_the_same_words(model):
    keys = ("method=sft", f"model={model}", "data=x.jsonl", "distributed=pipeline", "trainer.accumulate=8")
    cases = {
        ("distributed.stages=7",): "6 layers cannot make 7 stages; between 1 and 6 are possible",
        ("distributed.stages=4", "trainer.accumulate=2"): refusal(Plan(4, micro_batches=2), 4),
        ("distributed.layers=[1,2]",): "do not make the model's 6",
        ("distributed.schedule=zbw",): "there is no pipeline schedule 'zbw'",
        ("method=reward",): "distributed=pipeline is not for method=reward",
    }
    for more, message in cases.items():
        replaced = [key for key in keys if key.partition("=")[0] not in {each.partition("=")[0] for each in more}]
        done = plan(*replaced, *more)
        assert done.exit_code == 2, done.output
        assert message in done.output
    done = plan(*keys, WORLD_SIZE="3")
    assert refusal(Plan(2, micro_batches=8), 3) in done.output


def test_processes_that_share_the_model(model, tmp_path):
    zero = tmp_path / "zero3.json"
    zero.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}))
    keys = ("method=sft", f"model={model}", "data=x.jsonl", "model.device=cuda", "data.max_length=64")
    told = {
        "DDP": plan(*keys, WORLD_SIZE="4").output,
        "FSDP": plan(*keys, "distributed.fsdp={reshard_after_forward: true}", WORLD_SIZE="4").output,
        "DeepSpeed": plan(*keys, f"distributed.deepspeed={zero}", WORLD_SIZE="4").output,
    }
    for name, output in told.items():
        assert f"4 processes with {name}" in output
        assert "each device needs" in output
    assert "of the host's memory for each process" in told["DeepSpeed"]
    zero.write_text(json.dumps({"zero_optimization": {"stage": 4}}))
    assert "stage=4; DeepSpeed has 0, 1, 2 and 3" in plan(*keys, f"distributed.deepspeed={zero}").output


def test_what_does_not_fit_is_said(model):
    done = plan("method=sft", f"model={model}", "data=x.jsonl", "trainer.batch_size=100000", "data.max_length=4096")
    assert done.exit_code == 0, done.output
    assert "it does not fit" in done.output
    assert "trainer.gradient_checkpointing=true" in done.output


def test_time_follows_from_a_peak_that_is_told(model):
    keys = (
        "method=sft",
        f"model={model}",
        "data=x.jsonl",
        "model.device=cuda",
        "data.max_length=64",
        "trainer.max_steps=50",
    )
    assert "time is not known for this device" in plan(*keys).output
    output = plan(*keys, "trainer.peak_tflops=1e-3").output
    operations = float(re.search(r"([\d.e+]+) floating-point", output)[1])
    assert f"about {operations / (1e9 * 0.4):.2g} s a step" in output
    assert f"about {50 * operations / (1e9 * 0.4):.2g} s for 50 steps" in output


def test_a_reference_model_weighs_as_well(model):
    keys = (f"model={model}", "data=x.jsonl", "data.max_length=64")

    def weights(*more: str) -> float:
        return float(re.search(r"^ +each +0-5 +[\d,]+ +([\d.]+)", plan(*keys, *more).output, re.MULTILINE)[1])

    wide = "model.from_scratch=true", "model.config={hidden_size: 4096, num_attention_heads: 16}"
    assert weights("method=dpo", *wide) == pytest.approx(2 * weights("method=sft", *wide), abs=0.011)


def test_models_that_are_not_at_hand(tmp_path):
    known = plan("method=sft", "model=llama-3.2-1b", "data=x.jsonl", "model.device=cuda", "peft=lora")
    assert "1,247,086,592 parameters, 0.9% of them trained" in known.output  # 1,235,814,400 and the adapter
    for name, message in {
        "nobody/nothing": "prepare it with: python tools/prepare_model.py nobody/nothing",
        str(tmp_path / "gone"): "does not exist",
        "minilm-like": "does not exist",
    }.items():
        done = plan("method=sft", f"model={name}", "data=x.jsonl")
        if name != "minilm-like":
            assert message in done.output
        assert done.exit_code == 2
    with pytest.raises(ValueError, match="cannot load model"):
        model_config(str(tmp_path))


def test_an_adapter_stands_for_its_base(model, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    assert model_config(str(folder)) == model_config(str(model))


def test_an_encoder_with_a_decoder_has_no_estimate(tmp_path):
    from transformers import T5Config

    T5Config(d_model=32, num_layers=2).save_pretrained(tmp_path)
    done = plan("method=sft", f"model={tmp_path}", "data=x.jsonl")
    assert done.exit_code == 2
    assert "there is no estimate for t5, which has an encoder and a decoder" in done.output


def test_a_mixture_of_experts_has_no_estimate(tmp_path):
    from transformers import MixtralConfig

    MixtralConfig(hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path)
    done = plan("method=sft", f"model={tmp_path}", "data=x.jsonl")
    assert done.exit_code == 2
    assert "there is no estimate for mixtral, a mixture of experts" in done.output


def test_there_is_nothing_to_plan_where_nothing_is_trained(model):
    done = plan("eval_mode=chat", f"pretrained_path={model}")
    assert done.exit_code == 2
    assert "--dry-run" in done.output
