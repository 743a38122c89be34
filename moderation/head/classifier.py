"""HeadClassifier: the head with its sentence encoder, as a moderation.types.Classifier."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import expand
from common.plugins import plugin
from moderation.head.features import windows
from moderation.head.model import Array, Head, load_head

Encode = Callable[[Sequence[str]], Array]  # texts -> (n, dim) float32, unit rows


class HeadClassifier:
    """Scores texts with a `Head`. A text longer than a window gets the highest score of its windows, by label; see
    `moderation.head.features` for how much of a very long text is read. A blank text is None for all labels.

    `encode` gives sentence vectors; left out, the head's own encoder is opened when it is first needed, on `device`.
    Safe to call from several threads.
    """

    def __init__(self, head: Head, encode: Encode | None = None, device: str | None = None) -> None:
        self.head = head
        self._encode, self._device = encode, device
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, folder: str | Path | None = None, encode: Encode | None = None, device: str | None = None
    ) -> HeadClassifier:
        """The head in `folder`, or the shipped one. ValueError where it cannot be read or was changed."""
        return cls(load_head(shipped() if folder is None else expand(folder)), encode, device)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.head.labels

    @property
    def thresholds(self) -> Mapping[str, float]:
        """By label, probabilities that together flag at most 1% of harmless texts (of those it was tuned on)."""
        return self.head.thresholds

    @property
    def encoder(self) -> str:
        """The name of the sentence encoder whose vectors it reads."""
        return self.head.encoder

    def scores(self, texts: Sequence[str]) -> list[dict[str, float | None]]:
        """For each text: label -> probability in [0, 1], or None."""
        return self._scores(texts, None)

    def from_vectors(self, texts: Sequence[str], vectors: Array) -> list[dict[str, float | None]]:
        """`scores` for texts whose sentence vectors are known: (n, dim), a row each, of the encoder `self.encoder`.

        Only what lies beyond the first window of a long text is encoded here. ValueError for vectors of another shape.
        """
        vectors = np.asarray(vectors)
        if vectors.shape != (len(texts), self.head.dim):
            raise ValueError(
                f"vectors of shape {vectors.shape} for {len(texts)} texts; give {self.head.dim} numbers for each, from "
                f"the encoder '{self.encoder}'"
            )
        return self._scores(texts, vectors)

    def _scores(self, texts: Sequence[str], vectors: Array | None) -> list[dict[str, float | None]]:
        pieces: list[str] = []
        owners: list[int] = []
        first: list[bool] = []
        for i, text in enumerate(texts):
            for number, piece in enumerate(windows(text) if text.strip() else []):
                pieces.append(piece)
                owners.append(i)
                first.append(number == 0)
        results: list[dict[str, float | None]] = [dict.fromkeys(self.labels) for _ in texts]
        if not pieces:
            return results
        probabilities = self.head.probabilities(pieces, self._vectors(pieces, owners, first, vectors))
        worst = np.full((len(texts), len(self.labels)), -np.inf)
        np.maximum.at(worst, owners, probabilities)  # NaN stays NaN: the moderator must see it
        judged = set(self.head.judged)
        for i in set(owners):
            row = worst[i].tolist()
            results[i] = {label: row[j] if label in judged else None for j, label in enumerate(self.labels)}
        return results

    def _vectors(self, pieces: list[str], owners: list[int], first: list[bool], known: Array | None) -> Array:
        """(len(pieces), dim): the known vector for a text's first piece, the encoder's for the rest."""
        if known is None:
            return self._encoded(pieces)
        result: NDArray[Any] = np.asarray(known, dtype=np.float32)[owners]
        if rest := [i for i, is_first in enumerate(first) if not is_first]:
            result[rest] = self._encoded([pieces[i] for i in rest])
        return result

    def _encoded(self, pieces: list[str]) -> Array:
        with self._lock:
            if self._encode is None:
                self._encode = plugin("parley.encoder")(self.encoder, self._device).encode
            encode = self._encode
        return encode([encodable(piece) for piece in pieces])


def encodable(text: str) -> str:
    """`text` with '?' for what is no character (lone surrogates), on which tokenizers fail."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def shipped() -> Path:
    """The directory of the head that comes with the toolkit."""
    return Path(str(resources.files("moderation.head").joinpath("default")))
