"""A model cut into stages on two processes, beside DDP on two and one process with two threads, on the same rows.

Run: python -m tools.bench.pipeline [--model smollm2-135m] [--steps 4]

Tokens a second (the first step is not counted), the share of the time in which processes wait for each other beside
what theory says of 1f1b, (p - 1) / (m + p - 1), peak memory of each process beside that of one, and how long training
waits for a checkpoint. Twice the speed of one process with one thread is the most that two cores can do. All have 8
rows of 128 tokens a step and compute the same losses. Then the same memory for a model without a large vocabulary,
whose head and embedding are two tensors. CPU time is that of the system: waiting is what is left of it, so that other
work on the machine counts as waiting.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from tools.bench.texts import write_text
from tools.launching import environments

ROWS, TOKENS = 8, 128
PIPELINE = ("distributed=pipeline", "trainer.batch_size=1", f"trainer.accumulate={ROWS}")
CASES: dict[str, tuple[int, int, tuple[str, ...]]] = {  # name -> processes, threads of each, settings
    "one process, 2 threads": (1, 2, (f"trainer.batch_size={ROWS}",)),
    "one process, 1 thread": (1, 1, (f"trainer.batch_size={ROWS}",)),
    "one, micro-batches": (1, 2, ("trainer.batch_size=1", f"trainer.accumulate={ROWS}")),
    "DDP, 2 processes": (2, 1, (f"trainer.batch_size={ROWS // 2}",)),
    "gpipe": (2, 1, (*PIPELINE, "distributed.schedule=gpipe")),
    "1f1b": (2, 1, PIPELINE),
    "interleaved_1f1b": (2, 1, (*PIPELINE, "distributed.schedule=interleaved_1f1b", "distributed.stages=4")),
    "zbv": (2, 1, (*PIPELINE, "distributed.schedule=zbv", "distributed.stages=4")),
    "dualpipev": (2, 1, (*PIPELINE, "distributed.schedule=dualpipev", "distributed.stages=4")),
}
Mark = tuple[float, list[float]]
SMALL = ("one process, 2 threads", "1f1b", "zbv")  # of a model with a small vocabulary


@dataclass(frozen=True)
class Found:
    """Of one run: tokens a second, shares of waiting and GiB by process, seconds waited for saving, losses."""

    rate: float
    waiting: list[float]
    memory: list[float]
    saving: float
    losses: list[float]


@click.command(cls=OneLineCommand)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--steps", type=click.IntRange(3), default=4, show_default=True)
def cli(model: str, steps: int) -> None:
    """Print speed, waiting and memory of pipelines beside their peers."""
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as folder:
        work = Path(folder)
        common = ["method=ntp", f"data={write_text(work / 'text.md')}", "data.format=text", "model.device=cpu"]
        common += [f"data.max_length={TOKENS}", f"data.cache={work / 'cache'}", f"trainer.max_steps={steps}"]
        common += ["trainer.lr=1e-5", "trainer.log_every=1", "trainer.save_every=2", "trainer.save_epochs=false"]
        _table(f"{model}, {ROWS} rows of {TOKENS}", [*common, f"model={model}"], tuple(CASES), work)
        small = _small_model(work / "small")
        _table("the same, small vocabulary", [*common, f"model={small}"], SMALL, work)


def _table(title: str, overrides: Sequence[str], names: Sequence[str], work: Path) -> None:
    click.echo(
        f"{title:<30}{'tokens/s':>9}{'of one':>8}{'waiting':>9}{'theory':>8}  {'peak GiB':<13}{'of one':<12}", nl=False
    )
    click.echo(f"{'save s':>7}  losses")
    first: Found | None = None
    for name in names:
        processes, threads, more = CASES[name]
        found = _run([*overrides, *more, f"trainer.output={work / title.replace(' ', '-') / name}"], processes, threads)
        first = first or found
        theory = f"{(processes - 1) / (ROWS + processes - 1):.3f}" if name in ("gpipe", "1f1b") else ""
        memory = " ".join(f"{each:.2f}" for each in found.memory)
        share = " ".join(f"{each / first.memory[0]:.2f}" for each in found.memory)
        waiting = f"{statistics.mean(found.waiting):.3f}" if processes > 1 else ""
        losses = " ".join(f"{loss:.4f}" for loss in found.losses[:3])
        click.echo(f"{name:<30}{found.rate:>9.1f}{found.rate / first.rate:>8.2f}{waiting:>9}{theory:>8}  ", nl=False)
        click.echo(f"{memory:<13}{share:<12}{found.saving:>7.2f}  {losses}")


def _run(overrides: Sequence[str], processes: int, threads: int) -> Found:
    """Start the processes of a run, and watch them until they end."""
    run = Path(next(each.partition("=")[2] for each in overrides if each.startswith("trainer.output=")))
    with tempfile.TemporaryFile("w+") as errors:
        started = _start(overrides, processes, threads, errors)
        marks, peaks = _watch(started, run / "metrics.jsonl")
        if any(each.wait() for each in started):
            errors.seek(0)
            raise ValueError(f"the run in {run} failed: {errors.read().strip().splitlines()[-1]}")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "loss" in line]
    wall = marks[-1][0] - marks[0][0]
    return Found(
        rate=statistics.median(line["tokens_per_second"] for line in steps[1:]),
        waiting=[1 - (last - first) / wall for first, last in zip(marks[0][1], marks[-1][1], strict=True)],
        memory=[peak / 2**30 for peak in peaks],
        saving=max((line["save_wait_time"] for line in logged if "save_wait_time" in line), default=float("nan")),
        losses=[line["loss"] for line in steps],
    )


def _start(overrides: Sequence[str], processes: int, threads: int, errors: Any) -> list[subprocess.Popen[bytes]]:
    common = {**os.environ, "OMP_NUM_THREADS": str(threads), "PARLEY_DEBUG": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "training/main.py", *overrides],
            env=common | own,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        for own in environments(processes)
    ]


def _watch(started: Sequence[subprocess.Popen[bytes]], metrics: Path) -> tuple[list[Mark], list[int]]:
    """After each logged step, the time and the CPU seconds of each process; and their peaks of memory, in bytes."""
    marks: list[Mark] = []
    peaks = [0] * len(started)
    while started[0].poll() is None:
        lines = metrics.read_text().count('"loss"') if metrics.is_file() else 0
        try:
            if lines > len(marks):
                marks += [(time.monotonic(), [_cpu_s(each.pid) for each in started])] * (lines - len(marks))
            peaks = [max(_peak(each.pid), peak) for each, peak in zip(started, peaks, strict=True)]
        except OSError:
            break  # one has ended, the others will
        time.sleep(0.02)
    return marks, peaks


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")), 0)


def _small_model(folder: Path) -> Path:
    """The shape of SmolLM2-135M with random weights, single bytes as vocabulary, and a head of its own."""
    from tools.torture.resumes import tiny_model

    more: dict[str, Any] = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    more |= {"num_attention_heads": 9, "num_key_value_heads": 3, "attention_dropout": 0.0}
    return tiny_model(folder, tie_word_embeddings=False, initializer_range=0.02, **more)


if __name__ == "__main__":
    cli()
