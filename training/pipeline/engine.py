"""Steps of training over the processes of a pipeline, and over several pipelines side by side.

B: rows of a step, T: positions, H: width of the model. Every process of a pipeline is given the same rows; pipelines
side by side are given their own. A step's rows are cut into micro-batches, which follow each other through the stages.
Their losses are sums, divided by the tokens of the whole step over all pipelines: neither the cutting nor unequal
lengths change a gradient. Pipelines side by side add their gradients up when all micro-batches are through, which is
right for every schedule; DistributedDataParallel is not where backward passes are split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from training.examples.collate import IGNORE, Batch, num_loss_tokens
from training.pipeline.schedules import Schedule, make_schedule
from training.pipeline.stages import Stage, tie

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Stepped:
    """Mean loss over the tokens of a step, of all pipelines, and how many tokens these were."""

    loss: float
    num_tokens: int


class Pipeline:
    """This process's part of a pipeline: its `stages`, from first to last, of `num_stages` in all.

    `mesh` has the dimensions `data` (pipelines side by side) and `pipeline`. `scaler` is for fp16; `make_scaler` gives
    one, and whoever steps the optimizer unscales with it. All methods but `named_parameters` must be called by all
    processes together.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_stages: int,
        schedule: Schedule,
        num_micro_batches: int,
        mesh: DeviceMesh,
        device: torch.device,
        scaler: Any = None,
    ) -> None:
        self.stages, self.num_stages, self.schedule = list(stages), num_stages, schedule
        self.num_micro_batches, self.mesh, self.device, self.scaler = num_micro_batches, mesh, device, scaler
        self.process, self.num_processes = mesh.get_local_rank("pipeline"), mesh["pipeline"].size()
        self.numbers = schedule.stages_of(self.process, self.num_processes, num_stages)
        self._runner: tuple[tuple[int, int], Any] | None = None
        self._factor = 1.0  # from a summed loss to what gradients are computed of
        for stage in self.stages:
            stage.to(device)
        if self.has_both_ends:
            tie(self.stages[0], self.stages[-1])

    @property
    def has_both_ends(self) -> bool:
        """Whether this process has the first stage and the last."""
        return self.stages[0].is_first and self.stages[-1].is_last

    @property
    def has_adapter(self) -> bool:
        """Whether the stages are under adapters."""
        return hasattr(self.stages[0].model, "peft_config")

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """This process's parameters by their names in the whole model, a shared one once."""
        seen = set()
        for stage in self.stages:
            for name, parameter in stage.model.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield name, parameter

    def total(self, number: float) -> float:
        """The sum of `number` over the processes of a pipeline."""
        value = torch.tensor(number, dtype=torch.float64, device=self.device)
        self._sum("pipeline", value)
        return float(value)

    def num_layers(self) -> list[int]:
        """The layers of each stage of the pipeline."""
        own = {number: len(stage.layers) for number, stage in zip(self.numbers, self.stages, strict=True)}
        found: list[dict[int, int]] = [{}] * self.num_processes
        dist.all_gather_object(found, own, group=self.mesh.get_group("pipeline"))
        by_stage = {number: num for each in found for number, num in each.items()}
        return [by_stage[number] for number in range(self.num_stages)]

    # A step

    def step(self, batch: Batch) -> Stepped:
        """Forward and backward over this pipeline's rows: gradients of the mean loss are added to what is there."""
        num_tokens = self._num_tokens(batch)
        # Asked for a 1 the scaler gives its scale, and begins with one if it has none yet.
        scale = 1.0 if self.scaler is None else float(self.scaler.scale(torch.ones((), device=self.device)))
        self._factor = scale / max(num_tokens, 1)
        inputs = self._rows(batch)
        ids_BT = inputs.pop("input_ids")
        losses: list[torch.Tensor] = []
        ids = [ids_BT] if self.stages[0].is_first else []
        more = {"target": inputs["shift_labels"], "losses": losses} if self.stages[-1].is_last else {}
        runner = self._runner_for(ids_BT.shape[0] // self.num_micro_batches, ids_BT.shape[1])
        runner.step(*ids, **more, **inputs, return_outputs=False)
        self._add_up()
        return Stepped(self._shared(losses) / scale, num_tokens)

    def clip(self, max_norm: float) -> float:
        """Scale gradients down to a norm of at most `max_norm` over all stages; return what it was before."""
        trained = self._trained()
        # The head of a tied model is the embedding of another process, and is counted there.
        copy = None if self.has_both_ends or not self.stages[-1].is_last else self.stages[-1].end
        counted = [each.grad for each in trained if each.grad is not None and each is not copy]
        squared = get_total_norm(counted).to(self.device, torch.float32) ** 2
        self._sum("pipeline", squared)
        norm = squared.sqrt()
        clip_grads_with_norm_(trained, max_norm, norm)
        return float(norm)

    def evaluate(self, batch: Batch) -> Stepped:
        """The mean loss without gradients and without dropout."""
        num_tokens = self._num_tokens(batch)
        self._factor = 1.0 / max(num_tokens, 1)
        modes = [stage.training for stage in self.stages]
        for stage in self.stages:
            stage.eval()
        with torch.no_grad():
            losses = self._forward(self._rows(batch))
        for stage, mode in zip(self.stages, modes, strict=True):
            stage.train(mode)
        return Stepped(self._shared(losses), num_tokens)

    # Within this process

    def _trained(self) -> list[torch.nn.Parameter]:
        return [each for _, each in self.named_parameters() if each.requires_grad]

    def _rows(self, batch: Batch) -> Batch:
        """The tensors of `batch` on the device, with rows that have no loss added until they divide evenly."""
        tensors = {key: each.to(self.device) for key, each in batch.items() if isinstance(each, torch.Tensor)}
        if missing := -len(tensors["input_ids"]) % self.num_micro_batches:
            for key, each in tensors.items():
                tensors[key] = torch.cat([each, each[:1].expand(missing, *each.shape[1:])])
            tensors["shift_labels"][-missing:] = IGNORE
        return tensors

    def _runner_for(self, num_rows: int, width: int) -> Any:
        """torch's schedule for micro-batches of this shape. Shapes are told, so that nothing need be tried or sent."""
        if self._runner is None or self._runner[0] != (num_rows, width):
            ids = torch.empty(num_rows, width, dtype=torch.int64, device="meta")
            loss = torch.empty((), device="meta", requires_grad=True)
            hidden = self._hidden(num_rows, width, "meta").requires_grad_()
            made = [
                PipelineStage(
                    stage,
                    number,
                    self.num_stages,
                    self.device,
                    input_args=(ids if stage.is_first else hidden,),
                    output_args=(loss if stage.is_last else hidden,),
                    group=self.mesh.get_group("pipeline"),
                )
                for number, stage in zip(self.numbers, self.stages, strict=True)
            ]
            runner = make_schedule(self.schedule, made, self.num_micro_batches, lambda loss, _: loss * self._factor)
            self._runner = ((num_rows, width), runner)
        return self._runner[1]

    def _hidden(self, num_rows: int, width: int, device: str | torch.device) -> torch.Tensor:
        stage = self.stages[0]
        return torch.empty(num_rows, width, stage.bare.config.hidden_size, dtype=stage.dtype, device=device)

    def _forward(self, inputs: Batch) -> list[torch.Tensor]:
        """One micro-batch after the other through all stages, in an order that is the same for all processes, so that
        none can wait for another in a circle. torch's own `eval` fails for V-shaped schedules."""
        group, own, losses = self.mesh.get_group("pipeline"), dict(zip(self.numbers, self.stages, strict=True)), []
        for rows in zip(*(each.tensor_split(self.num_micro_batches) for each in inputs.values()), strict=True):
            micro_batch = dict(zip(inputs, rows, strict=True))
            x = micro_batch.pop("input_ids")
            for number, stage in own.items():
                if not stage.is_first and number - 1 not in own:
                    x = self._hidden(x.shape[0], x.shape[1], self.device)
                    dist.recv(x, group=group, group_src=self._process_of(number - 1))
                x = stage(x, **micro_batch)
                if not stage.is_last and number + 1 not in own:
                    dist.send(x.contiguous(), group=group, group_dst=self._process_of(number + 1))
                if stage.is_last:
                    losses.append(x * self._factor)
        return losses

    # Between processes

    def _process_of(self, stage: int) -> int:
        return self.schedule.process_of(stage, self.num_processes, self.num_stages)

    def _num_tokens(self, batch: Batch) -> int:
        """Tokens with a loss in this step, over all pipelines."""
        count = num_loss_tokens(batch).to(self.device)
        self._sum("data", count)
        return int(count)

    def _add_up(self) -> None:
        """Sum gradients over pipelines, and over both ends of this one where head and embedding are one tensor."""
        if self.mesh["data"].size() > 1:
            group, works = self.mesh.get_group("data"), []
            for each in self._trained():
                if each.grad is None:  # another pipeline may have one, and waits
                    each.grad = torch.zeros_like(each)
                works.append(dist.all_reduce(each.grad, group=group, async_op=True))
            for work in works:
                work.wait()
        if self.has_both_ends:
            return
        if self.stages[0].is_first:
            end, other = self.stages[0].end, self.num_stages - 1
        elif self.stages[-1].is_last:
            end, other = self.stages[-1].end, 0
        else:
            return
        if end is not None and end.requires_grad:
            self._add_others(end, self._process_of(other))

    def _add_others(self, shared: torch.nn.Parameter, process: int) -> None:
        """Add the gradient that another process has for the same tensor; a + b is b + a to the bit, so that both stay
        the same."""
        if shared.grad is None:
            shared.grad = torch.zeros_like(shared)
        group, received = self.mesh.get_group("pipeline"), torch.empty_like(shared.grad)
        peer = dist.get_global_rank(group, process)
        ways = [dist.P2POp(dist.isend, shared.grad, peer, group), dist.P2POp(dist.irecv, received, peer, group)]
        for work in dist.batch_isend_irecv(ways):
            work.wait()
        shared.grad += received

    def _shared(self, losses: list[torch.Tensor]) -> float:
        """The sum of the last stage's losses over micro-batches and pipelines, told to all."""
        total = torch.zeros((), device=self.device)
        for loss in losses:
            total += loss.detach()
        self._sum("pipeline", total)
        self._sum("data", total)
        return float(total)

    def _sum(self, dimension: str, value: torch.Tensor) -> None:
        dist.all_reduce(value, group=self.mesh.get_group(dimension))


def make_scaler(mesh: DeviceMesh, device: torch.device, initial: float = 2.0**16) -> Any:
    """A scaler of losses for fp16, whose decision to leave a step out is one for all stages."""
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(device.type, init_scale=initial, process_group=mesh.get_group("pipeline"))
