"""Several classifiers as one: the strictest score of each label, or the average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

from moderation.labels import is_benign
from moderation.policy import DEFAULT_THRESHOLD
from moderation.types import Classifier, Scores

if TYPE_CHECKING:
    from moderation.types import Vectors

Joining = Literal["strictest", "average"]
JOININGS: tuple[Joining, ...] = ("strictest", "average")


class CompositeClassifier:
    """What `classifiers` say together, label by label, of those of them that can judge the text; None where none can.

    "strictest" takes the highest score (of a label that means "nothing wrong", the lowest), "average" the mean. The
    recommended threshold of a label is likewise the lowest, or the mean, of what those that have the label recommend
    (DEFAULT_THRESHOLD for one that recommends nothing). Where one of them fails, all of them have: an answer without
    it would be milder than what was asked for. Raises ValueError for fewer than two classifiers and an unknown joining.
    """

    def __init__(self, joining: Joining, classifiers: Sequence[Classifier]) -> None:
        if joining not in JOININGS:
            raise ValueError(f"unknown way to join classifiers '{joining}'; choose one of: {', '.join(JOININGS)}")
        if len(classifiers) < 2:
            raise ValueError(f"'{joining}' joins two classifiers or more, not {len(classifiers)}")
        self._joining = joining
        self._classifiers = tuple(classifiers)
        encoders = {getattr(each, "encoder", None) for each in classifiers if hasattr(each, "from_vectors")}
        if len(encoders) == 1:  # one embedding does not serve two encoders
            (self.encoder,) = encoders
            self.from_vectors = self._from_vectors

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for each in self._classifiers for label in each.labels))

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """Label -> recommended threshold, for the labels that any of the classifiers recommends one for."""
        recommended = [(each.labels, getattr(each, "thresholds", {})) for each in self._classifiers]
        join = min if self._joining == "strictest" else _mean
        return {
            label: join([own.get(label, DEFAULT_THRESHOLD) for labels, own in recommended if label in labels])
            for label in self.labels
            if any(label in own for _, own in recommended)
        }

    def scores(self, texts: Sequence[str]) -> list[Scores]:
        """For each text: label -> probability in [0, 1], None where no classifier can judge it."""
        return self._joined(len(texts), [each.scores(texts) for each in self._classifiers])

    def _from_vectors(self, texts: Sequence[str], vectors: Vectors) -> list[Scores]:
        """The same, with the texts' embeddings, (n, dim) float32, for those of the classifiers that can use them."""
        return self._joined(len(texts), [_from_vectors(each, texts, vectors) for each in self._classifiers])

    def _joined(self, num_texts: int, answers: Sequence[Sequence[Scores]]) -> list[Scores]:
        for classifier, answer in zip(self._classifiers, answers, strict=True):
            name = type(classifier).__name__
            if len(answer) != num_texts:
                raise ValueError(f"{name} gave {len(answer)} results for {num_texts} texts")
            if not all(set(classifier.labels).issuperset(scores) for scores in answer):
                raise ValueError(f"{name} gave labels that it does not declare")
        return [{label: self._join(label, of_text) for label in self.labels} for of_text in zip(*answers, strict=True)]

    def _join(self, label: str, scores: Iterable[Scores]) -> float | None:
        known = [score for each in scores if (score := each.get(label)) is not None]
        if not known:
            return None
        if any(math.isnan(score) for score in known):  # min and max can lose it, and the moderator must see it
            return math.nan
        join: Callable[[list[float]], float] = max
        if self._joining == "average":
            join = _mean
        elif is_benign(label):
            join = min
        return join(known)


def _from_vectors(classifier: Classifier, texts: Sequence[str], vectors: Vectors) -> list[Scores]:
    from_vectors: Callable[..., list[Scores]] | None = getattr(classifier, "from_vectors", None)
    return classifier.scores(texts) if from_vectors is None else from_vectors(texts, vectors)


def _mean(values: Sequence[float]) -> float:
    # fsum, which rounds once: the mean of probabilities is never above 1.
    return math.fsum(values) / len(values)


def open_composite(name: str, device: str | None, label_map: Mapping[str, str | None]) -> CompositeClassifier:
    """`strictest:A,B` or `average:A,B`, of any number of names without a comma in them.

    Raises ValueError for an empty name, for a composite among them, and where one of them cannot be opened.
    """
    from moderation.classifiers import kind_of, members_of, open_with

    joining, members = name.partition(":")[0], members_of(name)
    if len(members) < 2 or not all(members) or "composite" in map(kind_of, members):
        raise ValueError(
            f"classifier '{name}' does not say what to join; give two names or more, such as {joining}:default,openai"
        )
    return CompositeClassifier(cast(Joining, joining), [open_with(member, device, label_map) for member in members])
