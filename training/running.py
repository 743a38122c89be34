"""A run, from configuration to a directory that the next step loads: what all methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.devices import choose_device
from training.allocator import keep_freed_memory
from training.arguments import evaluates, training_arguments
from training.checkpoints import export_model
from training.data.mixture import check_is_here
from training.processes import first_of_all, is_first, join, main_first, num_processes, others_needed, rank
from training.record import Record, plain
from training.run_directory import RunDirectory, open_run
from training.tracking.logfile import run_log
from training.tracking.throughput import Throughput, model_flops, peak_tflops
from training.upload import Uploader

if TYPE_CHECKING:
    from training.config.schema import Config
    from training.examples.collate import Collate
    from training.examples.preparing import Maker, Prepared
    from training.models import Loaded
    from training.objective import Objective
    from training.trainer import ParleyTrainer

Open = Callable[["Config", "Path | None"], "Loaded"]


@dataclass(frozen=True)
class Task:
    """What a method brings to a run.

    `kinds`: the rows it learns from, the first preferred. `maker`: what makes examples of them, and `made_from`: its
    settings; without it, that of language models. `collate`: batches of rows of examples. `objective`: losses and
    metrics; it is asked once the data is there. `open`: the model, with the weights of a checkpoint where one is given.
    `generates`: whether the model can answer evaluation prompts. `packs`: whether rows may be packed. `cuts`: whether
    the model may be cut into stages, a process each. `prepare`: the data, where it is no examples; `trainer`: what
    makes the trainer, where ParleyTrainer is not enough.
    """

    kinds: tuple[type, ...]
    collate: Callable[[Loaded], Collate]
    objective: Callable[[Loaded, Prepared], Objective]
    maker: Callable[[Loaded], Maker] | None = None
    made_from: Sequence[Any] = ()
    open: Open | None = None
    generates: bool = True
    packs: bool = False
    cuts: bool = False
    prepare: Callable[[Config, Loaded], Prepared] | None = None
    trainer: Callable[..., ParleyTrainer] | None = None


def run_task(config: Config, task: Task) -> Path:
    """Run `config`; return the run's directory.

    Raises ValueError for whatever in configuration, model or data cannot be trained.
    """
    from training.examples.preparing import prepare

    if config.data.packing and not task.packs:
        raise ValueError(f"data.packing is not for method={config.method.name}; set data.packing=false")
    if _pipelined(config) and not task.cuts:
        raise ValueError(f"distributed=pipeline is not for method={config.method.name}; leave it out")
    for mixture in filter(None, (config.data.train, config.data.eval)):
        check_is_here(mixture)  # before a model is loaded
    device = choose_device(config.model.device)
    if device.type == "cpu":
        keep_freed_memory()
    if num_processes() > 1:
        join(device, config.distributed.timeout_s)
    with first_of_all():
        directory = open_run(config)
    resume = directory.resume_from
    loaded = _open(config, task, resume.path if resume else None)
    maker = task.maker
    with main_first():
        if task.prepare is not None:
            data = task.prepare(config, loaded)
        else:
            data = prepare(config, loaded, task.kinds, (lambda: maker(loaded)) if maker else None, task.made_from)
    if is_first():
        directory.path.mkdir(parents=True, exist_ok=True)
        _tell(config, loaded, data, directory)
    record = Record(directory.path, config)
    uploader = Uploader(config.trainer.upload) if config.trainer.upload and is_first() else None
    trainer = _trainer(config, task, loaded, data, directory, uploader)
    if is_first():
        record.write(model=loaded.about, data=data.about)
    log = run_log(directory.path, rank(), num_processes())
    with log, uploader or nullcontext(), _closing(trainer.ours), others_needed():
        if resume is None or resume.step < trainer.planned_steps():
            trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
    if is_first():
        _finish(config, trainer, directory, record)
    trainer.accelerator.wait_for_everyone()
    return directory.path


def _pipelined(config: Config) -> bool:
    return config.distributed.mode.value == "pipeline"


def _open(config: Config, task: Task, checkpoint: Path | None) -> Loaded:
    """The model, or this process's stages of it."""
    if _pipelined(config):
        from training.pipeline.loaded import load_stages

        return load_stages(config, checkpoint)
    from training.isolation import check_isolation
    from training.models import load

    loaded = (task.open or load)(config, checkpoint)
    if config.data.packing:
        check_isolation(loaded.model)
    return loaded


def _trainer(
    config: Config, task: Task, loaded: Loaded, data: Prepared, directory: RunDirectory, uploader: Uploader | None
) -> ParleyTrainer:
    from training.samples import Samples
    from training.tracking.callbacks import Tracking
    from training.tracking.reporters import reporters
    from training.trainer import ParleyTrainer, Schedule

    settings = config.trainer
    trainer: Callable[..., ParleyTrainer] = task.trainer or ParleyTrainer
    if _pipelined(config):
        from training.pipeline.loaded import stages_flops
        from training.pipeline.trainer import PipelineTrainer

        trainer, flops = PipelineTrainer, stages_flops(loaded.model)
    else:
        flops = model_flops(loaded.model)
    num_samples = settings.samples if task.generates and not _pipelined(config) else 0
    args = training_arguments(config, directory.path, directory.resume_from is not None)
    throughput = Throughput(flops, _peak(config, args))
    callbacks = [
        Schedule(settings.eval_every, settings.save_every, settings.save_epochs, evaluates(config)),
        Tracking(directory.path, throughput),
        *reporters(settings.report_to, plain(config), directory.path),
    ]
    if uploader is not None:
        directory.checkpoints.held = uploader.busy
        for checkpoint in directory.checkpoints.all():
            uploader.enqueue(checkpoint.path)
    return trainer(
        loaded.model,
        args,
        objective=task.objective(loaded, data),
        collate=task.collate(loaded),
        train_rows=data.train,
        eval_rows=data.eval,
        checkpoints=directory.checkpoints,
        tokenizer=loaded.tokenizer,
        throughput=throughput,
        on_checkpoint=uploader.enqueue if uploader else lambda _: None,
        on_evaluated=Samples(directory.path, loaded, data.eval, num_samples, settings.sample_tokens),
        speaker_names=settings.folder_names.value == "epoch_step",
        keep_best=settings.keep.value == "best",
        early_stop=settings.early_stop,
        callbacks=callbacks,
    )


def _peak(config: Config, args: Any) -> float | None:
    """The devices' peak together, in TFLOP/s, where it is told or known."""
    import torch

    one = config.trainer.peak_tflops
    if one is None and args.device.type == "cuda":
        one = peak_tflops(torch.cuda.get_device_name(args.device))
    return None if one is None else one * args.world_size


@contextmanager
def _closing(callbacks: Sequence[Any]) -> Iterator[None]:
    """Close what has something to close, however training ends."""
    try:
        yield
    finally:
        for each in callbacks:
            if hasattr(each, "close"):
                each.close()


def _tell(config: Config, loaded: Loaded, data: Prepared, directory: RunDirectory) -> None:
    """What will be trained, on what; one example with its loss mask."""
    about = loaded.about
    share = about["trainable"] / max(about["parameters"], 1)
    size = f"{about['parameters']:,} parameters, {share:.1%} of them trained"
    click.echo(f"{config.model.name}: {about['architecture']}, {size}", err=True)
    if "stages" in about:
        layers = ", ".join(map(str, about["stages"]))
        click.echo(f"stages of {layers} layers, in the order {config.distributed.schedule}", err=True)
    for line in data.told():
        click.echo(line, err=True)
    if directory.resume_from:
        click.echo(f"going on from {directory.resume_from.path} (step {directory.resume_from.step})", err=True)
    else:
        click.echo(data.shown(loaded.tokenizer), err=True)


def _finish(config: Config, trainer: Any, directory: RunDirectory, record: Record) -> None:
    """The run's model and its last account."""
    newest = chosen = directory.checkpoints.all()[-1]
    best = trainer.state.best_global_step
    if config.trainer.keep.value == "best":
        chosen = next((each for each in directory.checkpoints.all() if each.step == best), newest)
        if chosen.step != best:
            click.echo("no evaluation was better than that before training; the last weights are kept", err=True)
    export_model(chosen.path, directory.path)
    directory.checkpoints.prune(chosen.step)  # what was held back while it was uploaded
    record.write(
        status="finished",
        model_of_step=chosen.step,
        steps=newest.step,
        metrics=[line for line in trainer.state.log_history if "eval_loss" in line or "train_loss" in line][-20:],
    )
