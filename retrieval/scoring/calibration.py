"""When to say "the documents do not say": a confidence in [0, 1] for each query, fitted on the user's own documents.

    questions = make_questions(passages, num=300)             # retrieval.confidence.questions
    threshold = fit(features where the passage is there, features where it is held out).threshold

Nobody has questions for a new index, so they are made from its passages: the words of a clause that stand around a name
or number, which is left out as the answer, and the passage's title or rarest words, since people name their subject.
Each is searched for twice, with its passage in the index and with it held out. For the encoder such a question stands
as it is; for BM25 nearly half of its words are exchanged for others of the corpus, since people use other words than
the text does, which an encoder understands and a word index does not. Of the ways that were tried, this gave features
spread most like those of real questions with and without an answer, on four collections.

A logistic model over three features gives the confidence. The threshold is where the chosen share of the answerable
questions is refused. Importing this is cheap; pure functions, the searching is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEATURES = ("cosine", "gap", "coverage")
NUM_NEAREST = 10  # cosines that a feature looks at
TARGET_FALSE_REFUSAL = 0.05
MIN_QUESTIONS = 20  # of either kind: below that, one question in twenty is not one
NUM_FOLDS = 5
RIDGE = 1.0  # on standardised features: a few hundred questions, three coefficients


@dataclass(frozen=True)
class Calibration:
    """How sure a search is that the documents answer, and from where on that is enough.

    threshold: the confidence below which to refuse. coefficients: of `FEATURES`, none negative, and intercept: of the
    logistic model. target_false_refusal: the share of answerable questions that may be refused. false_refusal,
    false_answer: the shares refused of the answerable and answered of the unanswerable questions, each measured by
    models that were fitted without them. num_answerable, num_unanswerable: how many questions there were.
    """

    threshold: float
    coefficients: tuple[float, ...]
    intercept: float
    target_false_refusal: float
    false_refusal: float
    false_answer: float
    num_answerable: int
    num_unanswerable: int

    def __post_init__(self) -> None:
        numbers = (self.threshold, *self.coefficients, self.intercept, self.false_refusal, self.false_answer)
        if len(self.coefficients) != len(FEATURES) or not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"a calibration needs {len(FEATURES)} coefficients, all finite; fit it again")

    def confidence(self, features: ArrayLike) -> float:
        """From 0 to 1, higher is surer; never lower where a feature is higher. `features`: (3,), see `features`."""
        return float(_sigmoid(np.asarray(features, dtype=float) @ np.array(self.coefficients) + self.intercept))

    def answers(self, features: ArrayLike) -> bool:
        """Whether the confidence reaches the threshold."""
        return self.confidence(features) >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        return {**asdict(self), "coefficients": list(self.coefficients)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Raises ValueError for fields that are missing or unknown, and for values that are no numbers."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"a calibration has the fields {', '.join(sorted(names))}; fit it again")
        try:
            coefficients = tuple(float(value) for value in values["coefficients"])
            counts = {name: int(values[name]) for name in names if name.startswith("num_")}
            rest = {name: float(values[name]) for name in names - set(counts) - {"coefficients"}}
        except (TypeError, ValueError, OverflowError):
            raise ValueError("a calibration holds a value that is no number; fit it again") from None
        return cls(coefficients=coefficients, **counts, **rest)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return (
            f"from {self.num_answerable} questions with an answer, of which it refuses {self.false_refusal:.0%}, and "
            f"{self.num_unanswerable} without one, of which it answers {self.false_answer:.0%}"
        )


def features(
    cosines: ArrayLike, term_weights: Mapping[str, float], passage_terms: Collection[str]
) -> NDArray[np.float64]:
    """(3,) features of a query and what it found, in the order of `FEATURES`; (0, 0, 0) where nothing was found.

    cosines: of the query and its candidates, in any order; the ten best count. term_weights: each term of the query
    with weight * idf, also those that no passage holds (with the idf of a document frequency of 0: a name that the
    documents never mention says much). passage_terms: the terms of the passage that the search puts first, its title
    included.

    cosine: the best. gap: how far it stands above the mean of the nine after it; an answer stands out. coverage: the
    share, by weight, of the query's terms that the first passage holds; 0 for a query without terms.
    """
    best = -np.sort(-np.asarray(cosines, dtype=float))[:NUM_NEAREST]
    if not len(best):
        return np.zeros(len(FEATURES))
    gap = best[0] - best[1:].mean() if len(best) > 1 else max(best[0], 0.0)
    total = sum(term_weights.values())
    held = sum(weight for term, weight in term_weights.items() if term in passage_terms)
    return np.array([best[0], gap, held / total if total > 0 else 0.0])


def fit(
    answerable: ArrayLike,
    unanswerable: ArrayLike,
    target_false_refusal: float = TARGET_FALSE_REFUSAL,
    seed: int = 0,
) -> Calibration:
    """From the features of questions with an answer, (n, 3), and without one, (m, 3), to a calibration.

    Raises ValueError for fewer than MIN_QUESTIONS of either kind, features that are not finite, and a target that is
    not from 0 to 0.5.
    """
    if not 0 <= target_false_refusal <= 0.5:
        raise ValueError(f"target_false_refusal is {target_false_refusal}; it is a share, from 0 to 0.5, usually 0.05")
    positive, negative = (_checked(rows) for rows in (answerable, unanswerable))
    coefficients, intercept, threshold = _fit(positive, negative, target_false_refusal)
    false_refusal, false_answer = _cross_validated(positive, negative, target_false_refusal, seed)
    return Calibration(
        threshold=threshold,
        coefficients=tuple(coefficients.tolist()),
        intercept=intercept,
        target_false_refusal=target_false_refusal,
        false_refusal=false_refusal,
        false_answer=false_answer,
        num_answerable=len(positive),
        num_unanswerable=len(negative),
    )


def _checked(rows: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(rows, dtype=float)
    if len(values) < MIN_QUESTIONS:
        raise ValueError(
            f"there are {len(values)} questions of one kind, and at least {MIN_QUESTIONS} with and without an answer "
            "are needed; index more documents, or give more questions"
        )
    if values.shape[1:] != (len(FEATURES),) or not np.isfinite(values).all():
        raise ValueError(f"features of shape {values.shape}; they must be finite, {len(FEATURES)} for each question")
    return values


def _fit(
    positive: NDArray[np.float64], negative: NDArray[np.float64], target: float
) -> tuple[NDArray[np.float64], float, float]:
    """Coefficients, intercept and threshold."""
    used = np.ones(len(FEATURES), dtype=bool)
    while True:
        coefficients, intercept = _logistic(positive * used, negative * used)
        # A higher cosine, gap or coverage must never count against an answer: what a feature would be used for against
        # its sense is chance or a correlation of the made questions, so it is left out.
        if not (coefficients < 0).any():
            break
        used[np.argmin(coefficients)] = False
    confidences = np.sort(_sigmoid(positive @ coefficients + intercept))
    return coefficients, intercept, float(confidences[int(target * len(confidences))])


def _logistic(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Ridge logistic regression by Newton's method, both kinds weighing the same however many there are."""
    rows = np.concatenate([positive, negative])
    labels = np.repeat([1.0, 0.0], [len(positive), len(negative)])
    weights = np.repeat(
        [len(rows) / (2 * len(positive)), len(rows) / (2 * len(negative))], [len(positive), len(negative)]
    )
    mean, deviation = rows.mean(0), rows.std(0)
    deviation[deviation < 1e-9] = 1.0
    design = np.column_stack([np.ones(len(rows)), (rows - mean) / deviation])
    ridge = np.diag([0.0, *[RIDGE] * rows.shape[1]])
    beta = np.zeros(design.shape[1])
    for _ in range(50):
        chance = _sigmoid(design @ beta)
        gradient = design.T @ (weights * (chance - labels)) + ridge @ beta
        curvature = design.T @ (design * (weights * np.maximum(chance * (1 - chance), 1e-6))[:, None]) + ridge
        step = np.linalg.solve(curvature, gradient)
        beta -= step
        if np.abs(step).max() < 1e-9:
            break
    coefficients = np.where(rows.std(0) < 1e-9, 0.0, beta[1:] / deviation)
    return coefficients, float(beta[0] - coefficients @ mean)


def _cross_validated(
    positive: NDArray[np.float64], negative: NDArray[np.float64], target: float, seed: int
) -> tuple[float, float]:
    """The shares refused of `positive` and answered of `negative`, each row judged by a model fitted without it."""
    rng = np.random.default_rng(seed)
    folds = [rng.permutation(len(rows)) % NUM_FOLDS for rows in (positive, negative)]
    refused = answered = 0
    for fold in range(NUM_FOLDS):
        kept, judged = (
            [rows[(own != fold) == keep] for rows, own in zip((positive, negative), folds, strict=True)]
            for keep in (True, False)
        )
        coefficients, intercept, threshold = _fit(kept[0], kept[1], target)
        refused += int((_sigmoid(judged[0] @ coefficients + intercept) < threshold).sum())
        answered += int((_sigmoid(judged[1] @ coefficients + intercept) >= threshold).sum())
    return refused / len(positive), answered / len(negative)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(values, -60, 60)))
    return result
