"""The trainer of all other runs, over the stages of a pipeline: its data, schedules, logs, checkpoints and evaluation.

A step is given all its rows at once; training/pipeline/engine.py cuts them into micro-batches. Processes of one
pipeline are given the same rows. The weights of a checkpoint are a shard from each process of the first pipeline.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.checkpoints import TRAINING
from training.examples.collate import Batch, num_loss_tokens
from training.pipeline.loaded import Stages
from training.pipeline.saving import join_parts, load_optimizer, write_optimizer, write_part
from training.pipeline.writing import Writing, mark, wait_for_marks
from training.state_files import load_tree, random_state, save_tree
from training.trainer import ParleyTrainer

GENERATION, PIPELINE = "generation_config.json", "pipeline"


class PipelineTrainer(ParleyTrainer):
    """Trains this process's `Stages`. It is given what a ParleyTrainer is."""

    model: Stages

    def __init__(self, model: Stages, *args: Any, **more: Any) -> None:
        self.pipeline = model.pipeline
        super().__init__(model, *args, **more)
        self.accelerator.scaler = self.pipeline.scaler
        self._writing = Writing()

    def _share(self) -> tuple[int, int]:
        data = self.pipeline.mesh["data"]
        return data.get_local_rank(), data.size()

    def _sync_replicated_trainable_parameters(self, model: Any) -> None:
        """Nothing: each process has its own stages, and the engine sums gradients over pipelines."""

    def train(self, *args: Any, **more: Any) -> Any:
        """As the Trainer does; return when the last checkpoint is there."""
        result = super().train(*args, **more)
        self._writing.until_done()
        self.accelerator.wait_for_everyone()
        return result

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As the Trainer does; its step changes weights, and waits until those before it are written."""
        optimizer = super().create_optimizer(model)
        optimizer.register_step_pre_hook(lambda *_: self._writing.until_written())
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What other trainers log, and the seconds that this process waited for checkpoints since the last line."""
        if self._writing.waited > 1e-3:
            logs, self._writing.waited = {**logs, "save_wait_time": self._writing.waited}, 0.0
        super().log(logs, start_time)

    # A step

    def get_total_train_batch_size(self, args: Any) -> int:
        """Rows of a step, over all pipelines."""
        rows: int = args.per_device_train_batch_size * self._share()[1]
        return rows

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        """Count tokens for the log, once for each pipeline; the engine counts those with a loss."""
        if self.pipeline.process == 0:
            for batch in batch_samples:
                self._meter.add(batch["num_tokens"], int(num_loss_tokens(batch)), batch["input_ids"].shape[1])
        return torch.ones((), device=device)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ARG002
        """All micro-batches of a step, forward and backward; the mean loss of the whole step."""
        return torch.tensor(self.pipeline.step(inputs).loss, device=self.args.device)

    def _clip_grad_norm(self, model: Any) -> float:  # noqa: ARG002
        return self._clipped(self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: float | None = None) -> float:  # noqa: ARG002
        return self._clipped(float("inf")) if grad_norm is None else grad_norm

    def _clipped(self, max_norm: float) -> float:
        if self.pipeline.scaler is not None:
            self.pipeline.scaler.unscale_(self.optimizer.optimizer)
        return self.pipeline.clip(max_norm)

    def _judged(self, batches: Iterable[Batch]) -> tuple[torch.Tensor, list[Any]]:
        totals = torch.zeros(2, 1, dtype=torch.float64)
        for batch in batches:
            stepped = self.pipeline.evaluate(batch)
            totals += torch.tensor([[stepped.loss * stepped.num_tokens], [float(stepped.num_tokens)]])
        return totals, []

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        """What is small is written at once, the rest beside the next step."""
        self._writing.until_done()
        began = time.perf_counter()
        name = self.save_checkpoint_name()
        made = self._begin_checkpoint(name)
        if not made.is_dir():
            raise ValueError(f"{made} is not seen by all processes; trainer.output must be on a disk they share")
        self._save_states(made)
        commit = partial(self._commit, name) if self.args.should_save else lambda: None
        self._writing.begin(partial(self._write, made), commit)
        self._writing.waited += time.perf_counter() - began

    def _write(self, made: Path) -> None:
        write_part(self.pipeline, made)
        write_optimizer(self.pipeline, self.optimizer.optimizer, made / TRAINING)
        mark(made, self.args.process_index)

    def _commit(self, name: str) -> None:
        made = self.checkpoints.unfinished(name)
        wait_for_marks(made, self.args.world_size)
        join_parts(self.pipeline, made, self.model.config)
        self._finish_checkpoint(name)

    def _save_states(self, made: Path) -> None:
        super()._save_states(made)
        if self.args.should_save:
            self.tokenizer.save_pretrained(made)
            if (self.model.folder / GENERATION).is_file():
                shutil.copyfile(self.model.folder / GENERATION, made / GENERATION)
            state = {"layout": self._layout, "scheduler": self.lr_scheduler.state_dict()}
            save_tree(made / TRAINING, PIPELINE, state)

    @property
    def _layout(self) -> list[Any]:
        """What must be as it was for a process to go on with its own random numbers."""
        return [self.pipeline.num_stages, self.args.world_size, self.pipeline.schedule.name]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = Path(checkpoint) / TRAINING
            load_optimizer(self.pipeline, self.optimizer.optimizer, folder)
            self.lr_scheduler.load_state_dict(load_tree(folder, PIPELINE)["scheduler"])

    def _state_of_process(self, checkpoint: Path) -> dict[str, Any]:
        """Of this process, where it has the stages it had; else of any, with random numbers begun anew."""
        folder = checkpoint / TRAINING
        if load_tree(folder, PIPELINE)["layout"] == self._layout:
            return super()._state_of_process(checkpoint)
        torch.manual_seed(self.args.seed + self.state.global_step * self.args.world_size + self.args.process_index)
        return {**load_tree(folder, "process-0"), "random": random_state()}
