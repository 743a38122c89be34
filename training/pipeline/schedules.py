"""The order in which a pipeline's processes compute, by name: schedules of torch.distributed.pipelining, their limits.

p: processes of a pipeline; m: micro-batches of a step; v: stages a process. While a pipeline fills and drains its
processes wait; the share of the time, of gpipe and 1f1b, is (p - 1) / (m + p - 1) (Huang et al. 2019, GPipe).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """A name of ours and what it is in torch; `v_shaped`: the first process has the first and the last stage;
    `splits_backward`: gradients of weights are computed apart from those of activations, to fill the waiting."""

    name: str
    torch_name: str
    several_stages: bool
    v_shaped: bool = False
    splits_backward: bool = False

    def stages_of(self, process: int, num_processes: int, num_stages: int) -> list[int]:
        """The numbers of the stages of one process, from first to last."""
        if self.v_shaped:
            return sorted({process, num_stages - 1 - process})
        return list(range(process, num_stages, num_processes))

    def process_of(self, stage: int, num_processes: int, num_stages: int) -> int:
        """Which process has a stage."""
        if self.v_shaped:
            return min(stage, num_stages - 1 - stage)
        return stage % num_processes


SCHEDULES = {
    each.name: each
    for each in (
        Schedule("gpipe", "GPipe", several_stages=False),
        Schedule("1f1b", "1F1B", several_stages=False),
        Schedule("looped_bfs", "LoopedBFS", several_stages=True),
        Schedule("interleaved_1f1b", "Interleaved1F1B", several_stages=True),
        Schedule("interleaved_zero_bubble", "InterleavedZeroBubble", several_stages=True, splits_backward=True),
        Schedule("zbv", "ZBVZeroBubble", several_stages=True, v_shaped=True, splits_backward=True),
        Schedule("dualpipev", "DualPipeV", several_stages=True, v_shaped=True, splits_backward=True),
    )
}


def find_schedule(name: str) -> Schedule:
    """The schedule called `name`. Raises ValueError with all names where there is none."""
    if name not in SCHEDULES:
        raise ValueError(f"there is no pipeline schedule '{name}'; try: {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def check_fits(schedule: Schedule, num_processes: int, num_stages: int, num_micro_batches: int) -> None:
    """Raise ValueError, with the numbers, where `schedule` cannot run so."""
    p, m, name = num_processes, num_micro_batches, schedule.name
    each, rest = divmod(num_stages, p)
    if rest or each < 1:
        raise ValueError(f"{num_stages} stages cannot be shared evenly by {p} processes of a pipeline")
    if not schedule.several_stages and each != 1:
        raise ValueError(f"schedule {name} has 1 stage a process, not {each}; interleaved_1f1b takes several")
    if schedule.v_shaped and each != 2:
        raise ValueError(f"schedule {name} has exactly 2 stages a process, not {each}")
    if schedule.several_stages and each < 2:
        raise ValueError(f"schedule {name} needs at least 2 stages a process; with one take 1f1b")
    if m < 1:
        raise ValueError(f"a step needs at least 1 micro-batch, not {m}")
    if name == "1f1b" and m < p:
        raise ValueError(
            f"schedule 1f1b needs at least as many micro-batches as processes ({p}), not {m}; raise "
            "trainer.accumulate, or take gpipe"
        )
    if name == "dualpipev" and m < num_stages:
        raise ValueError(f"schedule dualpipev needs at least as many micro-batches as stages ({num_stages}), not {m}")
    if name.startswith("interleaved") and m % max(1, m // p):
        raise ValueError(
            f"schedule {name} needs micro-batches that divide into rounds of {p}: {m} does not, {m // p * p} does"
        )


def make_schedule(schedule: Schedule, stages: list[Any], num_micro_batches: int, loss: Any) -> Any:
    """torch's schedule over this process's `PipelineStage`s. Gradients are of the sum of losses, not of their mean."""
    from torch.distributed.pipelining.schedules import get_schedule_class

    over = stages if schedule.several_stages else stages[0]
    made = get_schedule_class(schedule.torch_name)
    return made(over, n_microbatches=num_micro_batches, loss_fn=loss, scale_grads=False)
