"""The Trainer's callback that tells of a run: console, `train.log`, `metrics.jsonl`, `loss.png`.

    throughput = Throughput(model_flops(model), peak_tflops)
    with run_log(run, rank, num_processes):
        Trainer(..., callbacks=[Tracking(run, throughput), *reporters(names, config, run)]).train()

What is shown is what the Trainer logs: its `log` adds `throughput.rates(...)` to the values of a training step.
"""

# ruff: noqa: ARG002  # the signatures of callbacks are the Trainer's

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger
from transformers import TrainerCallback, TrainerState

from training.tracking.console import Console, line_of
from training.tracking.curves import CURVES, draw_curves
from training.tracking.metrics import METRICS, MetricsFile
from training.tracking.throughput import Throughput

_CURVES_SHARE = 0.02  # of the time, at most, goes into drawing while training


class Tracking(TrainerCallback):
    """Tells of the run in the directory `run`, from the first process alone; `clock` is in seconds."""

    def __init__(
        self,
        run: Path,
        throughput: Throughput,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._throughput, self._clock = run, throughput, clock
        self._console = console or Console()
        self._metrics = MetricsFile(run / METRICS)
        self._started, self._first_step = clock(), 0
        self._draw_after = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Cut what a killed run logged after the checkpoint that this one goes on from."""
        self._throughput.start()
        if not state.is_world_process_zero:
            return
        self._started, self._first_step = self._clock(), state.global_step
        self._say(f"training: step {state.global_step} of {state.max_steps}")
        if num := self._metrics.cut_after(state.global_step):
            self._say(f"{METRICS}: {num} lines after step {state.global_step}, of an earlier run, were cut off")
        self._console.start(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move the live line on."""
        self._throughput.worked()
        if state.is_world_process_zero:
            self._console.step(state.global_step, self._seconds_left(state))

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write and show what was logged."""
        if not logs or not state.is_world_process_zero:
            return
        self._metrics.append(state.global_step, logs)
        line = line_of(state.global_step, state.max_steps, logs, self._seconds_left(state))
        logger.info("{}", line)
        self._console.show(line, important="loss" not in logs or state.global_step >= state.max_steps)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Draw, and take the evaluation's time out of the rates."""
        self._pause(state)

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Draw, and take the checkpoint's time out of the rates."""
        if state.is_world_process_zero:
            logger.info("checkpoint of step {} saved", state.global_step)
        self._pause(state)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Draw the whole curve, and give the terminal back."""
        if state.is_world_process_zero:
            self._console.stop()
            self._draw()
            logger.info("training ended at step {}", state.global_step)

    def close(self) -> None:
        """Give the terminal back where an error ended the training."""
        self._console.stop()

    def _pause(self, state: TrainerState) -> None:
        if state.is_world_process_zero and self._clock() >= self._draw_after:
            self._draw()
        self._throughput.rested()

    def _draw(self) -> None:
        began = self._clock()
        draw_curves(self._metrics.read(), self._run / CURVES, self._run.resolve().name)
        took = self._clock() - began
        self._draw_after = began + took / _CURVES_SHARE

    def _say(self, line: str) -> None:
        logger.info("{}", line)
        self._console.show(line, important=True)

    def _seconds_left(self, state: TrainerState) -> float | None:
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        return (self._clock() - self._started) / done * left if done > 0 and left > 0 else None
