"""The gate for blocking by default, and what a head reaches of it on rows that it was not made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moderation.head.calibration import benign_sources
from moderation.head.corpus import Corpus
from moderation.head.metrics import figures
from moderation.head.model import Array, Head

# A label may block by default where all four hold.
RECALL, FALSE_POSITIVES, AUPRC, ECE = 0.90, 0.01, 0.80, 0.05
LEAST_POSITIVES = 50  # held-back rows of a label, with fewer of which nothing is proven


def measure(head: Head, corpus: Corpus) -> dict[str, Any]:
    """`labels`: label -> figures; `false_positives`: benign source -> share flagged by any label; `by_label`: label ->
    benign source -> share flagged by it alone; `recall`: source -> share of its unsafe rows flagged by any label;
    `passes`: the labels that meet the gate."""
    probabilities_NL = scores_of(head, corpus)
    columns = [head.labels.index(label) for label in head.judged]
    thresholds = np.array([head.thresholds[label] for label in head.judged])
    over_NL = probabilities_NL[:, columns] >= thresholds
    flagged: NDArray[np.bool_] = np.any(over_NL, axis=1)
    benign = benign_sources(corpus.sources.tolist(), corpus.truth)
    by_label = {
        label: figures(corpus.truth[:, j], probabilities_NL[:, j])
        for j, label in enumerate(head.labels)
        if label in head.judged
    }
    for k, (label, j) in enumerate(zip(head.judged, columns, strict=True)):
        positive = corpus.truth[:, j] == 1
        by_label[label]["recall_at_threshold"] = float(over_NL[positive, k].mean()) if positive.any() else None
    false_positives = {source: float(flagged[rows].mean()) for source, rows in benign.items()}
    result = {
        "labels": by_label,
        "false_positives": false_positives,
        "recall": _recall(corpus, flagged),
    }
    return {**result, "passes": _passes(by_label, max(false_positives.values(), default=1.0))}


def scores_of(head: Head, corpus: Corpus) -> Array:
    """(N, L) probabilities of the corpus's rows."""
    return head.probabilities(corpus.texts, corpus.vectors, corpus.grams_of())


def _recall(corpus: Corpus, flagged: NDArray[np.bool_]) -> dict[str, float]:
    harmful = (corpus.truth == 1).any(1)
    return {
        str(source): float(flagged[harmful & (corpus.sources == source)].mean())
        for source in np.unique(corpus.sources[harmful])
    }


def _passes(by_label: dict[str, dict[str, Any]], worst: float) -> list[str]:
    """The labels that meet the gate; none where any benign source is flagged too often."""
    return [
        label
        for label, f in by_label.items()
        if worst <= FALSE_POSITIVES
        and f["positives"] >= LEAST_POSITIVES
        and (f["recall_at_threshold"] or 0) >= RECALL
        and (f["auprc"] or 0) >= AUPRC
        and (1.0 if f["ece"] is None else f["ece"]) <= ECE
    ]
