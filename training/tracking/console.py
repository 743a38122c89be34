"""The run on stderr: a line for each logging step, below it a live one where stderr is a terminal; fewer where not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from common.text import printable

PIPED_EVERY_S = 30.0  # seconds between two lines where nobody watches; evaluations are always shown

_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "epoch": ("epoch", "{:.2f}".format),
    "loss": ("loss", "{:.4f}".format),
    "eval_loss": ("eval loss", "{:.4f}".format),
    "eval_perplexity": ("perplexity", "{:.4g}".format),
    "learning_rate": ("lr", "{:.2e}".format),
    "grad_norm": ("grad", "{:.3g}".format),
    "tokens_per_second": ("tokens/s", "{:,.0f}".format),
    "loss_tokens_per_second": ("with loss", "{:,.0f}".format),
    "mfu": ("MFU", "{:.1%}".format),
    "memory_gib": ("memory", "{:.1f} GiB".format),
    "gpu_memory_gib": ("GPU", "{:.1f} GiB".format),
}


def line_of(step: int, num_steps: int, values: Mapping[str, Any], seconds_left: float | None = None) -> str:
    """One line: what is known in its usual order, then whatever else was logged, then the time left."""
    known = [name for name in _FORMATS if name in values]
    parts = [f"step {step}/{num_steps}" if num_steps else f"step {step}"]
    for name in [*known, *(name for name in values if name not in _FORMATS)]:
        label, form = _FORMATS.get(name, (name, _plain))
        value = values[name]
        parts.append(f"{label} {form(value) if isinstance(value, int | float) else _plain(value)}")
    if seconds_left is not None:
        parts.append(f"ETA {duration(seconds_left)}")
    return printable("  ".join(parts)).replace("\n", " ")


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Console:
    """Shows a run's lines on `stream`, stderr if none is given; `clock` is in seconds."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._last: float | None = None  # when an unimportant line was shown
        self._bar: Any = None

    def start(self, step: int, num_steps: int) -> None:
        """Training begins, after `step` of `num_steps` steps."""
        if not self._stream.isatty():
            return
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=Terminal(file=self._stream), transient=True)
        self._task = self._bar.add_task("train", total=num_steps or None, completed=step, left="")
        self._bar.start()

    def step(self, step: int, seconds_left: float | None) -> None:
        """A step has ended."""
        if self._bar is not None:
            left = "" if seconds_left is None else f"ETA {duration(seconds_left)}"
            self._bar.update(self._task, completed=step, left=left)

    def show(self, line: str, important: bool = False) -> None:
        """A line; where stderr is no terminal, an unimportant one is left out so soon after the last."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        now = self._clock()
        if not important:
            if self._last is not None and now - self._last < PIPED_EVERY_S:
                return
            self._last = now
        print(line, file=self._stream, flush=True)

    def stop(self) -> None:
        """Training has ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
