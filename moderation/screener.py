"""PassageScreener: how likely each passage of an index is to give the model orders, judged once, when it is indexed.

screener = open_screener("default")
scores = screener.screen(texts, vectors, "minilm")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.files import expand, sha256_of
from common.models import without_precision
from moderation.classifiers import kind_of, open_classifier
from moderation.labels import INJECTION
from moderation.types import Classifier

if TYPE_CHECKING:
    from moderation.types import Vectors


class PassageScreener:
    """The label `prompt_injection` of a classifier, which `name` stands for. `fingerprint` is equal for two screeners
    only if they give the same scores. ValueError for a classifier without that label."""

    def __init__(self, name: str, classifier: Classifier, fingerprint: str) -> None:
        if INJECTION not in classifier.labels:
            labels = ", ".join(classifier.labels)
            raise ValueError(f"classifier '{name}' cannot screen documents: it has no {INJECTION} among {labels}")
        self.name, self.fingerprint = name, fingerprint
        self._classifier = classifier

    @property
    def encoder(self) -> str:
        """The name of the encoder whose vectors it reads; empty where it reads none."""
        return getattr(self._classifier, "encoder", None) or ""

    def screen(self, texts: Sequence[str], vectors: Vectors, encoder: str) -> Vectors:
        """(n,) probabilities, higher is worse; NaN for a text that cannot be judged. `vectors`, (n, dim) float32, are
        what the encoder called `encoder` makes of these texts; where it is another, the texts are read anew.

        Raises what the classifier raises, and ValueError where it does not give one result for each text.
        """
        import numpy as np

        from_vectors = getattr(self._classifier, "from_vectors", None)
        if from_vectors is not None and without_precision(encoder) == self.encoder:
            results = from_vectors(texts, vectors)
        else:
            results = self._classifier.scores(texts)
        if len(results) != len(texts):
            raise ValueError(f"classifier '{self.name}' gave {len(results)} results for {len(texts)} texts")
        scores = [result.get(INJECTION) for result in results]
        return np.array([math.nan if score is None else score for score in scores], dtype=np.float32)


def open_screener(name: str = "default", device: str | None = None) -> PassageScreener:
    """The screener by the classifier that `name` stands for (see `moderation.classifiers`).

    Its fingerprint is the sum of a head's settings, which hold that of its weights; of any other classifier, whose
    weights may lie elsewhere, it is the name. Raises ValueError where the classifier cannot be opened or lacks the
    label.
    """
    classifier = open_classifier(name, device)
    fingerprint = name
    if kind_of(name) == "head":
        from moderation.head.classifier import shipped
        from moderation.head.model import SETTINGS

        fingerprint = sha256_of((shipped() if name == "default" else expand(name)) / SETTINGS)
    return PassageScreener(name, classifier, fingerprint)
