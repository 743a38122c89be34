"""transformers' Trainer with our data, losses, checkpoints and evaluation.

What is changed: rows come in an order that depends on seed and position alone; a loss is a sum, divided by what is
counted (tokens, pairs) in the whole step over all batches and processes; checkpoints are whole, exact and free of
pickle; evaluation counts everything once. The rest (devices, mixed precision, accumulation, DDP, FSDP, DeepSpeed,
schedules) is the library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from training.checkpoints import STATE, TRAINING, Checkpoints, name_of
from training.examples.collate import Batch, Collate, num_loss_tokens
from training.examples.order import Batches, Mixture
from training.objective import Objective
from training.state_files import load_tree, random_state, save_tree, set_random_state
from training.tracking.throughput import Throughput, TokenMeter


class ParleyTrainer(Trainer):
    """Trains `model` on `train_rows` for `objective`.

    `eval_rows` (or None) are evaluated in order; `on_evaluated(trainer)` is called after that, for samples, and
    `on_checkpoint(path)` after a checkpoint has its name.
    """

    loss_is_scaled_for_ga = True  # it is divided by the counts of all accumulated batches
    model: Any
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    objective: Objective

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        objective: Objective,
        collate: Collate,
        train_rows: Mixture,
        eval_rows: Mixture | None,
        checkpoints: Checkpoints,
        tokenizer: Any,
        throughput: Throughput,
        on_checkpoint: Callable[[Path], None] = lambda _: None,
        on_evaluated: Callable[[Any], None] = lambda _: None,
        speaker_names: bool = False,
        keep_best: bool = False,
        early_stop: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        # Not given the tokenizer, it leaves the model's special tokens as they are.
        super().__init__(model=model, args=args, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.ours = callbacks or []
        self.tokenizer = tokenizer
        self.objective, self.collate = objective, collate
        self.train_rows, self.eval_rows = train_rows, eval_rows
        self.checkpoints = checkpoints
        self.throughput, self._meter = throughput, TokenMeter()
        self._on_checkpoint, self._on_evaluated = on_checkpoint, on_evaluated
        self._speaker_names, self._keep_best, self._early_stop = speaker_names, keep_best, early_stop
        self._worse = 0  # evaluations since the best
        self._resumed: dict[str, Any] | None = None

    # Data

    def get_train_dataloader(self) -> Any:
        """Rows in the order of `train_rows`, this process's share of each batch."""
        return self._loader(self.train_rows, self.args.per_device_train_batch_size)

    def _share(self) -> tuple[int, int]:
        """(which part of each batch is this process's, of how many)."""
        return self.args.process_index, self.args.world_size

    def _loader(self, rows: Mixture, batch_size: int) -> Any:
        batches = Batches(len(rows), batch_size, *self._share())
        loader: Any = DataLoader(_Rows(rows), batch_sampler=batches, collate_fn=self.collate)
        loader.set_epoch = batches.set_epoch  # the Trainer calls it where it is there
        return loader

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        """What the sums of all batches of a step are divided by, over all processes; at least 1."""
        num = torch.tensor(0)
        for batch in batch_samples:
            num_with_loss = int(num_loss_tokens(batch)) if "shift_labels" in batch else 0
            self._meter.add(batch["num_tokens"], num_with_loss, batch["input_ids"].shape[1])
            num = num + self.objective.count(batch)
        if self.args.world_size > 1:
            num = self.accelerator.reduce(num.to(device), "sum")
        return num.to(device).clamp(min=1)

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,  # noqa: ARG002  # nobody asks for them
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """The batch's share of the mean loss of the step. DDP and FSDP average gradients over the processes, which the
        factor takes back."""
        sums = self.objective.loss(model, {key: value for key, value in inputs.items() if key != "num_tokens"}).sums
        share: torch.Tensor = (sums * self.accelerator.num_processes / num_items_in_batch).sum()
        return share

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        batches = Batches(len(self.train_rows), self.args.per_device_train_batch_size, *self._share())
        return math.ceil(self.args.num_train_epochs * -(-len(batches) // self.args.gradient_accumulation_steps))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What the Trainer logs, with rates and memory beside a training loss."""
        if "loss" in logs:
            counts = torch.tensor(self._meter.take())
            if self.args.world_size > 1:
                counts = self.accelerator.reduce(counts.to(self.args.device), "sum")
            logs = {**logs, **self.throughput.rates(*counts.tolist())}
        logs.pop("total_flos", None)  # the library's count, which is not kept here
        super().log(logs, start_time)

    # Evaluation

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over `eval_rows`, lower is better, and the objective's metrics."""
        if self.eval_rows is None:
            raise ValueError("there is no evaluation data; set data.eval or data.eval_fraction")
        totals, records = self._judged(self._loader(self.eval_rows, self.args.per_device_eval_batch_size))
        loss = float((totals[0] / totals[1].clamp(min=1)).sum())
        judgements = np.concatenate(records) if records else np.zeros((0, 1))
        told = self.objective.metrics(loss, totals[1].tolist(), judgements)
        metrics = {"eval_loss": loss, **{f"eval_{name}": value for name, value in told.items()}}
        self.log(metrics)
        self._on_evaluated(self)
        self._judge(loss)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _judged(self, batches: Iterable[Batch]) -> tuple[torch.Tensor, list[Any]]:
        """Sums and counts (2, K) and records of all batches, over all processes."""
        model = self.model_wrapped if self.is_in_train else self.model
        training = model.training
        model.eval()
        totals, records = torch.tensor(0.0, dtype=torch.float64), []
        with torch.no_grad():
            for batch in batches:
                counts = self.objective.count(batch).reshape(-1)
                del batch["num_tokens"]
                sums, judged = self.objective.loss(model, self._prepare_inputs(batch))
                totals = totals + torch.stack([sums.reshape(-1).cpu().double(), counts.double()])
                if judged is not None:
                    records.append(judged.detach().cpu().double().numpy())
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals.to(self.args.device), "sum").cpu()
            records = gather_object(records)
        model.train(training)
        return totals, records

    def _judge(self, loss: float) -> None:
        """Remember the best evaluation, have it saved, and stop where it has not improved for long."""
        if self.state.best_metric is None or loss < self.state.best_metric:
            self.state.best_metric, self.state.best_global_step = loss, self.state.global_step
            self._worse = 0
            self.control.should_save = self.control.should_save or (self._keep_best and self.state.global_step > 0)
            return
        self._worse += 1
        if self._early_stop is not None and self._worse >= self._early_stop:
            self.control.should_training_stop = True

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:  # noqa: ARG002
        return False  # `_judge` has done it

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """0: training/tracking/throughput.py counts."""
        return 0

    # Checkpoints

    def save_checkpoint_name(self) -> str:
        """What a checkpoint of this step is called."""
        epoch = self.state.epoch or 0.0
        at_end = epoch > 0 and epoch == int(epoch)
        return name_of(self.state.global_step, int(epoch) - at_end, at_end, self._speaker_names)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002
        name = self.save_checkpoint_name()
        made = self._begin_checkpoint(name)
        self.save_model(str(made), _internal_call=True)
        self._save_optimizer_and_scheduler(str(made))
        self._save_states(made)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._finish_checkpoint(name)
        self.accelerator.wait_for_everyone()

    def _begin_checkpoint(self, name: str) -> Path:
        """The folder into which all processes write."""
        if self.args.should_save:
            self.checkpoints.begin(name)
        self.accelerator.wait_for_everyone()
        return self.checkpoints.unfinished(name)

    def _save_states(self, made: Path) -> None:
        """What is not large."""
        process = {
            "random": random_state(),
            "loss": float(self._tr_loss),
            "last_logged": self._globalstep_last_logged,
            "worse": self._worse,
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }
        save_tree(made / TRAINING, f"process-{self.args.process_index}", process)
        if self.args.should_save:
            self.state.save_to_json(str(made / STATE))

    def _finish_checkpoint(self, name: str) -> None:
        """Give a checkpoint its name, when all have written."""
        self._on_checkpoint(self.checkpoints.finish(name))
        self.checkpoints.prune(self.state.best_global_step if self._keep_best else None)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights, configuration and tokenizer: what `from_pretrained` needs, and no pickled arguments."""
        if not self.args.should_save or output_dir is None:
            return
        unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(unwrapped, PreTrainedModel):
            unwrapped.config.use_cache = True  # switched off for training only
        unwrapped.save_pretrained(output_dir, state_dict=state_dict)
        if isinstance(unwrapped, PreTrainedModel):
            unwrapped.config.use_cache = False
        elif getattr(unwrapped.peft_config["default"], "task_type", None) == "SEQ_CLS":
            unwrapped.config.save_pretrained(output_dir)  # an adapter does not say what the head's labels are
        self.tokenizer.save_pretrained(output_dir)

    @property
    def _sharded(self) -> bool:
        """Whether a library shards model and optimizer, and must write them in its own format."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            tree = {
                "names": self._trained_names(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.lr_scheduler.state_dict(),
            }
            save_tree(Path(output_dir) / TRAINING, "optimizer", tree)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        tree = load_tree(Path(checkpoint) / TRAINING, "optimizer")
        if tree["names"] != self._trained_names():
            raise ValueError(f"{checkpoint} was trained with other parameters; begin anew with trainer.resume=never")
        self.optimizer.load_state_dict(tree["optimizer"])
        self.lr_scheduler.load_state_dict(tree["scheduler"])

    def _trained_names(self) -> list[str]:
        """The parameters in the optimizer's order."""
        names = {id(each): name for name, each in self.model.named_parameters()}
        groups = self.optimizer.param_groups
        return [names.get(id(each), "?") for group in groups for each in group["params"]]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        # else the model was opened from the checkpoint

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        self._resumed = self._state_of_process(Path(checkpoint))
        if self._resumed["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._resumed["scaler"])

    def _state_of_process(self, checkpoint: Path) -> dict[str, Any]:
        """What `_save_checkpoint` wrote for this process."""
        name = f"process-{self.args.process_index}"
        if not (checkpoint / TRAINING / f"{name}.json").is_file():
            raise ValueError(
                f"{checkpoint} was written by fewer than {self.args.world_size} processes; resume with as many as then"
            )
        state: dict[str, Any] = load_tree(checkpoint / TRAINING, name)
        return state

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._resumed is not None:
            set_random_state(self._resumed["random"])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Before the first epoch of a resumed run: what was summed since the last log before the kill."""
        if self._resumed is not None and self.state.global_step == self._initial_global_step:
            self._tr_loss += self._resumed["loss"]
            self._globalstep_last_logged = self._resumed["last_logged"]
            self._worse = self._resumed["worse"]
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]  # the library says no types


class _Rows(Dataset[Any]):
    """A map-style data set over (epoch, position)."""

    def __init__(self, rows: Mixture) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: tuple[int, int]) -> list[Any]:
        return self._rows.row(*place)


class Schedule(TrainerCallback):
    """When to evaluate and to save: every so many steps, at each epoch's end, and at the end; never twice at a step."""

    def __init__(self, eval_every: int | None, save_every: int | None, save_epochs: bool, evaluates: bool) -> None:
        self._eval_every, self._save_every = eval_every, save_every
        self._save_epochs, self._evaluates = save_epochs, evaluates

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ARG002
    ) -> TrainerControl:
        """Within an epoch, and at the last step."""
        last = state.global_step >= state.max_steps
        ends_epoch = bool(state.epoch) and state.epoch == int(state.epoch)
        if self._evaluates:
            control.should_evaluate = last or (
                state.global_step % self._eval_every == 0 if self._eval_every else ends_epoch
            )
        due = self._save_every is not None and state.global_step % self._save_every == 0
        control.should_save = last or due or (self._save_epochs and ends_epoch)
        return control
