"""Training: rows -> a calibrated Head with thresholds and honest figures, from a recorded recipe."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moderation.head.calibration import benign_sources, fit_line, joint_thresholds
from moderation.head.classifier import Encode
from moderation.head.corpus import Corpus, choose_keys, make_corpus, part_of, row_weights
from moderation.head.data import Row
from moderation.head.model import TENSORS, Array, Head
from moderation.head.templates import template_rows

CALIBRATION_PARTS = 12  # one part in so many of the training rows is kept for calibration
LEAST_POSITIVES = 20  # of a label with fewer rows to learn from nothing is said

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What makes a head, apart from the rows.

    `sources` maps a source, or `source:label` for the source's rows that know this label only, to a factor of its
    weight (1 for those not named, 0 leaves out); `features` is how many word features are kept; `rate` the joint
    false-positive rate of the thresholds; the rest is for `moderation.head.network.Fit`.
    """

    encoder: str = "minilm"
    templates: bool = True
    features: int = 14_000
    rate: float = 0.01
    sources: Mapping[str, float] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)


def kind_of(row: Row, recipe: Recipe) -> str:
    """The name under which `recipe.sources` has this row: `source:label`, or its source."""
    narrow = f"{row.source}:{next(iter(row.labels))}" if len(row.labels) == 1 else row.source
    return narrow if narrow in recipe.sources else row.source


def collect(rows: Sequence[Row], recipe: Recipe) -> list[Row]:
    """The rows, with those of the templates where the recipe says so, each text once (the first, which goes on)."""
    everything = [*rows, *(template_rows() if recipe.templates else [])]
    return list({row.text: row for row in reversed(everything)}.values())[::-1]


def parts(corpus: Corpus, recipe: Recipe) -> dict[str, NDArray[np.int64]]:
    """Row numbers by part: `train`, `calib`, `test`. Rows without a split are divided among them by their text."""
    names = []
    for row in corpus.rows:
        split = row.split
        if split == "":
            split = "test" if part_of(row, "test", 7) == 0 else "train"
        if split == "train" and part_of(row, "calibration", CALIBRATION_PARTS) == 0:
            split = "calib"
        left_out = recipe.sources.get(kind_of(row, recipe)) == 0
        names.append("left out" if left_out and split != "test" else split)
    given = np.array(names)
    return {part: np.flatnonzero(given == part) for part in ("train", "calib", "test")}


def train(
    rows: Sequence[Row],
    recipe: Recipe,
    encode: Encode,
    progress: Progress = lambda _: None,
    cache: Path | None = None,
) -> tuple[Head, Corpus, dict[str, NDArray[np.int64]]]:
    """The head, and the corpus with its parts (for measuring).

    Raises ValueError where the rows are too few to learn from, and for a recipe that names unknown settings.
    """
    corpus = make_corpus(collect(rows, recipe), encode, progress, cache)
    part = parts(corpus, recipe)
    return train_on(corpus, part["train"], part["calib"], recipe, progress), corpus, part


def train_on(
    corpus: Corpus,
    train_rows: NDArray[np.int64],
    calib_rows: NDArray[np.int64],
    recipe: Recipe,
    progress: Progress = lambda _: None,
) -> Head:
    """A head from these rows of a corpus: learn, store in small integers, calibrate what is stored, set thresholds."""
    from moderation.head.network import Fit, Known, fit

    try:
        settings = Fit(**recipe.fit)
    except TypeError:
        raise ValueError(
            f"unknown setting in fit: {', '.join(recipe.fit)}; known: {', '.join(asdict(Fit()))}"
        ) from None
    learn = corpus.select(train_rows)
    judged = tuple(
        label
        for label, truth_N in zip(corpus.labels, learn.truth.T, strict=True)
        if (truth_N == 1).sum() >= LEAST_POSITIVES and (truth_N == 0).sum() >= LEAST_POSITIVES
    )
    if not judged:
        raise ValueError(f"no label has {LEAST_POSITIVES} rows of 1 and as many of 0; give more rows")
    weights_N = row_weights([kind_of(row, recipe) for row in learn.rows], recipe.sources)
    keys = choose_keys(learn, weights_N, recipe.features)
    if not len(keys):
        raise ValueError("no word of the rows tells the labels apart; give more rows")
    progress(f"{len(learn.rows)} rows to learn from, {len(keys)} word features")
    known = _known(learn, keys, Known)
    raw = fit(settings, learn.vectors, known, len(keys), learn.truth, weights_N, progress)
    stored = _stored(raw, keys)
    head = Head(corpus.labels, judged, recipe.encoder, corpus.vectors.shape[1], stored, {})
    return _calibrated(head, corpus.select(calib_rows), recipe)


def _known(corpus: Corpus, keys: NDArray[np.uint32], known_type: Any) -> Any:
    place = np.minimum(np.searchsorted(keys, corpus.grams), len(keys) - 1)
    hit = keys[place] == corpus.grams
    total = np.diff(corpus.starts)
    owner = np.repeat(np.arange(len(total)), total)
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner[hit], minlength=len(total)))])
    scale = (1 / np.sqrt(np.maximum(total, 1))).astype(np.float32)
    return known_type(place[hit].astype(np.int64), starts.astype(np.int64), scale)


def _stored(raw: Mapping[str, Array], keys: NDArray[np.uint32]) -> dict[str, Array]:
    """The weights as they lie on disk; slope 1 and offset 0."""
    result: dict[str, Array] = {"keys": keys}
    for name in ("bag", "lexical"):
        scale = np.maximum(np.abs(raw[name]).max(0), 1e-8) / 127
        result[name], result[f"{name}_scale"] = np.rint(raw[name] / scale), scale
    result |= {name: raw[name] for name in ("w1", "b1", "w2", "b2")}
    result |= {"slope": np.ones(len(raw["b2"])), "offset": np.zeros(len(raw["b2"]))}
    return {name: result[name].astype(kind) for name, (kind, _) in TENSORS.items()}


def _calibrated(head: Head, held_out: Corpus, recipe: Recipe) -> Head:
    if not len(held_out.rows):
        raise ValueError("no rows are left for calibration; give more rows")
    logits_NL = head.logits(held_out.texts, held_out.vectors)
    weights_N = row_weights(held_out.sources.tolist(), {})
    lines = []
    for label, truth_N, logit_N in zip(head.labels, held_out.truth.T, logits_NL.T, strict=True):
        known = ~np.isnan(truth_N)
        usable = label in head.judged and known.any()
        lines.append(fit_line(truth_N[known], logit_N[known], weights_N[known]) if usable else (1.0, 0.0))
    slope, offset = np.array(lines, dtype=np.float32).T
    head = replace(head, weights={**head.weights, "slope": slope, "offset": offset})
    probabilities_NL = head.probabilities(held_out.texts, held_out.vectors)
    columns = [head.labels.index(label) for label in head.judged]
    benign = benign_sources(held_out.sources.tolist(), held_out.truth)
    return replace(head, thresholds=joint_thresholds(probabilities_NL[:, columns], head.judged, benign, recipe.rate))


def fingerprints(corpus: Corpus, versions: Mapping[str, str], files: Mapping[str, str]) -> dict[str, Any]:
    """What the head was made of: files with their sums, rows by source and split, versions of what computed it."""
    counts = Counter(f"{row.source}/{row.split or 'unsaid'}" for row in corpus.rows)
    return {
        "files": dict(files),
        "rows": dict(sorted(counts.items())),
        "python": platform.python_version(),
        "versions": dict(versions),
    }
