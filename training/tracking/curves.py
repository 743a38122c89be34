"""`loss.png`: the loss over the steps of a run, in training and in evaluation.

Run: python -m training.tracking.curves runs/mine
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from common.files import atomic_write
from training.tracking.metrics import METRICS, MetricsFile

CURVES = "loss.png"
TRAIN, EVAL = "#3b6fb6", "#d1495b"
_SMOOTH_FROM = 40  # points; fewer are drawn as they are

Points = list[tuple[int, float]]


def draw_curves(lines: Sequence[dict[str, Any]], path: Path, title: str = "") -> bool:
    """Draw lines of `metrics.jsonl` into the PNG file `path`, atomically; False, and no file, where none has a loss."""
    train, evaluated = _points(lines, "loss"), _points(lines, "eval_loss")
    if not train and not evaluated:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_train(axes, train)
    _draw_eval(axes, evaluated)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title.replace("$", r"\$"), loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    with atomic_write(path, "wb") as file:
        canvas.print_png(file)  # type: ignore[no-untyped-call]
    return True


def _points(lines: Sequence[dict[str, Any]], name: str) -> Points:
    return [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]


def _draw_train(axes: Any, points: Points) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    label = f"training ({losses[-1]:.3f})"
    if len(points) < _SMOOTH_FROM:
        axes.plot(steps, losses, color=TRAIN, marker="o", markersize=3, label=label)
        return
    smooth = _smoothed(losses)
    axes.plot(steps, losses, color=TRAIN, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, color=TRAIN, label=f"training, smoothed ({smooth[-1]:.3f})")


def _draw_eval(axes: Any, points: Points) -> None:
    if not points:
        return
    steps, losses = zip(*points, strict=True)
    best_step, best = min(points, key=lambda point: point[1])
    label = f"evaluation ({losses[-1]:.3f}; best {best:.3f} at step {best_step})"
    axes.plot(steps, losses, color=EVAL, marker="o", markersize=4, label=label)


def _smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each point and its neighbours, a fortieth of all to each side; fewer at the ends."""
    reach = max(1, len(losses) // 40)
    sums = [0.0, *accumulate(losses)]
    spans = [(max(0, at - reach), min(len(losses), at + reach + 1)) for at in range(len(losses))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in spans]


@click.command(cls=OneLineCommand)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def cli(run: Path) -> None:
    """Draw the loss curve of the run in the directory RUN anew."""
    if not draw_curves(MetricsFile(run / METRICS).read(), run / CURVES, run.resolve().name):
        raise ValueError(f"{run / METRICS} has no loss yet; it is written while a run trains")
    click.echo(run / CURVES)


if __name__ == "__main__":
    cli()
