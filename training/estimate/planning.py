"""From a run's configuration and its model's to an estimate: who has what, how much memory, how long a step."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from common.files import expand, read_json
from training.estimate.memory import (
    BYTES,
    DDP,
    FSDP,
    NONE,
    Memory,
    Sharing,
    gathered_bytes,
    of_process,
    weight_bytes,
)
from training.estimate.orders import BACKWARD, FORWARD, Action, orders, play
from training.estimate.parameters import Size, Sizes, sizes
from training.estimate.speed import Device
from training.estimate.tracing import Work, config_of, needs

if TYPE_CHECKING:
    from training.config.schema import Config
    from training.pipeline.plan import Plan

# Answers a row that are in a batch together; two where a row has any number of them.
_ROWS = {"dpo": 2, "kto": 2, "reward": 2, "rrhf": 2}
# Methods that measure against the model as it was: a frozen copy, unless an adapter can be switched off.
_AGAINST_REFERENCE = ("dpo", "kto", "offline_ppo", "ppo", "grpo")
_SCORES = ("reward", "classification")  # numbers for whole rows in place of logits
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_CUT = ("ntp", "sft", "prefix_lm")


@dataclass(frozen=True)
class Process:
    """One process: the `layers` of its stages, the `size` of its part of the model, its `memory`."""

    layers: tuple[range, ...]
    size: Size
    memory: Memory


@dataclass(frozen=True)
class Estimate:
    """`processes`: those of one pipeline, or one where all are alike; `num_processes`: of the run. `tokens`: of a step,
    at most; `operations`: floating-point operations of a step, over all processes, without what checkpointing repeats.
    `bubble`: the share of the time that processes wait for each other; `seconds`: of a step, None where the device is
    not known."""

    processes: tuple[Process, ...]
    num_processes: int
    size: Size
    tokens: int
    operations: float
    bubble: float
    seconds: float | None


def estimate(config: Config, model: str, num_processes: int | None, device: Device) -> Estimate:
    """What the run `config` takes of each device, with the model that `model` describes (its config.json).

    `num_processes` None: as many as a pipeline needs, else 1. All positions of all rows count, as if each had a loss: a
    run whose rows are shorter, or have prompts, takes less. Raises ValueError for what the run itself would refuse,
    and for models other than decoders.
    """
    work = work_of(config, model)
    if config.distributed.mode.value == "pipeline":
        return _pipeline(config, work, num_processes, device)
    return _replicas(config, work, num_processes or 1, device)


def work_of(config: Config, model: str) -> Work:
    """A micro-batch of `config`."""
    settings = {**json.loads(model), **(config.model.config if config.model.from_scratch else {})}
    if settings.get("is_encoder_decoder"):
        raise ValueError(
            f"there is no estimate for {settings['model_type']}, which has an encoder and a decoder; only for decoders"
        )
    if any(settings.get(name) for name in _EXPERTS):
        raise ValueError(f"there is no estimate for {settings['model_type']}, a mixture of experts")
    method, peft = config.method.name, config.peft
    rows = config.trainer.batch_size * _ROWS.get(method, 1)
    return Work(
        config=json.dumps(settings, sort_keys=True),
        rows=rows,
        tokens=config.data.max_length,
        loss_tokens=rows * config.data.max_length,
        dtype=config.model.dtype.value,
        precision={"bf16": "bfloat16", "fp16": "float16"}.get(config.trainer.precision.value),
        checkpointing=config.trainer.gradient_checkpointing,
        attention=config.model.attention,
        packed=config.data.packing,
        peft=json.dumps(dataclasses.asdict(peft), sort_keys=True) if peft.name else None,
        quantize=config.model.quantize.value,
        scores=method in _SCORES,
    )


def _replicas(config: Config, work: Work, num_processes: int, device: Device) -> Estimate:
    """Every process has the whole model, or its shard of it, and rows of its own."""
    trainer, found = config.trainer, sizes(work.config, work.peft)
    sharing = sharing_of(config, num_processes)
    memory = replica_memory(work, trainer.accumulate, trainer.optimizer, device.kind, sharing)
    memory = _with_reference(config, work, memory)
    tokens = work.rows * work.tokens * trainer.accumulate
    every = range(len(found.layers))
    operations = found.operations(every, tokens, work.tokens)
    seconds = None if device.operations is None else operations * _repeats(work) / device.operations
    process = Process((every,), found.whole, memory)
    n = num_processes
    return Estimate((process,), n, found.whole, tokens * n, operations * n, 0.0, seconds)


def replica_memory(work: Work, micro_batches: int, optimizer: str, device: str, sharing: Sharing) -> Memory:
    """Of a process that has the whole model, or its share of it, on cpu or cuda."""
    found = sizes(work.config, work.peft)
    sharded = sharing.kind not in (NONE, DDP) and not work.peft
    # What is gathered, or kept beside float32 copies, is in the numbers that are computed with.
    traced = dataclasses.replace(work, dtype=work.precision or work.dtype) if sharded else work
    return of_process(
        {0: found.whole},
        {0: needs(traced, len(found.layers))},
        [Action(0, kind, i) for i in range(micro_batches) for kind in (FORWARD, BACKWARD)],
        work,
        optimizer,
        device,
        gathered_bytes(found, work, sharing),
        sharing,
    )


def _with_reference(config: Config, work: Work, memory: Memory) -> Memory:
    method = config.method.name
    if method not in _AGAINST_REFERENCE or work.peft or getattr(config.method, "precompute_reference", False):
        return memory
    copy = weight_bytes(sizes(work.config).whole, work)
    return dataclasses.replace(memory, weights=memory.weights + copy, peak=memory.peak + copy)


def sharing_of(config: Config, num_processes: int) -> Sharing:
    """How processes that are not a pipeline share the model. Raises ValueError for a DeepSpeed file that is none."""
    wanted = config.distributed
    if wanted.fsdp:
        return Sharing(FSDP, num_processes, reshard=bool(wanted.fsdp.get("reshard_after_forward", True)))
    if wanted.deepspeed is None:
        return Sharing(DDP if num_processes > 1 else NONE, num_processes)
    path = expand(wanted.deepspeed)
    zero = read_json(path).get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{path}: zero_optimization.stage={stage}; DeepSpeed has 0, 1, 2 and 3")
    bucket, live = zero.get("reduce_bucket_size", 5e8), zero.get("stage3_max_live_parameters", 1e9)
    return Sharing(
        f"zero{stage}" if stage else DDP,
        num_processes,
        bucket=bucket if isinstance(bucket, int | float) else 5e8,
        live=live if isinstance(live, int | float) else 1e9,
        offload=zero.get("offload_optimizer", {}).get("device", "none") != "none",
    )


# Pipelines


def _pipeline(config: Config, work: Work, num_processes: int | None, device: Device) -> Estimate:
    from training.pipeline.plan import plan_of

    if config.method.name not in _CUT:
        raise ValueError(f"distributed=pipeline is not for method={config.method.name}; leave it out")
    plan = plan_of(config)
    plan.check(plan.num_all if num_processes is None else num_processes)
    found, cuts = sizes(work.config, work.peft), plan.cuts(config_of(work.config), work.tokens)
    _check_cutting(work.config)
    order = orders(plan.order, plan.processes, plan.num_stages, plan.micro_batches)
    processes = []
    for number in range(plan.processes):
        numbers = plan.order.stages_of(number, plan.processes, plan.num_stages)
        processes.append(_process(plan, work, found, cuts, numbers, order[number], config.trainer.optimizer, device))
    rows = work.rows * work.tokens
    costs = [found.operations(cut, rows, work.tokens) for cut in cuts]
    length, bubble = _played(work, order, costs)
    seconds = None if device.operations is None else length / device.operations
    tokens = rows * plan.micro_batches * plan.data_parallel
    operations = sum(costs) * plan.micro_batches * plan.data_parallel
    return Estimate(tuple(processes), plan.num_all, found.whole, tokens, operations, bubble, seconds)


@cache
def _check_cutting(config: str) -> None:
    from training.pipeline.trial import check_cutting

    check_cutting(config_of(config))


def _process(
    plan: Plan,
    work: Work,
    found: Sizes,
    cuts: list[range],
    numbers: list[int],
    order: list[Action],
    optimizer: str,
    device: Device,
) -> Process:
    traced, last = {}, plan.num_stages - 1
    for number in numbers:
        part = dataclasses.replace(
            work, first=number == 0, last=number == last, splits_backward=plan.order.splits_backward
        )
        traced[number] = needs(part, len(cuts[number]))
    stages = {number: found.of(cuts[number]) for number in numbers}
    if found.tied and set(numbers) == {0, last}:  # one tensor for both ends
        head = stages[last]
        stages[last] = dataclasses.replace(
            head,
            parameters=head.parameters - found.head.parameters,
            trained=head.trained - found.head.trained,
        )
    # Buffers for hidden states and their gradients, of all micro-batches at once.
    hidden = work.rows * work.tokens * config_of(work.config).hidden_size * BYTES[work.dtype]
    ways = sum((number > 0) + (number < last) for number in numbers)
    memory = of_process(stages, traced, order, work, optimizer, device.kind, ways * hidden * plan.micro_batches)
    return Process(tuple(cuts[number] for number in numbers), sum(stages.values(), Size()), memory)


def _played(work: Work, order: list[list[Action]], costs: list[float]) -> tuple[float, float]:
    """(operations along the longest way through a step, share of waiting)."""
    forward = [cost / (2 if work.peft else 3) for cost in costs]  # 2 of 4 operations a frozen parameter, 2 of 6 others
    repeated = forward if work.checkpointing else [0.0] * len(costs)
    backward = [cost - one + again for cost, one, again in zip(costs, forward, repeated, strict=True)]
    played = play(order, forward, backward)
    return played.length, played.bubble


def _repeats(work: Work) -> float:
    """How much more is computed where activations are computed again: one more forward pass."""
    return 1.0 if not work.checkpointing else (1.5 if work.peft else 4 / 3)


def steps_of(config: Config, num_rows: int, num_replicas: int) -> int:
    """Steps of the run over `num_rows` examples."""
    trainer = config.trainer
    if trainer.max_steps is not None:
        return trainer.max_steps
    kept = num_rows - round(num_rows * config.data.eval_fraction)
    batches = math.ceil(kept / (trainer.batch_size * num_replicas))
    return math.ceil(trainer.epochs * math.ceil(batches / trainer.accumulate))
