"""What the two processes of pipeline_cases.py do besides: scale losses, write checkpoints, and go on from them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pipeline_cases import NORM, Case, adapted, batches, make_model, optimizer_of, rank_of, write

from training.pipeline.plan import Plan

SAVED = Case("saved", "1f1b", 2, tied=True)
NEOX = Case("neox", "1f1b", 2, kind="gpt_neox")  # transformers' files call its head otherwise than its module
BEFORE, STEPS = 2, 4  # steps before the checkpoint, and in all


def run(folder: Path) -> None:
    scale(folder)
    save(folder)
    neox(folder)
    adapt(folder)
    die(folder)


def scale(folder: Path) -> None:
    import torch

    from training.pipeline.balance import by_count
    from training.pipeline.engine import Pipeline, make_scaler
    from training.pipeline.opening import open_mesh
    from training.pipeline.stages import build_stage, fill

    case, device, plan = Case("1f1b", "1f1b", 2), torch.device("cpu"), Plan(2)
    mesh, model = open_mesh(plan, device), make_model(case)
    values = model.state_dict()
    stage = build_stage(model.config, by_count(8, 2)[rank_of()], torch.float32)
    fill(stage, lambda name: values[name].clone())
    pipeline = Pipeline([stage], 2, plan.order, 4, mesh, device, make_scaler(mesh, device, initial=1024.0))
    parameters = dict(pipeline.named_parameters())
    optimizer, told = optimizer_of(parameters.values()), {"scales": [], "moved": []}
    for step in range(2):
        optimizer.zero_grad()
        stepped = pipeline.step(batches(case, step)[0])
        if step == 1 and rank_of() == 1:
            next(iter(parameters.values())).grad.view(-1)[0] = float("inf")
        before = [each.detach().clone() for each in parameters.values()]
        pipeline.scaler.unscale_(optimizer)
        norm = pipeline.clip(NORM)
        pipeline.scaler.step(optimizer)
        pipeline.scaler.update()
        if step == 0:
            told |= {"loss": stepped.loss, "norm": norm}
        told["moved"].append(any(not torch.equal(a, b) for a, b in zip(before, parameters.values(), strict=True)))
        told["scales"].append(pipeline.scaler.get_scale())
    (folder / f"scaler-{rank_of()}.json").write_text(json.dumps(told))


def save(folder: Path) -> None:
    """A model in shards -> stages -> a copy, a few steps, a checkpoint; the rest of them from it, thrice."""
    import torch.distributed as dist

    from training.pipeline.saving import save_model, write_optimizer

    if rank_of() == 0:
        make_model(SAVED).save_pretrained(folder / "source", max_shard_size="20KB")
        (folder / "copy").mkdir()
    dist.barrier()
    pipeline, optimizer, config = opened(folder / "source", Plan(2))
    save_model(pipeline, folder / "copy", config)
    for step in range(STEPS):
        if step == BEFORE:
            checkpoint = made(folder / "step-2")
            save_model(pipeline, checkpoint, config)
            write_optimizer(pipeline, optimizer, checkpoint / "training")
            dist.barrier()
        train(pipeline, optimizer, step)
    write(folder, SAVED, "whole", dict(pipeline.named_parameters()))
    plans = {"same": Plan(2), "zbv": Plan(2, schedule="zbv"), "one": Plan(1, data_parallel=2, schedule="gpipe")}
    for name, plan in plans.items():
        resume(folder, name, plan)


def adapt(folder: Path) -> None:
    """Two steps with an adapter, a checkpoint, and the loss after it with other stages and from the checkpoint."""
    from training.pipeline.saving import load_adapter, save_model

    pipeline, optimizer, config = opened(folder / "source", Plan(2), adapted)
    for step in range(2):
        train(pipeline, optimizer, step)
    save_model(pipeline, made(folder / "adapter"), config)
    told = {"loss": pipeline.evaluate(batches(SAVED, 2)[0]).loss}
    pipeline, _, _ = opened(folder / "source", Plan(2, schedule="zbv"), adapted)
    told["before"] = pipeline.evaluate(batches(SAVED, 2)[0]).loss
    load_adapter(pipeline, folder / "adapter")
    told["again"] = pipeline.evaluate(batches(SAVED, 2)[0]).loss
    (folder / f"adapter-saved-{rank_of()}.json").write_text(json.dumps(told))


def resume(folder: Path, name: str, plan: Any) -> None:
    from training.pipeline.saving import load_optimizer, save_model

    checkpoint = folder / "step-2"
    pipeline, optimizer, config = opened(checkpoint, plan)
    load_optimizer(pipeline, optimizer, checkpoint / "training")
    for step in range(BEFORE, STEPS):
        train(pipeline, optimizer, step)
    save_model(pipeline, made(folder / name), config)


def die(folder: Path) -> None:
    """The second process ends without a word; the first says so, soon."""
    from training.processes import others_needed

    pipeline, _, _ = opened(folder / "source", Plan(2))
    if rank_of() == 1:
        os._exit(0)
    began = time.monotonic()
    try:
        with others_needed():
            pipeline.step(batches(SAVED, 0)[0])
        told = "nothing"
    except ConnectionError as error:
        told = str(error)
    (folder / "died.json").write_text(json.dumps({"told": told, "seconds": time.monotonic() - began}))
    os._exit(0)  # no group is left to close


def neox(folder: Path) -> None:
    """A model in shards -> stages -> a copy."""
    import torch.distributed as dist

    from training.pipeline.saving import save_model

    if rank_of() == 0:
        make_model(NEOX).save_pretrained(folder / "neox")
    dist.barrier()
    pipeline, _, config = opened(folder / "neox", Plan(2))
    save_model(pipeline, made(folder / "neox-copy"), config)


def made(folder: Path) -> Path:
    import torch.distributed as dist

    if rank_of() == 0:
        folder.mkdir()
    dist.barrier()
    return folder


def opened(folder: Path, plan: Any, adapt: Any = None) -> tuple[Any, Any, Any]:
    import torch
    from transformers import AutoConfig

    from training.pipeline.opening import open_mesh, open_pipeline

    device = torch.device("cpu")
    pipeline = open_pipeline(folder, plan, open_mesh(plan, device), device, tokens=20, adapt=adapt)
    optimizer = optimizer_of([each for _, each in pipeline.named_parameters() if each.requires_grad])
    return pipeline, optimizer, AutoConfig.from_pretrained(folder)


def train(pipeline: Any, optimizer: Any, step: int) -> None:
    """One step. Side by side, pipelines take half of the rows each."""
    case = Case("rows", "", 0, data=pipeline.mesh["data"].size())
    optimizer.zero_grad()
    pipeline.step(batches(case, step)[pipeline.mesh.get_local_rank("data")])
    pipeline.clip(NORM)
    optimizer.step()
