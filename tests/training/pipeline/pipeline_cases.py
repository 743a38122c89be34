"""A process of the tests of pipelines: `RANK=0 WORLD_SIZE=2 ... python pipeline_cases.py FOLDER` runs every case.

`make_model`, `batches` and CASES are shared with the tests, which compute the same in one process. Written for each
case and rank: losses and norms as JSON, gradients of the first step and weights after the last as safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

LAYERS, VOCAB, ROWS, NORM, LR = 8, 96, 7, 0.5, 3e-3


@dataclass(frozen=True)
class Case:
    """`stages` of one model over two processes, which are one pipeline, or with `data` two of one process each."""

    name: str
    schedule: str
    stages: int
    micro_batches: int = 4
    tied: bool = False
    kind: str = "llama"
    data: int = 1
    steps: int = 2
    packed: bool = False
    adapter: bool = False
    checkpointing: bool = False


CASES = (
    Case("gpipe", "gpipe", 2, tied=True),
    Case("1f1b", "1f1b", 2, steps=20),
    Case("1f1b-tied", "1f1b", 2, tied=True, steps=20, packed=True),
    Case("interleaved", "interleaved_1f1b", 4, tied=True),
    Case("interleaved-zero-bubble", "interleaved_zero_bubble", 4, tied=True),
    Case("looped-bfs", "looped_bfs", 4),
    Case("zbv", "zbv", 4),
    Case("zbv-tied", "zbv", 4, tied=True, steps=20),
    Case("dualpipev", "dualpipev", 4, tied=True),
    Case("gpt2", "1f1b", 2, micro_batches=3, tied=True, kind="gpt2"),
    Case("adapter", "1f1b", 2, tied=True, adapter=True, steps=5),
    Case("checkpointing", "1f1b", 2, checkpointing=True),
    Case("side-by-side", "gpipe", 1, micro_batches=2, data=2, tied=True, steps=20),
)


def make_config(case: Case) -> Any:
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

    ends: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": case.tied}
    if case.kind == "gpt2":
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64, **ends, **off)
    if case.kind == "gpt_neox":
        width: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        return GPTNeoXConfig(num_hidden_layers=LAYERS, max_position_embeddings=64, **width, **ends)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(num_hidden_layers=LAYERS, max_position_embeddings=64, initializer_range=0.2, **sizes, **ends)


def make_model(case: Case) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(make_config(case), dtype=torch.float32)


def batches(case: Case, step: int) -> list[dict[str, Any]]:
    """The rows of one step for each of `case.data` pipelines: of unequal lengths, and one of them without a loss."""
    import numpy as np

    from training.examples.collate import causal_batch
    from training.examples.making import Example

    rng = np.random.default_rng(step)
    rows = []
    for number in range(ROWS):
        lengths = rng.integers(2, 20, 2 if case.packed else 1)
        row = []
        for length in lengths:
            mask = rng.random(length) < (0.0 if number == 3 else 0.6)
            weight = 1.0 + number % 2 if case.packed else 1.0
            row.append(Example(rng.integers(3, VOCAB, length, dtype=np.int32), mask, weight))
        rows.append(row)
    shares = [rows[number :: case.data] for number in range(case.data)]
    return [causal_batch(each, pad_id=0, packed=case.packed) for each in shares]


def adapted(model: Any) -> Any:
    """`model` under LoRA, whose numbers follow from their names alone."""
    import torch

    from training.adapters import add_adapter
    from training.config.schema import ModelConfig, PeftConfig

    made = add_adapter(model, PeftConfig("lora", r=4), ModelConfig())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                own = torch.Generator().manual_seed(crc32(name.encode()))
                parameter.copy_(torch.randn(parameter.shape, generator=own) * 0.1)
    return made


def optimizer_of(parameters: Any) -> Any:
    import torch

    return torch.optim.AdamW(parameters, lr=LR, weight_decay=0.01)


def run(case: Case, folder: Path) -> None:
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    from training.pipeline.balance import by_count
    from training.pipeline.engine import Pipeline
    from training.pipeline.schedules import check_fits, find_schedule
    from training.pipeline.stages import build_stage, fill

    processes = int(os.environ["WORLD_SIZE"]) // case.data
    mesh = init_device_mesh("cpu", (case.data, processes), mesh_dim_names=("data", "pipeline"))
    rank, schedule = mesh.get_local_rank("pipeline"), find_schedule(case.schedule)
    check_fits(schedule, processes, case.stages, case.micro_batches)
    config, values = make_config(case), make_model(case).state_dict()
    cuts = by_count(LAYERS, case.stages)
    stages = []
    for number in schedule.stages_of(rank, processes, case.stages):
        stage = build_stage(config, cuts[number], torch.float32)
        fill(stage, lambda name: values[name].clone())
        if case.adapter:
            stage.model = adapted(stage.model)
        if case.checkpointing:
            stage.bare.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        stage.train()
        stages.append(stage)
    pipeline = Pipeline(stages, case.stages, schedule, case.micro_batches, mesh, torch.device("cpu"))
    trained = {name: each for name, each in pipeline.named_parameters() if each.requires_grad}
    optimizer = optimizer_of(trained.values())
    told: dict[str, Any] = {"losses": [], "norms": [], "tokens": []}
    for step in range(case.steps):
        batch = batches(case, step)[mesh.get_local_rank("data")]
        optimizer.zero_grad()
        if step == 0:
            told["evaluated"] = pipeline.evaluate(batch).loss
        stepped = pipeline.step(batch)
        if step == 0:
            write(folder, case, "grads", {name: each.grad for name, each in trained.items()})
        told["losses"].append(stepped.loss)
        told["tokens"].append(stepped.num_tokens)
        told["norms"].append(pipeline.clip(NORM))
        optimizer.step()
    write(folder, case, "weights", trained)
    (folder / f"{case.name}-{rank_of()}.json").write_text(json.dumps(told))


def write(folder: Path, case: Case, kind: str, tensors: Any) -> None:
    from safetensors.torch import save_file

    copied = {name: each.detach().clone() for name, each in tensors.items()}
    save_file(copied, folder / f"{case.name}-{kind}-{rank_of()}.safetensors")


def rank_of() -> int:
    return int(os.environ["RANK"])


def main(folder: Path) -> None:
    import saving_cases
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for case in CASES:
        run(case, folder)
    saving_cases.run(folder)  # the last of it ends the processes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
