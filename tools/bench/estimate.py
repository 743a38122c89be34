"""What the estimator says beside what is measured: peak memory of real runs, a process each, and their time a step.

Run: python -m tools.bench.estimate [--model smollm2-135m] [--cases full,lora]

Measured is the resident memory of each process at its peak, of three steps (DDP renews its buckets after the first)
and the checkpoint. The C library is told to give every larger block back at once: left to itself it keeps up to a tenth
more than is in use, another amount each time. Time is of the last step, on a machine that has nothing else to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from tools.launching import environments
from tools.torture.resumes import tiny_model
from training.tracking.throughput import peak_memory

ROWS, TOKENS = 2, 256
_PIPELINE = ("distributed=pipeline", "distributed.stages=2", "trainer.batch_size=1", "trainer.accumulate=4")
# Name -> (processes, keys).
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "full": (1, ()),
    "checkpointing": (1, ("trainer.gradient_checkpointing=true",)),
    "accumulating": (1, ("trainer.accumulate=2",)),
    "lora": (1, ("peft=lora",)),
    "ddp": (2, ()),
    "ddp-lora": (2, ("peft=lora",)),
    "1f1b": (2, _PIPELINE),
    "1f1b-lora": (2, (*_PIPELINE, "peft=lora")),
    "gpipe": (2, (*_PIPELINE, "distributed.schedule=gpipe")),
    "zbv": (2, (*_PIPELINE, "distributed.stages=4", "distributed.schedule=zbv")),
}


@click.command(cls=OneLineCommand)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--cases", default=",".join(CASES), show_default=True, help="Which, with commas between them.")
@click.option("--random/--no-random", default=True, show_default=True, help="A model with a small vocabulary as well.")
@click.option("--run", "runs", is_flag=True, hidden=True)
@click.argument("overrides", nargs=-1)
def cli(model: str, cases: str, random: bool, runs: bool, overrides: Sequence[str]) -> None:
    """Print estimated beside measured memory and time of runs on this machine."""
    if runs:
        click.echo(json.dumps(_run(overrides)))
        return
    unknown = [name for name in cases.split(",") if name not in CASES]
    if unknown:
        raise ValueError(f"there is no case '{unknown[0]}'; there are: {', '.join(CASES)}")
    click.echo(
        f"{'model':<16}{'run':<16}{'process':>8}{'estimated GiB':>15}{'measured GiB':>14}{'error':>8}{'s a step':>18}"
    )
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as folder:
        work = Path(folder)
        models = [model, *([str(_random_model(work / "random"))] if random else [])]
        for each in models:
            for name in cases.split(","):
                _compare(each, name, work)


def _compare(model: str, name: str, work: Path) -> None:
    processes, keys = CASES[name]
    overrides = _overrides(model, work, (*keys, f"trainer.output={work / Path(model).name / name}"))
    estimated, seconds = _estimated(overrides, processes)
    measured = _measured(overrides, processes)
    for number, found in enumerate(measured):
        memory = estimated[number % len(estimated)]
        error = memory / found["memory"] - 1
        took = f"{seconds:.1f} / {found['seconds']:.1f}" if number == 0 else ""
        click.echo(
            f"{Path(model).name:<16}{name:<16}{number:>8}{memory:>15.2f}{found['memory']:>14.2f}{error:>+8.1%}{took:>18}"
        )


def _overrides(model: str, work: Path, keys: Sequence[str]) -> list[str]:
    text = work / "text.md"
    if not text.is_file():
        pages = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
        text.write_text("\n\n".join(page.read_text("utf-8") for page in pages), "utf-8")
    common = [f"model={model}", "method=ntp", f"data={text}", "data.format=text", f"data.cache={work / 'cache'}"]
    common += ["data.packing=false", f"data.max_length={TOKENS}", f"trainer.batch_size={ROWS}", "trainer.max_steps=3"]
    return [*common, "trainer.log_every=1", "trainer.save_every=null", "trainer.save_epochs=false", *keys]


def _estimated(overrides: Sequence[str], processes: int) -> tuple[list[float], float]:
    """(GiB of each process, seconds of a step), on as many threads as a process has."""
    from training.config.door import compose
    from training.estimate.memory import GIB
    from training.estimate.models import model_config
    from training.estimate.planning import estimate
    from training.estimate.speed import CPU_SHARE, Device, matmul_rate

    config = compose(overrides)
    device = Device("cpu", "CPU", None, matmul_rate() * CPU_SHARE)
    found = estimate(config, model_config(config.model.name), processes, device)
    return [each.memory.peak / GIB for each in found.processes], found.seconds or 0.0


def _measured(overrides: Sequence[str], processes: int) -> list[dict[str, float]]:
    """Peak memory and time of each process."""
    # One thread a process, so that two share a machine of two cores as one does.
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**16), "PARLEY_DEBUG": "1"}
    command = [sys.executable, "-m", "tools.bench.estimate", "--run", *overrides]
    started = [
        subprocess.Popen(
            command,
            env=common | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in environments(processes)
    ]
    with ThreadPoolExecutor(processes) as pool:  # all are read at once: one that fails leaves the others waiting
        waiting = {pool.submit(each.communicate): each for each in started}
        for done in as_completed(waiting):
            if waiting[done].returncode:
                for each in started:
                    each.kill()
                raise ValueError(f"a run failed: {done.result()[1].strip().splitlines()[-1]}")
    said = {waiting[done].pid: done.result()[0] for done in waiting}
    return [json.loads(said[each.pid].strip().splitlines()[-1]) for each in started]


def _run(overrides: Sequence[str]) -> dict[str, Any]:
    """The real door; this process's peak memory, and the time of the last step."""
    from training.config.door import compose
    from training.methods import method_run

    config = compose(overrides)
    run = method_run(config.method.name)(config)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    times = [line["time"] for line in logged if "loss" in line]
    return {"memory": peak_memory()["memory_gib"], "seconds": times[-1] - times[-2]}


def _random_model(folder: Path) -> Path:
    """A llama of 12 layers with random weights, whose head is no embedding, and a vocabulary of bytes."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    untied = {"tie_word_embeddings": False, "max_position_embeddings": TOKENS, "initializer_range": 0.02}
    return tiny_model(folder, attention_dropout=0.0, **sizes, **untied)


if __name__ == "__main__":
    cli()
