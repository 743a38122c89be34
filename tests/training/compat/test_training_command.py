"""`python training/main.py` as people meet it: its help, and one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from training.main import cli

ROOT = Path(__file__).resolve().parents[3]


def test_the_help_names_what_it_takes() -> None:
    done = subprocess.run(
        [sys.executable, "training/main.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    for word in (
        "KEY=VALUE",
        "--config",
        "--show",
        "method=sft model=",
        "data=",
        "train_mode=",
    ):
        assert word in done.stdout
    for page in ("docs/training-reference.md", "docs/migrating.md"):
        assert page in done.stdout
        assert (ROOT / page).is_file()


def test_show_prints_a_whole_configuration_and_does_nothing(tmp_path: Path) -> None:
    import yaml

    keys = ["train_mode=sft", "train_data=d.json", "pretrained_path=m", "device=cpu", "use_auth_token=hf_not_shown"]
    done = CliRunner().invoke(
        cli, [*keys, "eval_mode=chat", f"save_folder={tmp_path / 'r'}", "--show"], env={"HF_TOKEN": ""}
    )
    assert done.exit_code == 0, done.output
    shown = yaml.safe_load(done.stdout)
    assert shown["trainer"]["lr"] == 0.001
    assert shown["evaluation"]["mode"] == "chat"
    assert "not_shown" not in done.output
    assert not (tmp_path / "r").exists()
    again = CliRunner().invoke(cli, ["--show", "method=sft", "model=m", "data=d"])
    assert yaml.safe_load(again.stdout)["model"]["name"] == "m"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ((), "method= is missing; choose one of: ntp, sft"),
        (("method=sft",), "model= is missing"),
        (("method=sft", "model=MODEL"), "data= is missing"),
        (("method=sfd", "model=MODEL", "data=DATA"), "did you mean sft?"),
        (("method=sft", "model=MODEL", "data=DATA", "trainer.bach_size=3"), "did you mean trainer.batch_size?"),
        (("method=sft", "model=MODEL", "data=DATA", "trainer.epochs=many"), "trainer.epochs: Value 'many'"),
        (("method=sft", "model=MODEL", "data=nowhere.jsonl"), "nowhere.jsonl"),
        (("method=sft", "model=./nowhere", "data=DATA"), "model directory './nowhere' does not exist"),
        (("method=sft", "model=MODEL", "data=BAD"), "bad.jsonl:2: "),
        (("--config", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("train_mode=sft", "pretrained_path=MODEL", "train_data=nowhere.json"), "nowhere.json"),
        (("train_mode=sft", "pretrained_path=MODEL", "train_data=BAD"), "bad.jsonl:2: "),
        (
            ("train_mode=sft", "pretrained_path=MODEL", "train_data=DATA", "learning_rate=1"),
            "unknown key 'learning_rate'",
        ),
    ],
)
def test_a_mistake_is_one_line(keys: tuple[str, ...], told: str, tmp_path: Path, tiny_chat_model: Path) -> None:
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    (tmp_path / "good.jsonl").write_text(json.dumps(good) + "\n")
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + '\n{"messages": []}\n')
    places = {"MODEL": tiny_chat_model, "DATA": tmp_path / "good.jsonl", "BAD": tmp_path / "bad.jsonl"}
    given = []
    for each in keys:
        key, separator, value = each.partition("=")
        given.append(f"{key}{separator}{places.get(value, value)}")
    if any(each.startswith("method=") for each in given):
        given += ["model.device=cpu", f"trainer.output={tmp_path / 'run'}"]
    elif any(each.startswith("train_mode=") for each in given):
        given += ["device=cpu", f"save_folder={tmp_path / 'run'}"]
    done = CliRunner().invoke(cli, given, env={"PARLEY_HOME": str(tmp_path)})
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if not line.startswith("in Parley's own keys: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert told in lines[0]
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_a_mistake_leaves_the_process_with_2_and_without_a_traceback(tmp_path: Path, tiny_chat_model: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 3}\n')
    command = [sys.executable, "training/main.py", "method=sft", f"model={tiny_chat_model}", "model.device=cpu"]
    command += [f"data={tmp_path / 'bad.jsonl'}", f"trainer.output={tmp_path / 'run'}", f"data.cache={tmp_path / 'c'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "bad.jsonl:2: 'completion' must be text" in done.stderr
