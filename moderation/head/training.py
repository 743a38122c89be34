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
from moderation.head.templates import BENIGN_SOURCE, SOURCE, template_rows

CALIBRATION_PARTS = 12  # one part in so many of the training rows is kept for calibration
UNSEEN = "unseen: "  # before the name of a source in calibration
UNSEEN_ROWS = 600  # of a source that a head did not learn from, for calibration
LEAST_POSITIVES = 20  # of a label with fewer rows to learn from nothing is said

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What makes a head, apart from the rows.

    `sources` maps a source, or `source:label` for the source's rows that know this label only, to a factor of its
    weight (1 for those not named, 0 leaves out); `features` is how many word features are kept; `rate` the joint
    false-positive rate of the thresholds; `fit` is for `moderation.head.network.Fit`.

    Where `unseen` is not 0, the sources are divided into so many groups, and a head learns without each of them.
    What it makes of that group has the share `unseen_weight` in the calibration, and no harmless source there may
    have more than `unseen_rate` flagged: probabilities and thresholds then hold better on texts of other kinds.
    """

    encoder: str = "minilm"
    templates: bool = True
    features: int = 14_000
    rate: float = 0.01
    unseen: int = 0
    unseen_weight: float = 0.4
    unseen_rate: float = 0.02
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
    given = (corpus, part["train"], part["calib"], recipe, progress)
    return train_on(*given, unseen(*given) if recipe.unseen else None), corpus, part


def train_on(
    corpus: Corpus,
    train_rows: NDArray[np.int64],
    calib_rows: NDArray[np.int64],
    recipe: Recipe,
    progress: Progress = lambda _: None,
    without: Unseen | None = None,
) -> Head:
    """A head from these rows of a corpus: learn, store in small integers, calibrate what is stored, set thresholds.

    `without` is what `unseen` gave for the same rows.
    """
    head = _learn(corpus, train_rows, recipe, progress)
    return _calibrated(head, corpus, calib_rows, recipe, without)


@dataclass(frozen=True)
class Unseen:
    """Rows of a corpus, and (n, L) the logits that heads gave them which knew no row of their source."""

    rows: NDArray[np.int64]
    logits: NDArray[np.float32]


def unseen(
    corpus: Corpus,
    train_rows: NDArray[np.int64],
    calib_rows: NDArray[np.int64],
    recipe: Recipe,
    progress: Progress = lambda _: None,
) -> Unseen:
    """At most UNSEEN_ROWS of each source as heads see them that learned without it, in `recipe.unseen` groups.

    The templates are learned from by all of these heads, and are not among the rows. ValueError for fewer sources.
    """
    given = np.concatenate([train_rows, calib_rows])
    groups = source_groups(corpus, given, recipe.unseen)
    found = []
    for left_out in groups:
        progress(f"without {', '.join(left_out)}")
        head = _learn(corpus, train_rows[~np.isin(corpus.sources[train_rows], left_out)], recipe, progress)
        for name in left_out:
            rows = given[corpus.sources[given] == name]
            rows = np.sort(np.random.default_rng(1).permutation(rows)[:UNSEEN_ROWS])
            found.append(Unseen(rows, _logits(head, corpus.select(rows))))
    return Unseen(np.concatenate([f.rows for f in found]), np.concatenate([f.logits for f in found]))


def source_groups(corpus: Corpus, rows: NDArray[np.int64], number: int) -> list[list[str]]:
    """The sources of these rows, without the templates, in so many groups, harmful and harmless ones in each.

    ValueError where there are fewer sources.
    """
    harmful = np.any(corpus.truth == 1, axis=1)
    names = sorted(set(corpus.sources[rows].tolist()) - {SOURCE, BENIGN_SOURCE})
    if len(names) < number:
        raise ValueError(f"{number} groups of sources ('unseen') but {len(names)} sources; set it to 0 in the recipe")
    names.sort(key=lambda name: bool(harmful[corpus.sources == name].any()))
    return [names[i::number] for i in range(number)]


def _logits(head: Head, corpus: Corpus) -> NDArray[np.float32]:
    return head.logits(corpus.texts, corpus.vectors, corpus.grams_of())


def _learn(corpus: Corpus, train_rows: NDArray[np.int64], recipe: Recipe, progress: Progress) -> Head:
    """A head whose logits are not calibrated, without thresholds."""
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
    return Head(corpus.labels, judged, recipe.encoder, corpus.vectors.shape[1], _stored(raw, keys), {})


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


def _calibrated(
    head: Head, corpus: Corpus, calib_rows: NDArray[np.int64], recipe: Recipe, without: Unseen | None
) -> Head:
    """With slopes, offsets and thresholds from these rows, and from what heads made of sources they did not know."""
    if not len(calib_rows):
        raise ValueError("no rows are left for calibration; give more rows")
    rows, logits_NL = calib_rows, _logits(head, corpus.select(calib_rows))
    sources = corpus.sources[calib_rows].tolist()
    weights_N = row_weights(sources, {})
    rates: dict[str, float] = {}
    if without is not None:
        rows, logits_NL = np.concatenate([rows, without.rows]), np.concatenate([logits_NL, without.logits])
        others = [f"{UNSEEN}{name}" for name in corpus.sources[without.rows]]
        theirs = row_weights(others, {})
        share = recipe.unseen_weight
        weights_N = np.concatenate([weights_N / weights_N.sum() * (1 - share), theirs / theirs.sum() * share])
        weights_N *= len(weights_N)
        sources, rates = sources + others, dict.fromkeys(others, recipe.unseen_rate)
    truth_NL = corpus.truth[rows]
    lines = []
    for label, truth_N, logit_N in zip(head.labels, truth_NL.T, logits_NL.T, strict=True):
        known = ~np.isnan(truth_N)
        usable = label in head.judged and known.any()
        lines.append(fit_line(truth_N[known], logit_N[known], weights_N[known]) if usable else (1.0, 0.0))
    slope, offset = np.array(lines, dtype=np.float32).T
    head = replace(head, weights={**head.weights, "slope": slope, "offset": offset})
    columns = [head.labels.index(label) for label in head.judged]
    probabilities_NL = head.calibrated(logits_NL)[:, columns]
    benign = benign_sources(sources, truth_NL)
    return replace(head, thresholds=joint_thresholds(probabilities_NL, head.judged, benign, recipe.rate, rates))


def fingerprints(corpus: Corpus, versions: Mapping[str, str], files: Mapping[str, str]) -> dict[str, Any]:
    """What the head was made of: files with their sums, rows by source and split, versions of what computed it."""
    counts = Counter(f"{row.source}/{row.split or 'unsaid'}" for row in corpus.rows)
    return {
        "files": dict(files),
        "rows": dict(sorted(counts.items())),
        "python": platform.python_version(),
        "versions": dict(versions),
    }
