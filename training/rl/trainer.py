"""The trainer of runs whose rows the model writes itself: ParleyTrainer, with rounds in its checkpoints and its log.

It stops where a round is too far from the untrained model, and keeps the last checkpoint that was not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.checkpoints import TRAINING
from training.rl.meter import Meter
from training.rl.policy import save_value_head
from training.rl.rounds import Rollout, write_samples
from training.state_files import load_tree, save_tree
from training.trainer import ParleyTrainer

ROUND, METER = "round", "meter"  # files in a checkpoint
SAMPLES = "samples.jsonl"


class RoundTrainer(ParleyTrainer):
    """`train_rows` are Rounds, `eval_rows` EvaluationRows or None; `meter` is what the objective fills. Of each round
    `num_samples` answers are written into samples.jsonl."""

    train_rows: Any  # Rounds
    eval_rows: Any  # EvaluationRows

    def __init__(self, *args: Any, meter: Meter, max_kl: float | None, num_samples: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.train_rows.made = self._judge_round
        self.meter, self._max_kl, self._num_samples = meter, max_kl, num_samples
        self._told: tuple[dict[str, float], list[Rollout]] | None = None
        self._good_step = 0  # at which a round was near enough to the untrained model
        busy = self.checkpoints.held
        self.checkpoints.held = lambda path: busy(path) or path == self._last_good()

    def _judge_round(self, metrics: dict[str, float], examples: list[Rollout]) -> None:
        """Told of each new round. Raises ValueError where it is too far from the untrained model."""
        kl = metrics["kl"]
        if not np.isfinite(kl) or (self._max_kl is not None and kl > self._max_kl):
            good = self._last_good()
            begin = f"begin from {good}, the last one within it," if good else "begin again"
            raise ValueError(
                f"step {self.state.global_step}: answers are {kl:.4g} nats from the untrained model, over "
                f"method.max_kl={self._max_kl}; {begin} with a lower trainer.lr, or, where there is one, a higher "
                "method.kl_coeff"
            )
        self._good_step = self.state.global_step
        self._told = metrics, examples

    def _last_good(self) -> Path | None:
        """The newest checkpoint that is known to be near enough."""
        good = [each.path for each in self.checkpoints.all() if each.step <= self._good_step]
        return good[-1] if good else None

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """A round is told after its first step: a checkpoint from before does not know of it."""
        if self._told is not None:
            metrics, examples = self._told
            self._told = None
            self.log(metrics)
            path = Path(self.args.output_dir or ".") / SAMPLES
            write_samples(examples[: self._num_samples], self.state.global_step, self.tokenizer.decode, path)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What the objective saw goes with a training loss."""
        if "loss" in logs:
            logs = {**logs, **self.meter.take(self._summed)}
        super().log(logs, start_time)

    def _summed(self, sums: torch.Tensor) -> torch.Tensor:
        if self.args.world_size == 1:
            return sums
        total: torch.Tensor = self.accelerator.reduce(sums, "sum")
        return total

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Of new answers: the mean reward, its negative as the loss."""
        if self.eval_rows is not None:
            self.eval_rows.refresh()
        return super().evaluate()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        folder = Path(output_dir)
        save_tree(folder / TRAINING, f"{METER}-{self.args.process_index}", self.meter.sums)
        if self.args.should_save:
            state = {"rows": self.train_rows.state(), "good_step": self._good_step}
            save_tree(folder / TRAINING, ROUND, state)
            save_value_head(self.model, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = load_tree(Path(checkpoint) / TRAINING, ROUND)
            self.train_rows.restore(state["rows"])
            self._good_step = state["good_step"]
            sums = load_tree(Path(checkpoint) / TRAINING, f"{METER}-{self.args.process_index}")
            self.meter.sums = {name: each.to(self.args.device) for name, each in sums.items()}
