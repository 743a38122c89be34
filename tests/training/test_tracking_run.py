"""What a run of the real Trainer leaves behind: log file, metrics, curve; also resumed, and ended by an error."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from training.tracking.callbacks import Tracking
from training.tracking.console import Console
from training.tracking.curves import CURVES
from training.tracking.logfile import LOG, run_log
from training.tracking.metrics import METRICS, MetricsFile
from training.tracking.throughput import ModelFlops, Throughput, TokenMeter

ROOT = Path(__file__).resolve().parents[2]


class Line(torch.nn.Module):
    """y = w x: the smallest thing that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.w * x - labels) ** 2).mean()}


class MeteredTrainer(Trainer):
    """How a trainer uses the meter: counts per batch, rates with each line of training."""

    def __init__(self, throughput: Throughput, **settings: Any) -> None:
        super().__init__(**settings)
        self.meter, self.throughput = TokenMeter(), throughput

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.meter.add(len(inputs["x"]), 1, seq_len=8)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= self.throughput.rates(*self.meter.take())
        super().log(logs, start_time)


class KilledError(Exception):
    """Stands for the end of the process."""


class Killer(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KilledError("at a step, with token hf_abcdefghijklmnopqrstuvwx")


def train(run: Path, killed_at: int = -1, resume: str | None = None) -> str:
    """Six steps, evaluated at each second, saved at the third; return what the console showed."""
    rows = [{"x": torch.tensor([float(n)]), "labels": torch.tensor([2.0 * n])} for n in range(12)]
    args = TrainingArguments(
        output_dir=str(run / "checkpoints"),
        max_steps=6,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=12,
        logging_steps=1,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        learning_rate=0.01,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    console = io.StringIO()
    throughput = Throughput(ModelFlops(6.0, 0.0), peak_tflops=1e-6)
    tracking = Tracking(run, throughput, Console(console))
    callbacks = [tracking, Killer(killed_at)]
    trainer = MeteredTrainer(
        throughput, model=Line(), args=args, train_dataset=rows, eval_dataset=rows, callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)
    try:
        with run_log(run):
            trainer.train(resume_from_checkpoint=resume)
    finally:
        tracking.close()
    return console.getvalue()


def losses(run: Path) -> list[tuple[int, str, float]]:
    lines = MetricsFile(run / METRICS).read()
    return [(line["step"], name, line[name]) for line in lines for name in ("loss", "eval_loss") if name in line]


def test_a_run_leaves_metrics_curve_log_and_lines(tmp_path):
    shown = train(tmp_path).splitlines()
    lines = MetricsFile(tmp_path / METRICS).read()
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert all(line["tokens_per_second"] > 0 and line["mfu"] > 0 and line["memory_gib"] > 0 for line in training)
    for line in training:  # two tokens and six operations each: the peak is 1e6 a second
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] * 6 / 1e6)
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4, 6]
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")
    assert shown[0] == "training: step 0 of 6"
    assert [line.split("  ")[0] for line in shown if "eval loss" in line] == ["step 2/6", "step 4/6", "step 6/6"]
    log = (tmp_path / LOG).read_text()
    assert log.count("  loss ") == 6
    assert "checkpoint of step 3 saved" in log
    assert "training ended at step 6" in log


def test_a_killed_and_resumed_run_has_the_curve_of_an_uninterrupted_one(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(KilledError):
        train(tmp_path / "cut", killed_at=5)
    assert [step for step, name, _ in losses(tmp_path / "cut") if name == "loss"] == [1, 2, 3, 4, 5]
    shown = train(tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoints" / "checkpoint-3"))
    assert "3 lines after step 3" in shown
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_an_error_is_in_the_log_with_its_traceback_and_without_secrets(tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path, killed_at=2)
    log = (tmp_path / LOG).read_text()
    assert "the run ended with an error" in log
    assert "Traceback" in log
    assert "hf_abc" not in log
    assert "<hidden>" in log


def test_warnings_of_libraries_are_in_the_log_and_still_on_stderr(tmp_path):
    code = (
        "import logging, pathlib; from training.tracking.logfile import run_log\n"
        f"with run_log(pathlib.Path({str(tmp_path)!r}), 1, 2): logging.getLogger('x').warning('look')\n"
        "logging.getLogger('x').warning('later')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "look\nlater\n"
    (line,) = (tmp_path / "train.rank1.log").read_text().splitlines()
    assert line.endswith("| WARNING | rank 1 | x: look")


def test_only_the_first_process_writes(tmp_path):
    tracking = Tracking(tmp_path, Throughput(), Console(out := io.StringIO()))
    state = TrainerState(max_steps=2, is_world_process_zero=False)
    for event in ("on_train_begin", "on_step_end", "on_evaluate", "on_save", "on_train_end"):
        getattr(tracking, event)(None, state, None)
    tracking.on_log(None, state, None, logs={"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert out.getvalue() == ""
