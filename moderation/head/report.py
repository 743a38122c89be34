"""Figures as text: a table for the terminal, and report.md with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import atomic_write
from moderation.head import plots
from moderation.head.metrics import ANY, BINS

HEADINGS = ("", "rows", "positives", "AUPRC", "AUROC", "recall", "ECE")
KEYS = ("rows", "positives", "auprc", "auroc", "recall", "ece")


def table(result: Mapping[str, Any]) -> str:
    """What `metrics.evaluate` gave, as two tables: by label, and by group for any label."""
    lines = _block("label", result["labels"], result["rate"])
    if len(result["groups"]) > 1:
        lines += ["", *_block(f"group ({ANY})", result["groups"], result["rate"])]
    if result["unjudged"]:
        lines.append(f"{result['unjudged']} rows were not judged")
    return "\n".join(lines)


def _block(name: str, figures: Mapping[str, Mapping[str, Any]], rate: float) -> list[str]:
    width = max(len(name), *(len(key) for key in figures)) + 2
    head = [name.ljust(width), *(heading.rjust(10) for heading in HEADINGS[1:])]
    lines = ["".join(head) + f"   (recall at {rate:.1%} false positives)"]
    for key, values in figures.items():
        lines.append(key.ljust(width) + "".join(_cell(values[column]).rjust(10) for column in KEYS))
    return lines


def _cell(value: Any) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def markdown(title: str, sections: Mapping[str, str], images: Sequence[str]) -> str:
    """A page: each section's text as a block of fixed width, then the images."""
    parts = [f"# {title}", ""]
    for name, text in sections.items():
        parts += [f"## {name}", "", "```", text, "```", ""]
    parts += [f"![{Path(image).stem.replace('_', ' ')}]({image})\n" for image in images]
    return "\n".join(parts)


def write_plots(
    folder: Path,
    labels: Sequence[str],
    truth_NL: NDArray[np.float32],
    probabilities_NL: NDArray[np.float64],
    false_positives: Mapping[str, float],
) -> list[str]:
    """Precision-recall curves, reliability, false positives by source: SVG files in `folder`, their names returned."""
    from sklearn.metrics import precision_recall_curve  # type: ignore[import-untyped]

    curves: dict[str, plots.Points] = {}
    reliability: dict[str, plots.Points] = {}
    for label, truth_N, score_N in zip(labels, truth_NL.T, probabilities_NL.T, strict=True):
        known = ~np.isnan(truth_N)
        y, s = truth_N[known], score_N[known]
        if not 0 < y.sum() < len(y):
            continue
        precision, recall, _ = precision_recall_curve(y, s)
        step = max(1, len(recall) // 200)
        curves[label] = list(zip(recall[::step].tolist(), precision[::step].tolist(), strict=True))
        reliability[label] = _reliability(y, s)
    images = {
        "curves.svg": plots.lines("Precision and recall", "recall", "precision", curves),
        "reliability.svg": plots.lines("Reliability", "mean score", "share of positives", reliability, diagonal=True),
        "sources.svg": plots.bars("Harmless texts flagged, by source", false_positives),
    }
    for name, image in images.items():
        with atomic_write(folder / name) as file:
            file.write(image)
    return list(images)


def _reliability(y: NDArray[np.float32], s: NDArray[np.float64]) -> plots.Points:
    """(mean score, share of positives) of each bin that has rows."""
    which = np.minimum((s * BINS).astype(int), BINS - 1)
    count = np.bincount(which, minlength=BINS)
    some = count > 0
    mean, share = (np.bincount(which, values, BINS)[some] / count[some] for values in (s, y))
    return list(zip(mean.tolist(), share.tolist(), strict=True))
