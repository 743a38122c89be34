"""Checkpoints of a pipeline: a Hugging Face directory, a shard from each process, that loads in one piece anywhere.

Optimizer states are kept by the names of their parameters. So both can be read by other numbers of stages, and nothing
need be converted. torch.distributed.checkpoint would do the same with a pickled list of contents. What one process does
alone, `write_...` and `join_parts`, can be done beside training: see training/pipeline/writing.py.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from common.files import write_json
from training.pipeline.engine import Pipeline
from training.pipeline.loading import INDEX, SINGLE
from training.pipeline.stages import global_name
from training.state_files import load_tree, save_tree

ADAPTER = "adapter_model.safetensors"


def save_model(pipeline: Pipeline, folder: Path, config: Any) -> None:
    """Write the model that `config` describes, or the adapter over it, into `folder`; return when all have."""
    write_part(pipeline, folder)
    dist.barrier()
    if dist.get_rank() == 0:
        join_parts(pipeline, folder, config)
    dist.barrier()


def write_part(pipeline: Pipeline, folder: Path) -> None:
    """Write this process's weights into `folder`, frozen ones as well; under an adapter, only its."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    if pipeline.mesh.get_local_rank("data") > 0:
        return
    tensors: dict[str, torch.Tensor] = {}
    for stage in pipeline.stages:
        if pipeline.has_adapter:
            tensors |= get_peft_model_state_dict(stage.model, save_embedding_layers=False)
        else:  # a tied head is written as the embedding
            own = {name: each for name, each in stage.model.state_dict().items() if global_name(stage, name) == name}
            tensors |= revert_weight_conversion(stage.model, own)  # as files call them
    whole = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
    save_file(whole, folder / _part(pipeline, pipeline.process), metadata={"format": "pt"})


def join_parts(pipeline: Pipeline, folder: Path, config: Any) -> None:
    """Make one model, or one adapter, of what all processes have written. What makes it whole is written last."""
    from safetensors.torch import load_file, save_file

    if not pipeline.has_adapter:
        _write_index(folder, pipeline.num_processes)
        own = deepcopy(config)
        own.dtype = pipeline.stages[0].dtype
        own.save_pretrained(folder)
        return
    parts = [folder / _part(pipeline, process) for process in range(pipeline.num_processes)]
    merged = {name: each for part in parts for name, each in load_file(part).items()}
    save_file(merged, folder / ADAPTER, metadata={"format": "pt"})
    for part in parts:
        part.unlink()
    pipeline.stages[0].model.peft_config["default"].save_pretrained(folder)


def _part(pipeline: Pipeline, process: int) -> str:
    return f"part-{process}.safetensors" if pipeline.has_adapter else shard_name(process, pipeline.num_processes)


def shard_name(process: int, processes: int) -> str:
    """The file of one process, as transformers calls shards."""
    return SINGLE if processes == 1 else f"model-{process + 1:05d}-of-{processes:05d}.safetensors"


def _write_index(folder: Path, processes: int) -> None:
    from safetensors import safe_open

    names: dict[str, str] = {}
    size = 0
    for shard in [shard_name(process, processes) for process in range(processes)]:
        size += (folder / shard).stat().st_size
        with safe_open(folder / shard, "pt") as opened:
            names |= dict.fromkeys(opened.keys(), shard)
    if processes > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))})


def load_adapter(pipeline: Pipeline, folder: Path) -> None:
    """Give the adapters over this process's stages the values of the one in `folder`.

    Raises ValueError where it has none for some of them.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import safe_open

    for stage in pipeline.stages:
        names = list(get_peft_model_state_dict(stage.model, save_embedding_layers=False))
        with safe_open(folder / ADAPTER, "pt") as opened:
            if missing := set(names) - set(opened.keys()):
                raise ValueError(f"the adapter in {folder} has no '{min(missing)}': it is another, or of another model")
            set_peft_model_state_dict(stage.model, {name: opened.get_tensor(name) for name in names})


def write_optimizer(pipeline: Pipeline, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write this process's optimizer states into `folder` by the names of their parameters."""
    if pipeline.mesh.get_local_rank("data") == 0:
        tree = {
            "states": {name: optimizer.state[each] for name, each in _named(pipeline) if each in optimizer.state},
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        }
        save_tree(folder, f"optimizer-{pipeline.process}-of-{pipeline.num_processes}", tree)


def load_optimizer(pipeline: Pipeline, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Give `optimizer` the states that `write_optimizer` wrote, also with other numbers of processes.

    Raises ValueError where a parameter has none.
    """
    wanted = {name for name, each in _named(pipeline) if each.requires_grad}
    states: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    files = sorted(path.stem for path in folder.glob("optimizer-*.json"))
    own = f"optimizer-{pipeline.process}-of-{pipeline.num_processes}"
    for name in sorted(files, key=lambda each: each != own):  # its own first: usually it has all
        if wanted - set(states):
            tree = load_tree(folder, name)
            states |= {key: value for key, value in tree["states"].items() if key in wanted}
            groups = tree["groups"]
    if missing := sorted(wanted - set(states)):
        raise ValueError(f"{folder} has no optimizer state of '{missing[0]}' and {len(missing) - 1} others")
    names = {id(each): name for name, each in _named(pipeline)}
    order = [names[id(each)] for group in optimizer.param_groups for each in group["params"]]
    now = optimizer.state_dict()["param_groups"]
    if len(now) != len(groups):
        raise ValueError(f"{folder} has an optimizer of {len(groups)} groups of parameters, not {len(now)}")
    merged = [{**saved, "params": each["params"]} for saved, each in zip(groups, now, strict=True)]
    optimizer.load_state_dict({"state": {n: states[name] for n, name in enumerate(order)}, "param_groups": merged})


def _named(pipeline: Pipeline) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters by their names in the whole model: a tied head is the embedding, whose state it shares."""
    last = pipeline.stages[-1]
    return [(global_name(last, name), each) for name, each in pipeline.named_parameters()]
