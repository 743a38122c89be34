"""A whole training run: learn, measure on what was held back, measure by folds, write the directory and its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write, sha256_of
from moderation.head.card import card
from moderation.head.classifier import Encode
from moderation.head.corpus import Corpus, part_of
from moderation.head.data import Row
from moderation.head.gate import measure, scores_of
from moderation.head.metrics import figures
from moderation.head.model import Array
from moderation.head.report import markdown, write_plots
from moderation.head.templates import BENIGN_SOURCE, SOURCE
from moderation.head.training import CALIBRATION_PARTS, Recipe, fingerprints, kind_of, train, train_on

Scorer = Callable[[Corpus], Array]  # -> (rows, labels), NaN where it cannot judge
# (corpus, rows to learn from, rows to calibrate on, recipe) -> what scores rows of the same labels
Fitter = Callable[[Corpus, Array, Array, Recipe], Scorer]

PACKAGES = ("numpy", "torch", "scikit-learn")


@dataclass(frozen=True)
class Job:
    """What to train from; `files` are only named and summed for the record."""

    rows: Sequence[Row]
    recipe: Recipe
    encode: Encode
    folds: int = 0
    cache: Path | None = None
    files: Sequence[Path] = ()


def run(job: Job, out: Path, progress: Callable[[str], None]) -> str:
    """Train, measure and write `out`; returns the figures as text. Raises what `train` raises."""
    head, corpus, part = train(job.rows, job.recipe, job.encode, progress, job.cache)
    test = corpus.select(part["test"])
    measured = measure(head, test) if len(test.rows) else {}
    by_folds = fold_figures(corpus, job.recipe, job.folds, progress) if job.folds else {}
    versions = {name: metadata.version(name) for name in PACKAGES}
    made_of = fingerprints(corpus, versions, {path.name: sha256_of(path) for path in job.files})
    about = {"recipe": asdict(job.recipe), "made_of": made_of, "measured": measured, "folds": by_folds}
    head = replace(head, blocks=tuple(measured.get("passes", ())), about=about)
    head.save(out, card(head))
    sections = {name: text for name, text in sections_of(measured, by_folds).items() if text}
    images = []
    if measured:
        images = write_plots(out, head.labels, test.truth, scores_of(head, test), measured["false_positives"])
    with atomic_write(out / "report.md") as file:
        file.write(markdown("Training report", sections, images))
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    text = "\n\n".join(f"{name}\n{text}" for name, text in sections.items())
    return f"{text}\n\nwritten to {out}, {size / 1000:.0f} kB"


def fold_figures(
    corpus: Corpus, recipe: Recipe, folds: int, progress: Callable[[str], None], fit: Fitter | None = None
) -> dict[str, Any]:
    """Label -> figures on scores that each row got from a head that had not seen it; rows of all splits but those
    that the recipe leaves out. Equal texts are never in two folds; the templates are learned from in all, and not
    measured on: their rows are too much alike. `fit` trains something else than a head."""
    ours = (SOURCE, BENIGN_SOURCE)
    used = np.array([recipe.sources.get(kind_of(row, recipe)) != 0 for row in corpus.rows])
    fold = np.array([-1 if row.source in ours else part_of(row, "fold", folds) for row in corpus.rows])
    calibrates = np.array([part_of(row, "calibration", CALIBRATION_PARTS) == 0 for row in corpus.rows])
    scores = np.full(corpus.truth.shape, np.nan)
    for number in range(folds):
        progress(f"fold {number + 1} of {folds}")
        rest = used & (fold != number)
        learn, calib = np.flatnonzero(rest & ~calibrates), np.flatnonzero(rest & calibrates)
        scorer = (fit or _fit_head)(corpus, learn, calib, recipe)
        held_back = np.flatnonzero(used & (fold == number))
        scores[held_back] = scorer(corpus.select(held_back))
    return {label: figures(corpus.truth[:, j], scores[:, j]) for j, label in enumerate(corpus.labels)}


def _fit_head(corpus: Corpus, learn: Array, calib: Array, recipe: Recipe) -> Scorer:
    head = train_on(corpus, learn, calib, recipe)
    unjudged = [j for j, label in enumerate(head.labels) if label not in head.judged]

    def score(rows: Corpus) -> Array:
        scores = scores_of(head, rows)
        scores[:, unjudged] = np.nan
        return scores

    return score


def sections_of(measured: dict[str, Any], by_folds: dict[str, Any]) -> dict[str, str]:
    """The figures as blocks of text, by their headings."""
    result = {}
    if measured:
        result["By label, on held-back rows"] = _figures(measured["labels"])
        result["Flagged by any label"] = "\n".join(
            [f"{source:<24}{share:>8.2%}  of harmless texts" for source, share in measured["false_positives"].items()]
            + [f"{source:<24}{share:>8.2%}  of harmful texts" for source, share in measured["recall"].items()]
        )
        result["Labels that meet the gate for blocking"] = ", ".join(measured["passes"]) or "none"
    if by_folds:
        result["By folds"] = _figures(by_folds)
    return result


def _figures(by_label: dict[str, Any]) -> str:
    columns = ("rows", "positives", "auprc", "auroc", "recall", "recall_at_threshold", "ece")
    lines = [" " * 18 + "".join(name[:12].rjust(14) for name in columns)]
    for label, values in by_label.items():
        cells = [
            "-" if (v := values.get(c)) is None else f"{v:.3f}" if isinstance(v, float) else str(v) for c in columns
        ]
        lines.append(label.ljust(18) + "".join(cell.rjust(14) for cell in cells))
    return "\n".join(lines)
