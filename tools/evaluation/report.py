"""A report of figures: JSON, Markdown, and plots beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.calibration import Bin
from common.files import atomic_write, check_can_write, write_json

INTERVAL = "_ci"  # ends the name of the 95 % interval of the figure without it
BLUE, RED, GREY = "#3b6fb6", "#d1495b", "#9a9a9a"

Draw = Callable[[Any], None]  # draws into matplotlib's axes


def write_report(folder: Path, title: str, report: Mapping[str, Any], plots: Mapping[str, Draw]) -> None:
    """Write `report.json`, `report.md` and a PNG for each of `plots` (name -> what draws it) into `folder`. A name that
    ends in `_ci` holds the interval (low, high) of the figure of that name, or None."""
    check_can_write(folder / "report.json")
    for name, draw in plots.items():
        _write_plot(folder / f"{name}.png", draw)
    with atomic_write(folder / "report.md") as file:
        file.write(markdown(title, report, list(plots)))
    write_json(folder / "report.json", dict(report))


def markdown(title: str, report: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """A table of the figures with their intervals, and the plots."""
    lines = [f"# {title}", "", "| | | 95 % interval |", "|---|---|---|"]
    for name, value in report.items():
        if not name.endswith(INTERVAL):
            interval = report.get(name + INTERVAL)
            between = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
            lines.append(f"| {name.replace('_', ' ')} | {_cell(value)} | {between} |")
    for plot in plots:
        lines += ["", f"![{plot.replace('_', ' ')}]({plot}.png)"]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {each}" for name, each in value.items()).replace("|", "\\|")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)).replace("|", "\\|")
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _write_plot(path: Path, draw: Draw) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path, "wb") as file:
        canvas.print_png(file)  # type: ignore[no-untyped-call]


def reliability_plot(bins: Sequence[Bin], error: float) -> Draw:
    """Accuracy over confidence, a bar for each bin; perfect calibration is the diagonal (Guo et al. 2017, fig. 1). A
    bin's number of predictions stands above its bar."""

    def draw(axes: Any) -> None:
        for each in bins:
            width = max(each.high - each.low, 0.004)
            axes.bar(each.low, each.accuracy, width, align="edge", color=BLUE, alpha=0.6, edgecolor=BLUE)
            axes.annotate(f"{each.num:,}", (each.low + width / 2, each.accuracy), ha="center", va="bottom", fontsize=7)
        axes.plot([each.confidence for each in bins], [each.accuracy for each in bins], "o", color=BLUE, markersize=4)
        axes.plot([0, 1], [0, 1], "--", color=GREY)
        axes.set(xlim=(0, 1), ylim=(0, 1.05), xlabel="confidence", ylabel="accuracy")
        axes.set_title(f"reliability, {len(bins)} bins, calibration error {error:.3f}", loc="left")

    return draw


def scores_plot(scores: Sequence[float]) -> Draw:
    """How many answers have which score."""

    def draw(axes: Any) -> None:
        axes.hist(scores, bins=min(40, max(5, len(scores) // 5)), color=BLUE, alpha=0.7)
        axes.set(xlabel="score", ylabel="answers")
        axes.set_title(f"scores of {len(scores):,} answers", loc="left")

    return draw


def rates_plot(report: Mapping[str, Any]) -> Draw:
    """Wins, ties and losses as one bar, and the win rates with their intervals below it."""

    def draw(axes: Any) -> None:
        left = 0.0
        for name, color in (("wins", BLUE), ("ties", GREY), ("losses", RED)):
            share = report[name] / report["judged"]
            axes.barh(3, share, left=left, color=color, alpha=0.8, label=f"{name} {report[name]:,}")
            left += share
        names = ("win_rate", "win_rate_without_ties", "length_controlled_win_rate")
        for height, name in zip((2, 1, 0), names, strict=True):
            if (rate := report[name]) is not None:
                low, high = report[name + INTERVAL]
                axes.plot([low, high], [height, height], color=BLUE)
                axes.plot(rate, height, "o", color=BLUE)
        labels = ("judged", *(name.replace("_", " ") for name in names))
        axes.set_yticks((3, 2, 1, 0), labels)
        axes.axvline(0.5, linestyle="--", color=GREY)
        axes.set(xlim=(0, 1), ylim=(-0.6, 4.2), xlabel="share")
        axes.legend(frameon=False, loc="upper center", ncols=3)

    return draw
