"""What each process of a pipeline computes, in which order, and how long it waits: played through on paper.

F: forward; B: backward; I and W: the parts of a backward pass that give gradients of activations and of weights. The
orders of schedules with several stages a process are torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from training.pipeline.schedules import Schedule

FORWARD, BACKWARD, INPUT, WEIGHT = "F", "B", "I", "W"


class Action(NamedTuple):
    """`kind` of computation (F, B, I, W) of a stage with a micro-batch."""

    stage: int
    kind: str
    micro_batch: int


@dataclass(frozen=True)
class Played:
    """Time from start to end of a step, in units of the stages' costs, and the share of it that processes wait, from 0
    to 1."""

    length: float
    bubble: float


@cache
def orders(schedule: Schedule, num_processes: int, num_stages: int, num_micro_batches: int) -> list[list[Action]]:
    """The actions of each process. The settings must fit (`training.pipeline.schedules.check_fits`)."""
    p, m = num_processes, num_micro_batches
    if schedule.name == "gpipe":
        return [[Action(r, kind, i) for kind in (FORWARD, BACKWARD) for i in range(m)] for r in range(p)]
    if schedule.name == "1f1b":
        return [_one_forward_one_backward(r, min(m, p - r), m) for r in range(p)]
    return _by_torch(schedule, p, num_stages, m)


def _one_forward_one_backward(stage: int, warm_up: int, num_micro_batches: int) -> list[Action]:
    """Narayanan et al. 2019 (PipeDream), 3.2: `warm_up` forwards, then one of each in turn."""
    made = [Action(stage, FORWARD, i) for i in range(warm_up)]
    for i in range(num_micro_batches):
        made.append(Action(stage, BACKWARD, i))
        if i + warm_up < num_micro_batches:
            made.append(Action(stage, FORWARD, i + warm_up))
    return made


def _by_torch(schedule: Schedule, num_processes: int, num_stages: int, num_micro_batches: int) -> list[list[Action]]:
    from torch.distributed.pipelining.schedules import get_schedule_class

    each = num_stages // num_processes
    seats: list[Any] = [_Seat(num_stages, num_processes, number) for number in range(each)]
    made = get_schedule_class(schedule.torch_name)(seats, num_micro_batches, loss_fn=_no_loss)
    found = []
    for process in range(num_processes):
        flat = [part for each in made.pipeline_order[process] if each for part in each.sub_actions or (each,)]
        found.append([Action(a.stage_index, a.computation_type.value, a.microbatch_index) for a in flat])
    return [[a for a in actions if a.kind in (FORWARD, BACKWARD, INPUT, WEIGHT)] for actions in found]


class _Seat:
    """What torch's schedules ask of a stage when they lay out their order."""

    group_rank = 0
    is_first, is_last, has_backward = True, False, True

    def __init__(self, num_stages: int, group_size: int, stage_index: int) -> None:
        from torch import nn

        self.num_stages, self.group_size, self.stage_index = num_stages, group_size, stage_index
        self.submod = nn.Identity()


def _no_loss(*_: Any) -> None:
    """Stands for a loss, which no order depends on."""


def play(order: Sequence[Sequence[Action]], forward: Sequence[float], backward: Sequence[float]) -> Played:
    """Every action as soon as what it needs is there. `forward` and `backward` are the costs of each stage; sending
    costs nothing. Where a backward pass is in two parts, each takes half, but the first stage does all in the second.
    """
    num_stages = len(forward)
    ends: dict[tuple[int, str, int], float] = {}
    clocks, places = [0.0] * len(order), [0] * len(order)
    while any(place < len(actions) for place, actions in zip(places, order, strict=True)):
        moved = False
        for process, actions in enumerate(order):
            while places[process] < len(actions):
                action = actions[places[process]]
                ready = _ready(action, ends, num_stages)
                if ready is None:
                    break
                end = max(clocks[process], ready) + _cost(action, forward, backward)
                kind = BACKWARD if action.kind == INPUT else action.kind
                clocks[process] = ends[action.stage, kind, action.micro_batch] = end
                places[process], moved = places[process] + 1, True
        if not moved:
            raise ValueError("the order of this schedule never ends")
    length = max(clocks)
    busy = sum(_cost(action, forward, backward) for actions in order for action in actions)
    return Played(length, 1 - busy / (length * len(order)))


def _ready(action: Action, ends: dict[tuple[int, str, int], float], num_stages: int) -> float | None:
    """When what `action` needs was there; None where it is not yet."""
    stage, kind, micro_batch = action
    if kind == FORWARD:
        needed = [(stage - 1, FORWARD)] if stage else []
    elif kind == WEIGHT:
        needed = [(stage, BACKWARD)]
    else:
        needed = [(stage, FORWARD), *([(stage + 1, BACKWARD)] if stage + 1 < num_stages else [])]
    found = [ends.get((*each, micro_batch)) for each in needed]
    return None if None in found else max((each for each in found if each is not None), default=0.0)


def _cost(action: Action, forward: Sequence[float], backward: Sequence[float]) -> float:
    if action.kind == FORWARD:
        return forward[action.stage]
    if action.kind == BACKWARD:
        return backward[action.stage]
    if action.stage == 0:  # see torch's PipelineStage.backward_one_chunk
        return 0.0 if action.kind == INPUT else backward[0]
    return backward[action.stage] / 2
