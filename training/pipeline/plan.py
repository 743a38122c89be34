"""What runs where: processes, stages, layers, micro-batches. All that can be refused is refused here, with the numbers,
before a model is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.pipeline.balance import as_told, by_cost, by_count, costs
from training.pipeline.schedules import Schedule, check_fits, find_schedule

if TYPE_CHECKING:
    from training.config.schema import Config

COST, COUNT = "cost", "count"


@dataclass(frozen=True)
class Plan:
    """`processes` of a pipeline, `data_parallel` pipelines side by side; `micro_batches` of a step of one pipeline.

    `stages_per_process` is 1, and 2 for schedules with several, unless told. `layers` are shared by `cost` or `count`,
    or told for each stage.
    """

    processes: int
    data_parallel: int = 1
    schedule: str = "1f1b"
    micro_batches: int = 4
    stages_per_process: int | None = None
    layers: str | Sequence[int] = COST

    @property
    def order(self) -> Schedule:
        """The schedule. Raises ValueError for a name that is none."""
        return find_schedule(self.schedule)

    @property
    def num_stages(self) -> int:
        """Stages of a pipeline, over all its processes."""
        return self.processes * (self.stages_per_process or (2 if self.order.several_stages else 1))

    @property
    def num_all(self) -> int:
        """Processes of all pipelines."""
        return self.processes * self.data_parallel

    def check(self, num_processes: int) -> None:
        """Raise ValueError where `num_processes` cannot run this."""
        if min(self.processes, self.data_parallel) < 1:
            raise ValueError(f"{self.processes} processes by {self.data_parallel} pipelines: each must be at least 1")
        if num_processes != self.num_all:
            raise ValueError(
                f"{self.data_parallel} pipelines of {self.processes} processes need {self.num_all} processes, not "
                f"{num_processes}; start so many with torchrun --nproc-per-node {self.num_all}"
            )
        check_fits(self.order, self.processes, self.num_stages, self.micro_batches)

    def cuts(self, config: Any, tokens: int) -> list[range]:
        """The layers of each stage, of the model that `config` describes, with rows of `tokens`."""
        num_layers, num_stages = config.num_hidden_layers, self.num_stages
        if self.layers == COUNT:
            return by_count(num_layers, num_stages)
        if self.layers == COST:
            layers, head = costs(config, tokens)
            return by_cost(layers, head, num_stages)
        if isinstance(self.layers, str):
            raise ValueError(f"layers are shared by {COST} or {COUNT}, or told as a list, not '{self.layers}'")
        if len(self.layers) != num_stages:
            raise ValueError(f"layers are told for {len(self.layers)} stages, but there are {num_stages}")
        return as_told(self.layers, num_layers)


def plan_of(config: Config) -> Plan:
    """The pipeline that `config` asks for: a step has `trainer.accumulate` micro-batches of `trainer.batch_size` rows.

    Raises ValueError for settings that a pipeline does not have, and for stages that no processes can share.
    """
    wanted, trainer = config.distributed, config.trainer
    excluded = {
        "distributed.fsdp": wanted.fsdp,
        "distributed.deepspeed": wanted.deepspeed,
        "model.from_scratch": config.model.from_scratch,
        "model.quantize": config.model.quantize.value != "none",
        "trainer.compile": trainer.compile,
    }
    if found := next((key for key, value in excluded.items() if value), None):
        raise ValueError(f"distributed=pipeline and {found} exclude each other; leave one out")
    each = wanted.stages_per_process or (2 if find_schedule(wanted.schedule).several_stages else 1)
    processes, rest = divmod(wanted.stages, each)
    if rest or processes < 1:
        raise ValueError(f"distributed.stages={wanted.stages} cannot be shared by processes with {each} stages each")
    return Plan(processes, wanted.data_parallel, wanted.schedule, trainer.accumulate, each, wanted.layers)
