"""What runs where: processes, stages, layers, micro-batches. All that can be refused is refused here, with the numbers,
before a model is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.pipeline.balance import as_told, by_cost, by_count, costs
from training.pipeline.schedules import Schedule, check_fits, find_schedule

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

    def check(self, num_processes: int) -> None:
        """Raise ValueError where `num_processes` cannot run this."""
        if min(self.processes, self.data_parallel) < 1:
            raise ValueError(f"{self.processes} processes by {self.data_parallel} pipelines: each must be at least 1")
        if num_processes != self.processes * self.data_parallel:
            raise ValueError(
                f"{self.data_parallel} pipelines of {self.processes} processes need "
                f"{self.data_parallel * self.processes} processes, not {num_processes}; start so many with torchrun"
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
