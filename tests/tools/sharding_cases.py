"""A process of the tests of conversion: `RANK=0 WORLD_SIZE=2 ... python sharding_cases.py FOLDER`.

FOLDER and its `own` have `llama`, `tied` and `neox`, model directories. Two processes, a stage each, write of each of
them `pipeline-NAME`, a copy, and `trained-NAME`, what it is after a step; and `adapter`, over `tied`. Sharded by FSDP
and trained for a step, `fsdp-llama` and `fsdp-tied` are written by torch.distributed.checkpoint, and
`gathered-NAME.safetensors` has the same numbers whole.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

RANK = int(os.environ["RANK"])


def main(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name in ("llama", "tied", "neox"):
        pipeline(folder, name)
    adapter(folder)
    for name in ("llama", "tied"):
        fsdp(folder, name)
    dist.destroy_process_group()


def opened(source: Path, adapt: Any = None) -> tuple[Any, Any, Any]:
    import torch
    from transformers import AutoConfig

    from training.pipeline.opening import open_mesh, open_pipeline
    from training.pipeline.plan import Plan

    plan, device = Plan(2, micro_batches=2, layers="count"), torch.device("cpu")
    pipeline = open_pipeline(source, plan, open_mesh(plan, device), device, tokens=20, adapt=adapt)
    trained = [each for _, each in pipeline.named_parameters() if each.requires_grad]
    return pipeline, torch.optim.AdamW(trained, lr=1e-2), AutoConfig.from_pretrained(source)


def batch() -> dict[str, Any]:
    import numpy as np

    from training.examples.collate import causal_batch
    from training.examples.making import Example

    rng = np.random.default_rng(0)
    rows = [[Example(rng.integers(3, 90, 12, dtype=np.int32), rng.random(12) < 0.7, 1.0)] for _ in range(4)]
    return causal_batch(rows, pad_id=0, packed=False)


def made(folder: Path) -> Path:
    import torch.distributed as dist

    if RANK == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    return folder


def pipeline(folder: Path, name: str) -> None:
    from training.pipeline.saving import save_model

    pipeline, optimizer, config = opened(folder / "own" / name)
    save_model(pipeline, made(folder / f"pipeline-{name}"), config)
    pipeline.step(batch())
    optimizer.step()
    save_model(pipeline, made(folder / f"trained-{name}"), config)


def adapter(folder: Path) -> None:
    import torch

    from training.adapters import add_adapter
    from training.config.schema import ModelConfig, PeftConfig
    from training.pipeline.saving import save_model

    torch.manual_seed(0)
    settings = PeftConfig("lora", r=4, targets=["q_proj", "up_proj"])
    pipeline, optimizer, config = opened(
        folder / "own" / "tied", lambda model: add_adapter(model, settings, ModelConfig())
    )
    for _ in range(3):
        optimizer.zero_grad()
        pipeline.step(batch())
        optimizer.step()
    save_model(pipeline, made(folder / "adapter"), config)


def fsdp(folder: Path, name: str) -> None:
    """As accelerate writes it: {"model": sharded state}; of `tied` the optimizer's beside it."""
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(3, 43).reshape(2, 20)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    states, others = get_state_dict(model, optimizer)
    saved = {"model": states, "optimizer": others} if name == "tied" else {"model": states}
    dcp.save(saved, checkpoint_id=folder / f"fsdp-{name}" / "pytorch_model_fsdp_0")
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if RANK == 0:
        save_file({key: each.clone() for key, each in whole.items()}, folder / f"gathered-{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
