"""`--dry-run`: what a run would be, printed; nothing is trained and nothing written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from training.estimate.memory import GIB
from training.estimate.models import describe, model_config
from training.estimate.planning import Estimate, estimate, steps_of
from training.estimate.speed import Device, find_device

if TYPE_CHECKING:
    from training.config.schema import Config

MACHINE = 8  # GPUs of a usual one, for the command that starts more
# Of a device's memory a run should take no more: kernels, fragments and other processes want theirs.
FULL = 0.92
_GENERATE = ("ppo", "grpo")
_TEXTS = ("ntp", "prefix_lm")  # a row may be any number of examples


def dry_run(config: Config, arguments: Sequence[str]) -> str:
    """The plan of a run, as a text. `arguments` are what was typed, for the command that would start it.

    Raises ValueError for what the run itself would refuse, and for a model whose configuration is not at hand.
    """
    from training.processes import num_processes

    model = model_config(config.model.name)
    told = num_processes() if "WORLD_SIZE" in os.environ else None
    alone = config.distributed.mode.value == "data"
    device = _device(config, (told or 1) if alone else (told or _pipeline_processes(config)))
    found = estimate(config, model, told, device)
    return "\n".join(_lines(config, model, found, device, arguments))


def _pipeline_processes(config: Config) -> int:
    from training.pipeline.plan import plan_of

    return plan_of(config).num_all


def _device(config: Config, num_processes: int) -> Device:
    """This machine's, or a GPU that is not here where the configuration names one."""
    import torch

    low = config.trainer.precision.value != "full" or config.model.dtype.value != "float32"
    name, peak = config.model.device, config.trainer.peak_tflops
    if (name or "").startswith("cuda") and not torch.cuda.is_available():
        from training.estimate.speed import GPU_SHARE

        return Device("cuda", "a GPU that is not in this machine", None, peak and peak * 1e12 * GPU_SHARE)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(num_processes)))
    return find_device(name, here, peak, low)


def _lines(config: Config, model: str, found: Estimate, device: Device, arguments: Sequence[str]) -> Iterator[str]:
    size = found.size
    yield f"{config.model.name}: {describe(model)}"
    yield f"{size.parameters:,} parameters, {size.trained / size.parameters:.1%} of them trained"
    yield _how(config, found)
    yield ""
    yield from _table(found)
    yield ""
    wait = f", of whose time processes wait {found.bubble:.0%}" if found.bubble else ""
    yield f"a step: {found.tokens:,} tokens at most, {found.operations:.3g} floating-point operations{wait}"
    yield from _time(config, found, device)
    yield _fit(found, device)
    if config.method.name in _GENERATE:
        yield "not counted: the reward model, and what answers take while they are generated"
    if found.num_processes > 1:
        yield f"to start it: {_command(found.num_processes, arguments)}"
    yield "nothing was trained, and nothing written"


def _how(config: Config, found: Estimate) -> str:
    wanted, count = config.distributed, found.num_processes
    if wanted.mode.value == "pipeline":
        beside = f", {wanted.data_parallel} pipelines side by side" if wanted.data_parallel > 1 else ""
        return f"{wanted.stages} stages in the order {wanted.schedule}{beside}: {count} processes"
    kind = "FSDP" if wanted.fsdp else f"DeepSpeed ({wanted.deepspeed})" if wanted.deepspeed else "DDP"
    return f"{count} processes with {kind}" if count > 1 or kind != "DDP" else "1 process"


@dataclass(frozen=True)
class _Column:
    head: str
    width: int


_COLUMNS = (
    _Column("process", 8),
    _Column("layers", 14),
    _Column("parameters", 15),
    _Column("weights", 9),
    _Column("gradients", 11),
    _Column("optimizer", 11),
    _Column("activations", 13),
    _Column("buffers", 9),
    _Column("peak GiB", 10),
)


def _table(found: Estimate) -> Iterator[str]:
    """A line a process of one pipeline; GiB. The columns are not all there at once, and the peak is more than some."""
    yield "".join(each.head.rjust(each.width) for each in _COLUMNS)
    for number, process in enumerate(found.processes):
        memory = process.memory
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.buffers, memory.peak)
        cells = [
            str(number) if len(found.processes) > 1 else "each",
            " + ".join(f"{each.start}-{each.stop - 1}" for each in process.layers),
            f"{process.size.parameters:,}",
            *(f"{part / GIB:.2f}" for part in parts),
        ]
        yield "".join(cell.rjust(column.width) for cell, column in zip(cells, _COLUMNS, strict=True))
    if host := found.processes[0].memory.host:
        yield f"and {host / GIB:.2f} GiB of the host's memory for each process"


def _time(config: Config, found: Estimate, device: Device) -> Iterator[str]:
    steps: int | None = None
    if config.trainer.max_steps is not None:
        steps = config.trainer.max_steps
    else:
        try:
            num_rows = _num_rows(config)
        except ValueError as error:  # a plan needs no data
            yield f"steps are not known: {error}"
        else:
            if num_rows is None:
                yield "steps are not known before the data is made into tokens"
            else:
                steps = steps_of(config, num_rows, _replicas(config, found))
                yield f"{num_rows:,} rows of data, {steps:,} steps"
    if found.seconds is None:
        yield "time is not known for this device; trainer.peak_tflops=... tells its peak in TFLOP/s"
    else:
        whole = f", about {_duration(found.seconds * steps)} for {steps:,} steps" if steps else ""
        yield f"about {_duration(found.seconds)} a step{whole}, on {device.name}"


def _replicas(config: Config, found: Estimate) -> int:
    return config.distributed.data_parallel if config.distributed.mode.value == "pipeline" else found.num_processes


def _num_rows(config: Config) -> int | None:
    """Rows of data on this machine; None where they are elsewhere, or say nothing of the number of steps."""
    from training.data.mixture import parse_mixture
    from training.data.reading import Report, read_rows
    from training.methods import METHODS

    sources = parse_mixture(config.data.train, config.data.format, config.data.columns)
    remote = any("://" in source.location for source in sources)
    mixed = any(source.weight != 1 for source in sources)
    if remote or mixed or config.data.packing or config.method.name in _TEXTS:
        return None
    kinds = import_module(METHODS[config.method.name]).KINDS
    strict = config.data.on_bad_row.value == "error"
    return sum(1 for source in sources for _ in read_rows(source, kinds, Report(), strict))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return (
        f"{minutes:.0f} min"
        if minutes < 90
        else f"{minutes / 60:.0f} h"
        if minutes < 4320
        else f"{minutes / 1440:.0f} days"
    )


def _fit(found: Estimate, device: Device) -> str:
    needed = max(process.memory.peak for process in found.processes)
    if device.memory is None:
        return f"each device needs {needed / GIB / FULL:.1f} GiB of memory, {1 - FULL:.0%} of it in reserve"
    where = f"the {device.memory / GIB:.1f} GiB that {device.name} has for each process"
    if needed <= device.memory * FULL:
        return f"it fits into {where}"
    over = [str(number) for number, each in enumerate(found.processes) if each.memory.peak > device.memory * FULL]
    who = f"of process {', '.join(over)}: " if len(found.processes) > 1 else ""
    return (
        f"it does not fit ({who}at most {FULL:.0%} may be used) into {where}; what takes less: a smaller "
        "trainer.batch_size with more trainer.accumulate, trainer.gradient_checkpointing=true, a shorter "
        "data.max_length, peft=lora, more stages or processes"
    )


def _command(num_processes: int, arguments: Sequence[str]) -> str:
    nodes, rest = divmod(num_processes, MACHINE)
    many = nodes > 1 and not rest
    place = f"--nnodes {nodes} --nproc-per-node {MACHINE}" if many else f"--nproc-per-node {num_processes}"
    return f"torchrun {place} training/main.py {' '.join(map(shlex.quote, arguments))}"
