"""Write docs/hardware.md, which model fits which machine by which method, from the estimator; a test compares them.

Run: python tools/write_hardware.py
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):  # started by its path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from common.cli import OneLineCommand
from common.files import atomic_write, home
from training.config.door import compose
from training.config.schema import PeftConfig
from training.estimate.known import known_config
from training.estimate.memory import FSDP, GIB, LIBRARIES, NONE, ZERO1, ZERO2, ZERO3, Memory, Sharing, weight_bytes
from training.estimate.parameters import sizes
from training.estimate.planning import Estimate, estimate, replica_memory
from training.estimate.speed import GPU_SHARE, Device
from training.estimate.telling import FULL
from training.estimate.tracing import Work, config_of
from training.tracking.throughput import peak_tflops

MODELS = (
    *("smollm2-135m", "qwen3-0.6b", "llama-3.2-1b", "redpajama-incite-3b", "qwen3-4b", "llama-3.1-8b", "llama-2-13b"),
    *("gpt-neox-20b", "qwen3-32b", "llama-3.3-70b"),
)
CARDS = (8, 16, 24, 48, 80)
TOKENS, ANSWERS = 2048, 8
ADAPTER = json.dumps(dataclasses.asdict(PeftConfig("lora")), sort_keys=True)
FUSED, IN_8_BITS = "adamw_torch_fused", "adamw_bnb_8bit"
GPU, GPU_MEMORY = "NVIDIA H100", 80 * GIB

_HEAD = f"""# Which model fits which machine

Written by `python tools/write_hardware.py`, from the estimator that `--dry-run` asks as well
(`python training/main.py ... --dry-run`, with your own batch, length and method).

A cell says how many GiB a device needs, and in brackets the smallest usual card that has them with
{1 - FULL:.0%} in reserve: {", ".join(map(str, CARDS[:-1]))} or {CARDS[-1]} GB. A dash: none of these. Everywhere a
micro-batch is one row of {TOKENS:,} tokens, all with a loss; activations are computed again
(`trainer.gradient_checkpointing=true`), with bf16. More rows or longer ones take more activations and logits: ask
`--dry-run`.

**What was measured, and what not.** On CPUs estimated and measured memory agree within 10% (`make bench-pipeline`
prints both): whole models and LoRA, one process, two with DDP, two as a pipeline. Nothing on this page was run on a
GPU: what a CUDA context takes is assumed ({LIBRARIES["cuda"] / GIB:.1f} GiB), and ZeRO, FSDP and 4 bits are arithmetic
after their papers and the libraries' sources. Memory that is lost in fragments is what the reserve is for.
"""


def hardware(models: Sequence[str] = MODELS, plans: bool = True) -> str:
    """The whole page; `models` and `plans` leave parts of it out."""
    parts = [_HEAD, *_one_device(models), *_several(models), *_feedback(models)]
    if plans:
        parts += _plans()
    return "\n".join(parts).rstrip() + "\n"


def _work(model: str, **more: str | None) -> Work:
    text = known_config(model)
    if text is None:
        raise ValueError(f"{model} is not in training/estimate/known.py")
    settings = {"dtype": "float32", "precision": "bfloat16", **more}
    return Work(text, 1, TOKENS, TOKENS, checkpointing=True, **settings)  # type: ignore[arg-type]  # keys by name


def _cell(memory: Memory | float) -> str:
    needed = (memory if isinstance(memory, float) else memory.peak) / GIB
    card = next((str(each) for each in CARDS if needed <= each * FULL), "-")
    return f"{needed:.0f} ({card})" if needed >= 10 else f"{needed:.1f} ({card})"


def _table(head: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _name(model: str) -> str:
    count = sizes(_work(model).config).whole.parameters
    return f"{model} ({count / 1e9:.1f}B)" if count >= 1e9 else f"{model} ({count / 1e6:.0f}M)"


# One device


def _one_device(models: Sequence[str]) -> Iterator[str]:
    yield "## One device\n"
    yield _paragraph(
        "*Full* trains all weights: kept in float32 and computed with in bf16 (`trainer.precision=bf16 "
        f"trainer.optimizer={FUSED}`), the same with an optimizer in 8 bits (`trainer.optimizer={IN_8_BITS}`),"
        " or all in bf16 (`model.dtype=bfloat16`, which rounds small steps away). *LoRA* is of rank 16 in all"
        " linear layers, over frozen weights in bf16 (`peft=lora model.dtype=bfloat16`) or in 4 bits "
        "(`peft=lora model.quantize=int4`)."
    )
    head = ("model", "full", "full, 8-bit optimizer", "full, bf16 alone", "LoRA", "LoRA over 4 bits")
    yield from _table(head, map(_alone, models))


def _alone(model: str) -> list[str]:
    bf16 = "bfloat16"
    ways = (
        (_work(model), FUSED),
        (_work(model), IN_8_BITS),
        (_work(model, dtype=bf16, precision=None), FUSED),
        (_work(model, dtype=bf16, precision=None, peft=ADAPTER), FUSED),
        (_work(model, peft=ADAPTER, quantize="int4"), FUSED),
    )
    return [_name(model), *(_cell(replica_memory(work, 1, name, "cuda", Sharing(NONE))) for work, name in ways)]


# Several devices


def _several(models: Sequence[str]) -> Iterator[str]:
    yield "## Several devices, full training\n"
    yield _paragraph(
        "Weights in float32, computed with in bf16. DeepSpeed's ZeRO shares the optimizer's states (1), "
        "gradients too (2), weights too (3); FSDP2 all three (`distributed.fsdp`); a pipeline has a stage a "
        "device and four micro-batches a stage (`distributed=pipeline`). DDP needs what one device needs, and"
        " a copy of the gradients."
    )
    counts = (2, 4, 8)
    head = ("model", "ZeRO-1, 8", "ZeRO-2, 8", "ZeRO-3, 8", *(f"FSDP, {n}" for n in counts))
    yield from _table((*head, *(f"pipeline, {n}" for n in counts)), (_shared(model, counts) for model in models))


def _shared(model: str, counts: Sequence[int]) -> list[str]:
    work, cells = _work(model), [_name(model)]
    ways = [*(Sharing(kind, 8) for kind in (ZERO1, ZERO2, ZERO3)), *(Sharing(FSDP, n) for n in counts)]
    for sharing in ways:
        # DeepSpeed keeps 16-bit weights beside its float32 copy.
        kept = work if sharing.kind == FSDP else dataclasses.replace(work, dtype="bfloat16", precision=None)
        cells.append(_cell(replica_memory(kept, 1, FUSED, "cuda", sharing)))
    for count in counts:
        cells.append(_cell(max(each.memory.peak for each in _pipeline(model, count).processes)))
    return cells


def _pipeline(
    model: str, stages: int, data_parallel: int = 1, micro_batches: int | None = None, *more: str
) -> Estimate:
    keys = ["method=sft", f"model={model}", "data=none", f"data.max_length={TOKENS}", "trainer.batch_size=1"]
    keys += ["trainer.precision=bf16", "trainer.gradient_checkpointing=true", f"trainer.optimizer={FUSED}"]
    keys += ["distributed=pipeline", f"distributed.stages={stages}", f"distributed.data_parallel={data_parallel}"]
    config = compose([*keys, f"trainer.accumulate={micro_batches or 4 * stages}", *more])
    return estimate(config, _work(model).config, None, _device())


def _device() -> Device:
    peak = peak_tflops(GPU)
    return Device("cuda", GPU, GPU_MEMORY, None if peak is None else peak * 1e12 * GPU_SHARE)


# Reinforcement learning from human feedback


def _feedback(models: Sequence[str]) -> Iterator[str]:
    yield "## Learning from feedback (PPO), with its four models\n"
    yield _paragraph(
        "Policy, reference, reward model and critic, all of one size. *Full*: policy and critic are trained "
        "whole, all four are shared by FSDP. *LoRA*: policy and critic are adapters, each over weights in "
        "bf16 or 4 bits; the policy with its adapter switched off is the reference. The two take turns, so "
        f"that one's activations are there at a time. The keys and values of {ANSWERS} answers of {TOKENS:,} "
        "tokens are counted as well. ChatLLaMA's table, which this one replaces, said: up to 1.3B on a 24 GB "
        "card, 3B on one of 80 GB, up to 20B on four to eight of these."
    )
    head = ("model", "full, 1", "full, 2", "full, 4", "full, 8", "LoRA, 1", "LoRA over 4 bits, 1")
    yield from _table(head, map(_four_models, models))


def _four_models(model: str) -> list[str]:
    work, cells = _work(model), [_name(model)]
    frozen = weight_bytes(sizes(work.config).whole, dataclasses.replace(work, dtype="bfloat16"))
    cache = _keys_and_values(work.config)
    for count in (1, 2, 4, 8):
        one = replica_memory(work, 1, FUSED, "cuda", Sharing(FSDP, count) if count > 1 else Sharing(NONE))
        cells.append(_cell(_two_trained(one) + 2 * frozen / count + cache))
    for lora in (
        _work(model, dtype="bfloat16", precision=None, peft=ADAPTER),
        _work(model, peft=ADAPTER, quantize="int4"),
    ):
        one = replica_memory(lora, 1, FUSED, "cuda", Sharing(NONE))
        reward = weight_bytes(sizes(work.config).whole, dataclasses.replace(lora, peft=None))
        cells.append(_cell(_two_trained(one) + reward + cache))
    return cells


def _two_trained(one: Memory) -> float:
    """Two models in training, of which one is at work and the other at rest."""
    return one.peak + one.weights + one.gradients + one.optimizer


def _keys_and_values(config: str) -> float:
    """Of all answers, in two bytes a number."""
    settings = config_of(config)
    heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
    size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    return float(2 * settings.num_hidden_layers * heads * size * TOKENS * ANSWERS * 2)


# Plans


def _plans() -> Iterator[str]:
    yield "## Plans\n"
    yield _paragraph(
        f"Time is for {GPU}s of 80 GB at {GPU_SHARE:.0%} of their peak, the share that published runs reach, "
        "and as if sending cost nothing beside computing. Tokens a second are those of all devices. None of "
        "it was run."
    )
    yield "### GPT-NeoX-20B on 8 devices of 80 GB\n"
    lora = ("peft=lora", "model.dtype=bfloat16")
    yield from _table(_PLAN_HEAD, iter((
        _plan("full, 8 stages (`training/finetune_gpt-neoxt-chat-base-20b.sh`)", _pipeline("gpt-neox-20b", 8, 1, 64)),
        _sharded_plan("full, FSDP", "gpt-neox-20b", 8),
        _plan("LoRA, 2 stages, 4 pipelines", _pipeline("gpt-neox-20b", 2, 4, 16, *lora)),
    )))  # fmt: skip
    yield "The first of them, a process a line:\n"
    yield from _processes(_pipeline("gpt-neox-20b", 8, 1, 64))
    yield "### Llama-3.3-70B on 4 machines of 8 devices of 80 GB\n"
    yield from _table(_PLAN_HEAD, iter((
        _plan("full, 32 stages", _pipeline("llama-3.3-70b", 32, 1, 128)),
        _sharded_plan("full, FSDP", "llama-3.3-70b", 32),
        _plan("LoRA, 4 stages, 8 pipelines", _pipeline("llama-3.3-70b", 4, 8, 32, *lora)),
    )))  # fmt: skip


_PLAN_HEAD = ("how", "GiB a device, at most", "tokens a step", "waiting", "s a step", "tokens/s", "10^9 tokens")


def _plan(name: str, found: Estimate) -> list[str]:
    needed = max(each.memory.peak for each in found.processes)
    seconds = found.seconds or float("nan")
    rate = found.tokens / seconds
    return [
        name,
        _cell(needed),
        f"{found.tokens:,}",
        f"{found.bubble:.0%}",
        f"{seconds:.0f}",
        f"{rate:,.0f}",
        f"{1e9 / rate / 3600:.0f} h",
    ]


def _sharded_plan(name: str, model: str, count: int) -> list[str]:
    keys = ["method=sft", f"model={model}", "data=none", f"data.max_length={TOKENS}", "trainer.batch_size=1"]
    keys += ["trainer.precision=bf16", "trainer.gradient_checkpointing=true", f"trainer.optimizer={FUSED}"]
    config = compose([*keys, "trainer.accumulate=8", "distributed.fsdp={reshard_after_forward: true}"])
    return _plan(name, estimate(config, _work(model).config, count, _device()))


def _processes(found: Estimate) -> Iterator[str]:
    def rows() -> Iterator[list[str]]:
        for number, process in enumerate(found.processes):
            memory = process.memory
            parts = (
                memory.weights,
                memory.gradients,
                memory.optimizer,
                memory.activations,
                memory.buffers,
                memory.peak,
            )
            (layers,) = process.layers
            yield [
                str(number),
                f"{layers.start}-{layers.stop - 1}",
                f"{process.size.parameters:,}",
                *(f"{each / GIB:.1f}" for each in parts),
            ]

    head = (
        "process",
        "layers",
        "parameters",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "buffers",
        "peak, GiB",
    )
    return _table(head, rows())


@click.command(cls=OneLineCommand)
def cli() -> None:
    """Write docs/hardware.md."""
    with atomic_write(home() / "docs" / "hardware.md") as file:
        file.write(hardware())


if __name__ == "__main__":
    cli()
