"""From a model directory to this process's part of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from training.pipeline.engine import Pipeline, make_scaler
from training.pipeline.loading import reader
from training.pipeline.plan import Plan
from training.pipeline.stages import Stage, build_stage, fill
from training.pipeline.trial import check_cutting
from training.processes import num_processes


def open_mesh(plan: Plan, device: torch.device) -> DeviceMesh:
    """The processes in rows of pipelines. The process group must be there."""
    plan.check(num_processes())
    return init_device_mesh(device.type, (plan.data_parallel, plan.processes), mesh_dim_names=("data", "pipeline"))


def open_pipeline(
    folder: Path,
    plan: Plan,
    mesh: DeviceMesh,
    device: torch.device,
    *,
    tokens: int,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    precision: torch.dtype | None = None,
    checkpointing: bool = False,
    adapt: Callable[[Any], Any] | None = None,
) -> Pipeline:
    """This process's stages of the model in `folder`, with their weights, for rows of `tokens`.

    `precision` is computed in where it is given (autocast; float16 with a scaler); `checkpointing` computes activations
    again instead of keeping them; `adapt` puts a stage's model under an adapter of PEFT that has no virtual tokens.
    Raises ValueError for models that cannot be cut, and for directories without safetensors.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    cuts = plan.cuts(config, tokens)
    check_cutting(config)
    stages: list[Stage] = []
    for number in plan.order.stages_of(mesh.get_local_rank("pipeline"), plan.processes, plan.num_stages):
        stage = build_stage(config, cuts[number], dtype, attention)
        fill(stage, reader(folder, stage))
        stage.precision = precision
        if checkpointing:
            stage.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if adapt is not None:
            stage.model = adapt(stage.model)
        stage.train()
        stages.append(stage)
    if adapt is not None:
        _agree_on_targets(stages, mesh)
    scaler = make_scaler(mesh, device) if precision is torch.float16 else None
    return Pipeline(stages, plan.num_stages, plan.order, plan.micro_batches, mesh, device, scaler)


def _agree_on_targets(stages: list[Stage], mesh: DeviceMesh) -> None:
    """Let the adapter's configuration name the layers of all stages: each knows only its own."""
    import torch.distributed as dist

    configs = [stage.model.peft_config["default"] for stage in stages]
    own = [each.target_modules for each in configs if isinstance(getattr(each, "target_modules", None), set)]
    found: list[set[str]] = [set()] * mesh["pipeline"].size()
    dist.all_gather_object(found, set().union(*own), group=mesh.get_group("pipeline"))
    if union := set().union(*found):
        for each in configs:
            each.target_modules = union
