"""How long the processes of a pipeline wait, schedule by schedule, beside what theory says.

Run: python -m tools.bench.bubbles [--processes 4] [--micro-batches 8] [--unit 100]

Stages sleep instead of computing, so that as many processes as you like run on a few cores: one unit forward, one for
the gradients of what came in, one for those of the weights, shared by the stages of a process. The bubble is the share
of a step in which a process waits, on average. Theory is that of gpipe and 1f1b, (p - 1) / (m + p - 1), where several
stages v a process divide the waiting: (p - 1) / (v m + p - 1) (Narayanan et al. 2021, section 2.2).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import click

from common.cli import OneLineCommand
from tools.launching import environments
from training.pipeline.schedules import SCHEDULES, check_fits, find_schedule

CASES = (
    ("gpipe", 1),
    ("1f1b", 1),
    ("looped_bfs", 2),
    ("interleaved_1f1b", 2),
    ("interleaved_1f1b", 4),
    ("interleaved_zero_bubble", 2),
    ("interleaved_zero_bubble", 4),
    ("zbv", 2),
    ("dualpipev", 2),
)
STEPS = 5  # the fastest counts: others may be disturbed
WIDTH = 8


@click.command(cls=OneLineCommand)
@click.option("--processes", type=click.IntRange(2), default=4, show_default=True)
@click.option("--micro-batches", type=click.IntRange(1), default=8, show_default=True)
@click.option("--unit", default=100.0, show_default=True, help="Milliseconds.")
@click.option("--rank", type=int, hidden=True)
def cli(processes: int, micro_batches: int, unit: float, rank: int | None) -> None:
    """Print the bubble of each schedule beside theory."""
    if rank is not None:
        _measure(processes, micro_batches, unit / 1000)
        return
    common = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.bench.bubbles", f"--processes={processes}", f"--unit={unit}"]
    command += [f"--micro-batches={micro_batches}"]
    started = [
        subprocess.Popen([*command, f"--rank={own['RANK']}"], env=common | own, stdout=subprocess.PIPE)
        for own in environments(processes)
    ]
    told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise ValueError("a process failed; see what it wrote above")
    click.echo(f"{processes} processes, {micro_batches} micro-batches: share of a step spent waiting")
    click.echo(f"{'schedule':<26}{'stages':>7}{'theory':>9}{'measured':>10}")
    for line in json.loads(told[0]):
        theory = (processes - 1) / (line["each"] * micro_batches + processes - 1)
        shown = f"{line['bubble']:>10.3f}" if "bubble" in line else f"  {line['refused']}"
        split = SCHEDULES[line["name"]].splits_backward or line["name"] == "dualpipev"
        click.echo(f"{line['name']:<26}{line['each']:>7}{'' if split else f'{theory:.3f}':>9}{shown}")


def _measure(processes: int, micro_batches: int, unit: float) -> None:
    """What every process does; the first prints."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    lines: list[dict[str, Any]] = []
    for name, each in CASES:
        line: dict[str, Any] = {"name": name, "each": each}
        try:
            check_fits(find_schedule(name), processes, processes * each, micro_batches)
            line["bubble"] = 1 - 3 * unit * micro_batches / _step_time(name, each, processes, micro_batches, unit)
        except ValueError as error:
            line["refused"] = str(error)
        lines.append(line)
    if dist.get_rank() == 0:
        click.echo(json.dumps(lines))
    dist.barrier()
    dist.destroy_process_group()


def _step_time(name: str, each: int, processes: int, micro_batches: int, unit: float) -> float:
    """Seconds of a step, the fastest of several."""
    import torch
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage

    from training.pipeline.schedules import make_schedule

    schedule, rank, num_stages = find_schedule(name), dist.get_rank(), processes * each
    hidden = torch.empty(1, WIDTH, device="meta")
    stages = [
        PipelineStage(
            _sleeper(unit / each, first=number == 0),
            number,
            num_stages,
            torch.device("cpu"),
            input_args=(hidden.clone().requires_grad_(number > 0),),
            output_args=(hidden.clone().requires_grad_(),),
        )
        for number in schedule.stages_of(rank, processes, num_stages)
    ]
    runner = make_schedule(schedule, stages, micro_batches, lambda output, _: output.sum())
    rows = torch.zeros(micro_batches, WIDTH)
    first = [rows] if any(stage.is_first for stage in stages) else []
    last: dict[str, Any] = {"target": rows, "losses": []} if any(stage.is_last for stage in stages) else {}
    times = []
    for _ in range(STEPS):
        dist.barrier()
        began = time.perf_counter()
        runner.step(*first, **last)
        dist.barrier()
        times.append(time.perf_counter() - began)
    return min(times)


def _sleeper(seconds: float, first: bool) -> Any:
    """A stage that sleeps: forward, and backward for its input and for its weight apart; the first, whose input has no
    gradient, as long for its weight."""
    import torch
    from torch import nn

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any, wait: float) -> Any:
            context.wait = wait
            return x.clone()

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            time.sleep(context.wait)
            return gradients[0], None

    class Sleeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(seconds)
            slow: Any = Slow.apply
            made: torch.Tensor = (slow(x, seconds) * slow(self.weight, (1 + first) * seconds)).clone()
            return made

    return Sleeper()


if __name__ == "__main__":
    cli()
