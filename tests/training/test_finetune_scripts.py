"""training/finetune_*.sh: what they start, the environment that changes it, and one that is really run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from training.config.door import compose
from training.estimate.known import known_config
from training.main import cli

TRAINING = Path(__file__).resolve().parents[2] / "training"
SCRIPTS = {path.name.removeprefix("finetune_").removesuffix(".sh"): path for path in TRAINING.glob("finetune_*.sh")}
# Script -> (stages, pipelines).
SHAPES = {
    "gpt-neoxt-chat-base-20b": (8, 1),
    "pythia-chat-base-7b": (4, 2),
    "redpajama-incite-chat-3b": (8, 1),
    "redpajama-incite-7b-chat": (8, 1),
    "llama-2-7b-32k-mqa": (8, 1),
    "llama-2-7b-32k-booksum": (8, 1),
    "qwen3": (4, 1),
    "llama-3": (4, 1),
    "smollm3-3b": (4, 1),
    "smollm2-135m": (2, 1),
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "head_dim": 16,
    "num_key_value_heads": 2,
}


def run(path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("FINETUNE_")}
    command = ["bash", str(path), *arguments]
    return subprocess.run(command, env={**ours, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture
def says(tmp_path: Path) -> str:
    """In Python's place: a command that tells what it was given."""
    path = tmp_path / "says"
    path.write_text('#!/bin/sh\nprintf "%s\\n" "${WORLD_SIZE:-}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def said(path: Path, says: str, *arguments: str, **environment: str) -> list[str]:
    done = run(path, *arguments, PYTHON=says, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def small_model(name: str, folder: Path) -> Path:
    """A configuration of the same architecture, and small."""
    known = json.loads(known_config(name) or "")
    folder.mkdir()
    sizes = {key: SMALL[key] for key in SMALL if key in known}
    (folder / "config.json").write_text(json.dumps({**known, **sizes, "pad_token_id": None}))
    return folder


def test_all_scripts_are_known_here():
    assert set(SCRIPTS) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_the_plan_of_a_small_model_of_the_same_architecture(name, says, tmp_path):
    (model,) = [key[6:] for key in said(SCRIPTS[name], says) if key.startswith("model=")]
    small = small_model(model, tmp_path / "small")
    world, main, *keys = said(SCRIPTS[name], says, "--dry-run", "data.max_length=64", FINETUNE_MODEL_DIR=str(small))
    stages, pipelines = SHAPES[name]
    assert (world, main, keys[-1]) == (str(stages * pipelines), "training/main.py", "--dry-run")
    done = CliRunner(env={"WORLD_SIZE": world}).invoke(cli, keys)
    assert done.exit_code == 0, done.output
    assert len(re.findall(r"^ +\d +\d-\d ", done.output, re.MULTILINE)) == stages
    assert f"torchrun --nproc-per-node {stages * pipelines} training/main.py" in done.output
    kind = json.loads(known_config(model) or "")["model_type"]
    assert f"{small}: {kind}, 8 layers of width 64" in done.output


@pytest.mark.parametrize("name", SHAPES)
def test_torchrun_is_given_as_many_processes_as_there_are_stages(name, says):
    _, *command = said(SCRIPTS[name], says, "trainer.lr=3e-4")
    stages, pipelines = SHAPES[name]
    assert command[:5] == [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(stages * pipelines),
        "training/main.py",
    ]
    config = compose(command[5:])
    assert (config.distributed.stages, config.distributed.data_parallel) == (stages, pipelines)
    assert config.trainer.lr == 3e-4  # what is told last holds


def test_the_environment_changes_what_openchatkits_did(says):
    told = {
        "FINETUNE_TOTAL_STEPS": "7",
        "FINETUNE_CHECKPOINT_STEPS": "3",
        "FINETUNE_CHECKPOINT_PATH": "model_ckpts/mine",
        "FINETUNE_DATA": "a.jsonl:2,b.jsonl",
        "FINETUNE_STAGES": "2",
        "FINETUNE_DATA_PARALLEL": "3",
        "FINETUNE_DEVICE": "cpu",
    }
    _, *command = said(SCRIPTS["pythia-chat-base-7b"], says, **told)
    config = compose(command[5:])
    assert command[3] == "6"
    assert (config.trainer.max_steps, config.trainer.save_every) == (7, 3)
    assert (config.trainer.output, config.data.train) == ("model_ckpts/mine", "a.jsonl:2,b.jsonl")
    assert config.model.device == "cpu"
    _, *command = said(SCRIPTS["pythia-chat-base-7b"], says, FINETUNE_TORCHRUN="--nnodes 2 --rdzv-endpoint host:29500")
    assert command[2:8] == ["--nproc-per-node", "4", "--nnodes", "2", "--rdzv-endpoint", "host:29500"]


def test_whole_models_side_by_side_are_no_pipeline(says):
    _, *command = said(SCRIPTS["qwen3"], says, FINETUNE_SIZE="0.6b", FINETUNE_DATA_PARALLEL="4")
    config = compose(command[5:])
    assert command[3] == "4"
    assert (config.distributed.mode.value, config.model.name) == ("data", "qwen3-0.6b")
    done = run(SCRIPTS["qwen3"], FINETUNE_SIZE="5b", PYTHON=says)
    assert done.returncode == 2
    assert "choose one of: 0.6b, 1.7b, 4b" in done.stderr


def test_openchatkits_defaults(says):
    def keys(name: str) -> Any:
        return compose(said(SCRIPTS[name], says)[6:])

    neox, pythia, llama = keys("gpt-neoxt-chat-base-20b"), keys("pythia-chat-base-7b"), keys("llama-2-7b-32k-mqa")
    assert [each.trainer.lr for each in (neox, pythia, llama)] == [1e-6, 1e-5, 2e-5]
    assert [each.trainer.accumulate for each in (neox, pythia, llama)] == [64, 32, 4]
    assert [each.data.max_length for each in (neox, pythia, llama)] == [2048, 2048, 32768]
    assert [each.trainer.max_steps for each in (neox, pythia, llama)] == [20000, 20000, 10]


def test_from_start_to_a_model_that_loads(tiny_chat_model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "run"
    done = run(
        SCRIPTS["smollm2-135m"],
        "trainer.batch_size=1",
        f"data.cache={tmp_path / 'cache'}",
        PYTHON=sys.executable,
        FINETUNE_MODEL_DIR=str(tiny_chat_model),
        FINETUNE_CHECKPOINT_PATH=str(out),
        FINETUNE_TOTAL_STEPS="2",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    model, before = (AutoModelForCausalLM.from_pretrained(each) for each in (out, tiny_chat_model))
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert all(changed)
    assert AutoTokenizer.from_pretrained(out).chat_template
