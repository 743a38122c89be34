"""Memory of one process, from what its part of the model weighs and what its micro-batches need. Bytes throughout.

What weights, gradients and optimizer states take, whole or in shards, is arithmetic (Rajbhandari et al. 2020, ZeRO,
section 3); activations are traced (`tracing.py`). Not all of it is there at once: `Memory.peak` is the most that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from training.estimate.orders import BACKWARD, FORWARD, INPUT, Action
from training.estimate.parameters import Size, Sizes
from training.estimate.tracing import Needs, Work

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Python, torch and transformers before a model is opened: measured on Linux with the CPU build. A CUDA context with
# cuBLAS takes about as much of the device; that figure is not measured here.
LIBRARIES = {"cpu": 0.53 * GIB, "cuda": 0.6 * GIB}
# 4 bits and, for each block of 64 values, a constant that is quantised again (Dettmers et al. 2023, QLoRA, section 3).
BITS = {"int4": 4.127, "int8": 8.0}

# States of a value, in values of its own size: transformers' names without their variants.
_STATES = {"adamw": 2.0, "ademamix": 3.0, "sgd": 0.0, "adafactor": 0.0, "rmsprop": 1.0, "adagrad": 1.0, "lion": 1.0}
_BLOCK = 1 + 4 / 256  # bytes of a state in 8 bits: bitsandbytes has a float32 for each block of 256

NONE, DDP, ZERO1, ZERO2, ZERO3, FSDP = "none", "ddp", "zero1", "zero2", "zero3", "fsdp"


@dataclass(frozen=True)
class Sharing:
    """How `processes` share a model that each trains on its own rows: `kind`, one of the constants above.

    DeepSpeed's ZeRO: `bucket` values are reduced or gathered at a time, `live` values gathered at most (ZeRO-3), and
    with `offload` the optimizer's states are in the host's memory. `reshard`: FSDP lets go of a layer after its
    forward pass.
    """

    kind: str = NONE
    processes: int = 1
    bucket: float = 5e8
    live: float = 1e9
    offload: bool = False
    reshard: bool = True


_ALONE = Sharing()


@dataclass(frozen=True)
class Memory:
    """Of one process. `activations`: of all micro-batches in flight; `buffers`: of communication; `libraries`: what is
    there before a model is; `peak`: of all together; `host`: in the host's memory instead."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    libraries: float
    peak: float
    host: float = 0.0


def weight_bytes(size: Size, work: Work) -> float:
    """Of all weights of a part; an adapter's are float32 (PEFT's autocast_adapter_dtype), and so is all that is not
    quantised beside quantised weights."""
    if work.quantize != "none":
        return size.packable * BITS[work.quantize] / 8 + (size.parameters - size.packable) * 4
    if work.peft:
        return size.trained * 4 + (size.parameters - size.trained) * BYTES[work.dtype]
    return size.parameters * BYTES[work.dtype]


def value_bytes(work: Work) -> int:
    """Of one trained value and of its gradient."""
    return 4 if work.peft else BYTES[work.dtype]


def optimizer_bytes(name: str, trained: float, size_of_value: float) -> float:
    """States of an optimizer, by transformers' name for it. One that is not known counts as AdamW."""
    family = next((each for each in _STATES if each in name), "adamw")
    if "4bit" in name:
        return trained * _STATES[family] * 0.5
    return trained * _STATES[family] * (_BLOCK if "8bit" in name else size_of_value)


def update_bytes(name: str, size: Size, size_of_value: float, device: str) -> float:
    """What a step of the optimizer takes for a moment: torch's AdamW on a GPU a copy of one state for all parameters at
    once (foreach), else for one parameter at a time; fused ones and bitsandbytes' nothing."""
    if "fused" in name or "bit" in name:
        return 0.0
    return size.trained * size_of_value if device == "cuda" else 2 * min(size.largest, size.trained) * size_of_value


def flight(order: Sequence[Action], needs: Mapping[int, Needs], gradients: Mapping[int, float]) -> tuple[float, float]:
    """(most activations kept at once, peak) of a process that does `order`, beside weights and optimizer states.

    `gradients` are the bytes of each stage; a stage has them from its first backward pass on.
    """
    live = most = peak = 0.0
    there: dict[int, float] = {}
    for stage, kind, _ in order:
        need = needs[stage]
        if kind == FORWARD:
            live += need.kept
            most = max(most, live)
            continue
        held = need.kept if kind in (BACKWARD, INPUT) else need.between
        own = need.later if stage in there else need.first
        peak = max(peak, live - held + sum(there.values()) + max(own))
        live -= held
        if kind == INPUT:
            live += need.between
            most = max(most, live)
        else:
            there[stage] = gradients[stage]
    return most, max(peak, sum(there.values()))


def of_process(
    stages: Mapping[int, Size],
    needs: Mapping[int, Needs],
    order: Sequence[Action],
    work: Work,
    optimizer: str,
    device: str,
    buffers: float = 0.0,
    sharing: Sharing = _ALONE,
) -> Memory:
    """A process that has `stages`, by their numbers (one, the whole model, where there is no pipeline), and works in
    this `order`. `buffers`: what its communication takes beside `sharing`'s; `device`: cpu or cuda."""
    value, size = value_bytes(work), sum(stages.values(), Size())
    weights, gradients, states = _shares(size, work, optimizer, sharing)
    share = gradients / max(size.trained * value, 1)
    if sharing.kind in (ZERO2, ZERO3, FSDP):  # gradients go as they come: none pile up before they are there
        needs = {number: replace(need, first=need.later) for number, need in needs.items()}
    kept, peak = flight(order, needs, {number: each.trained * value * share for number, each in stages.items()})
    if sharing.kind == DDP:
        buffers += gradients  # its buckets are a copy of all gradients
    updating = gradients + update_bytes(optimizer, size, value, device) * share
    host = states if sharing.offload else 0.0
    total = weights + states - host + buffers + LIBRARIES[device] + max(peak, updating)
    return Memory(weights, gradients, states - host, kept, buffers, LIBRARIES[device], total, host)


def _shares(size: Size, work: Work, optimizer: str, sharing: Sharing) -> tuple[float, float, float]:
    """(weights, gradients, optimizer states) of one process."""
    value, kind, n = value_bytes(work), sharing.kind, sharing.processes
    weights, gradients = weight_bytes(size, work), size.trained * value
    states = optimizer_bytes(optimizer, size.trained, value)
    if kind in (NONE, DDP):
        return weights, gradients, states
    if kind != FSDP:  # DeepSpeed trains a float32 copy, with float32 states
        states = optimizer_bytes(optimizer, size.trained, 4) + size.trained * 4
    return (
        weights / n if kind in (ZERO3, FSDP) else weights,
        gradients / n if kind in (ZERO2, ZERO3, FSDP) else gradients,
        states / n,
    )


def gathered_bytes(sizes: Sizes, work: Work, sharing: Sharing) -> float:
    """What is there for a moment where a model is shared: whole layers, their gradients, buckets.

    FSDP2 gathers a layer while the one before it computes, and keeps what is outside the layers until the end; in the
    backward pass a layer's gradients are whole before they are scattered, and once more while they are.
    """
    one, whole = BYTES[work.precision or work.dtype], sizes.whole
    if sharing.kind in (NONE, DDP):
        return 0.0
    if sharing.kind != FSDP:
        live = min(sharing.live, whole.parameters) if sharing.kind == ZERO3 else 0.0
        return one * (2 * min(sharing.bucket, whole.trained) + live)
    largest = max(sizes.layers, key=lambda each: each.parameters)
    ends = whole.parameters - sum(each.parameters for each in sizes.layers)
    trained_ends = whole.trained - sum(each.trained for each in sizes.layers)
    layers = 2 * largest.parameters if sharing.reshard else whole.parameters - ends
    return one * (ends + trained_ends + layers + 2 * largest.trained)
