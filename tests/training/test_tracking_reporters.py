"""Trackers by name: what they write to disk holds the configuration and the values, and no secret."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.tracking.reporters import TRACKERS, _wandb_id, reporters

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "HF_TOKEN": "hf_environmentsecretone",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_ACCESS_KEY_ID": "environment-secret-two",
    "AWS_SECRET_ACCESS_KEY": "environment-secret-three",
    "OPENAI_API_KEY": "environment-secret-four",
}
CONFIG = {
    "model": {"name": "a-visible-model-name", "hub_token": "config-secret-one", "use_auth_token": True},
    "data": {"train": "https://user:config-secret-two@host/rows.jsonl"},
    "note": "sk-config-secret-three-0123456789",
    "copied": "from the environment: environment-secret-two",
}
HIDDEN = ["config-secret", "environment-secret", "environmentsecret", *SECRETS.values(), "argument-secret"]

RUN = """
import json, sys
from pathlib import Path
from transformers import TrainerState
from training.tracking.reporters import reporters
name, run, config, start, stop = sys.argv[1:6]
run, config, start, stop = Path(run), json.loads(config), int(start), int(stop)
state = TrainerState(global_step=start, max_steps=6, is_world_process_zero=True)
(reporter,) = reporters([name], config, run)
reporter.on_train_begin(None, state, None)
print("the console says environment-secret-four")
for step in range(start + 1, stop + 1):
    state.global_step = step
    reporter.on_log(None, state, None, logs={"loss": 10.0 * start + step, "note": "sample environment-secret-two"})
    if step == 2:
        reporter.on_log(None, state, None, logs={"eval_loss": 7.5})
if "--kill" not in sys.argv:
    reporter.on_train_end(None, state, None)
    reporter.on_log(None, state, None, logs={"eval_loss": 7.25})
    reporter.on_train_end(None, state, None)
"""


def report(name: str, folder: Path, start: int = 0, stop: int = 4, *more: str) -> None:
    """A run in a process of its own, with secrets in environment, configuration, values, arguments and output."""
    (folder / "home").mkdir(exist_ok=True)
    (folder / "a-run").mkdir(exist_ok=True)
    own = {"HOME": str(folder / "home"), "WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "home" / "trackio")}
    arguments = [name, str(folder / "a-run"), json.dumps(CONFIG), str(start), str(stop), "argument-secret", *more]
    command = [sys.executable, "-c", RUN, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | SECRETS | own, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr


def written(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in TRACKERS])
def test_no_secret_is_written(name, tmp_path):
    report(name, tmp_path)
    files = written(tmp_path)
    everything = b"\n".join(files.values())
    assert b"a-visible-model-name" in everything  # so that a secret would be seen too
    assert b"loss" in everything
    for secret in HIDDEN:
        assert [path for path, content in files.items() if secret.encode() in content] == []


@needs("tensorboard")
def test_a_resumed_run_has_one_curve_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report("tensorboard", tmp_path, 0, 4, "--kill")
    report("tensorboard", tmp_path, 2, 6)
    events = EventAccumulator(str(tmp_path / "a-run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        *((1, 1.0), (2, 2.0)),
        *((3, 23.0), (4, 24.0), (5, 25.0), (6, 26.0)),
    ]
    assert events.Scalars("eval/loss")[0].value == 7.5


@needs("wandb")
def test_a_resumed_run_goes_on_under_its_id_in_wandb(tmp_path):
    first = _wandb_id(tmp_path / "id.txt", resumed=False)
    assert re.fullmatch(r"[0-9a-f]{8}", first)
    assert _wandb_id(tmp_path / "id.txt", resumed=True) == first
    assert _wandb_id(tmp_path / "id.txt", resumed=False) != first


def test_an_unknown_name_lists_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'tensorbord'; choose from: tensorboard, wandb, trackio"):
        reporters(["tensorbord"], {}, tmp_path)


def test_no_names_no_reporters(tmp_path):
    assert reporters([], {}, tmp_path) == []


@pytest.mark.skipif(all(importlib.util.find_spec(name) for name in TRACKERS), reason="all are installed")
def test_a_missing_package_is_named_with_what_installs_it(tmp_path):
    missing = next(name for name in TRACKERS if importlib.util.find_spec(name) is None)
    with pytest.raises(ValueError, match=f"pip install {missing}"):
        reporters([missing], {}, tmp_path)
