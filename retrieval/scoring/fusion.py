"""From two scores of each candidate, cosine and BM25, to one ranking: pure functions over arrays.

    from retrieval.scoring.fusion import FusionSettings, fuse, smooth
    scores = fuse(cosines, bm25, upper_bound)                 # n candidates -> n scores
    best = np.argsort(-scores, kind="stable")[:NUM_SMOOTHED]
    scores[best] = smooth(scores[best], vectors[best], shares=shares_of(bm25[best], upper_bound))  # then sort again

The score is weight * cosine + (1 - weight) * BM25 / upper bound. Both parts mean the same for every query (how near is
the text; what share of the query's words, by rarity, does it hold), so that scores of different queries can be
compared, which ranks and scores scaled by each query's best hit cannot. Both sides' exact scores are needed for every
candidate, also for one that only the other side found.

Then the best candidates lend score to one another where their texts are much alike: a passage is more likely to answer
where passages like it do too (score regularisation: Diaz, CIKM 2005, https://doi.org/10.1145/1099554.1099722). Not so
where it holds words of the query that they lack, such as the part number that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Method = Literal["weighted", "rrf", "dense", "lexical"]
METHODS: tuple[Method, ...] = get_args(Method)

RRF_K = 60  # Cormack, Clarke and Buettcher, SIGIR 2009
# How many of the best candidates are smoothed, by how many neighbours each at most. Of 15, 20, 30, 50 and all, 30 was
# best; 3 to 10 neighbours did alike. A passage outside the first 30 never overtakes one inside: see `smooth`.
NUM_SMOOTHED = 30
NUM_NEIGHBOURS = 8
# A passage whose share of the query's words exceeds another's by so much is not smoothed with it. Without this rule 38
# of 60 one-sentence passages that differ in a number were first for it, with 0.2 or 0.3 all; nDCG@10 stayed the same.
LEAD = 0.2


@dataclass(frozen=True)
class FusionSettings:
    """How two rankings become one; an index remembers its own.

    method: 'weighted' as above; 'rrf', reciprocal-rank fusion with k = 60; 'dense' or 'lexical', one side alone.
    weight: the share of the cosine in 'weighted', 0 to 1. smoothing: how much the neighbours of a passage count beside
    itself, 0 for not at all. similarity: the cosine of two passages above which they are neighbours. baseline: the
    cosine that this encoder gives texts on different subjects: 0 for most, 0.7 for some; see `baseline_of`.

    Raises ValueError for values out of range.
    """

    method: Method = "weighted"
    weight: float = 0.58
    smoothing: float = 0.6
    similarity: float = 0.5
    baseline: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown fusion '{self.method}'; known: {', '.join(METHODS)}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; the cosine's share must be from 0 to 1")
        if not 0 <= self.smoothing < float("inf"):
            raise ValueError(f"smoothing is {self.smoothing}; it must be at least 0, usually 0.5 to 2")
        if not 0 <= self.similarity < 1:
            raise ValueError(f"similarity is {self.similarity}; it must be at least 0 and below 1")
        if not -1 < self.baseline < 1:
            raise ValueError(f"baseline is {self.baseline}; it is a cosine, above -1 and below 1")


def fuse(
    dense: NDArray[Any],
    lexical: NDArray[Any],
    upper_bound: float,
    settings: FusionSettings | None = None,
    dense_ranks: NDArray[np.int64] | None = None,
    lexical_ranks: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Scores of n candidates, higher is better, from their cosines and BM25 scores, (n,) each.

    `upper_bound` is the most BM25 that any passage can have for the query (`Lexical.upper_bound`), 0 for a query
    without a word that occurs. The ranks, from 1, 0 for 'not found by this side', serve 'rrf' alone, which otherwise
    ranks the candidates by their scores. Raises ValueError where the arrays differ in length.
    """
    settings = settings or FusionSettings()
    if dense.shape != lexical.shape or dense.ndim != 1:
        raise ValueError(f"{dense.shape} cosines for {lexical.shape} BM25 scores; give one of each for each candidate")
    cosines, words = dense.astype(np.float64), lexical.astype(np.float64)
    if settings.method == "dense":
        return cosines
    if settings.method == "lexical":
        return words
    if settings.method == "rrf":
        return reciprocal_rank_fusion(
            _ranks(cosines) if dense_ranks is None else dense_ranks,
            _ranks(words, above=0.0) if lexical_ranks is None else lexical_ranks,
        )
    return settings.weight * _rebased(cosines, settings) + (1 - settings.weight) * shares_of(words, upper_bound)


def shares_of(bm25: NDArray[Any], upper_bound: float) -> NDArray[Any]:
    """Which share of the query's words, by rarity, each of n candidates holds, (n,) from 0 to 1; see `fuse`."""
    return bm25 / upper_bound if upper_bound > 0 else np.zeros_like(bm25)


def reciprocal_rank_fusion(*rankings: NDArray[Any], k: int = RRF_K) -> NDArray[np.float64]:
    """The sum of 1 / (k + rank) over rankings of the same n candidates, (n,) each; higher is better.

    Cormack, Clarke and Buettcher, SIGIR 2009, https://doi.org/10.1145/1571941.1572114. Ranks count
    from 1; 0 stands for a candidate that a ranking lacks, and adds nothing.
    """
    return sum((np.where(ranks > 0, 1.0 / (k + ranks), 0.0) for ranks in rankings), np.zeros(len(rankings[0])))


def smooth(
    scores: NDArray[Any],
    vectors: NDArray[Any],
    settings: FusionSettings | None = None,
    titles: Sequence[str] | None = None,
    shares: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """The scores of n candidates, (n,), each averaged with those of the candidates most like it, (n, dim) unit vectors.

    A neighbour's weight rises from 0 at cosine `similarity` to `smoothing` at cosine 1; the passage's own is 1. Of
    passages with the same title, where `titles` gives one (n of them, '' for none), neither is a neighbour of the
    other: they are alike by their subject, and where only one of them answers it would lose to the rest. Nor is
    one that holds a share of the query's words smaller by LEAD, by `shares`, (n,) from 0 to 1. Every result lies
    between the lowest and the highest of `scores`: so the best n of more candidates stay the best n. Other methods than
    'weighted', and smoothing 0, leave the scores as they are. Raises ValueError where lengths differ.
    """
    settings = settings or FusionSettings()
    values = scores.astype(np.float64)
    num = len(values)
    given = {"vectors": vectors, "titles": titles, "shares": shares}
    if wrong := [f"{len(each)} {name}" for name, each in given.items() if each is not None and len(each) != num]:
        raise ValueError(f"{' and '.join(wrong)} for {num} scores; give one for each candidate")
    if settings.method != "weighted" or settings.smoothing == 0 or num < 2:
        return values
    alike = _rebased((vectors @ vectors.T).astype(np.float64), settings)
    alike[_same(titles or [""] * num)] = -np.inf
    # Stable, so that equal neighbours (duplicates) are taken in the same order everywhere.
    nearest = np.argsort(-alike, axis=1, kind="stable")[:, :NUM_NEIGHBOURS]
    above = np.take_along_axis(alike, nearest, axis=1) - settings.similarity
    weights = settings.smoothing * np.clip(above / (1 - settings.similarity), 0, 1)
    if shares is not None:
        weights[shares[:, None] - shares[nearest] >= LEAD] = 0
    averaged = (values + (weights * values[nearest]).sum(1)) / (1 + weights.sum(1))
    # Rounding must not break what is promised.
    clipped: NDArray[np.float64] = np.clip(averaged, values.min(), values.max())
    return clipped


def _same(titles: Sequence[str]) -> NDArray[np.bool_]:
    """(n, n): which pairs share a title; each is the same as itself."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(title, i) if title else i for i, title in enumerate(titles)])
    same: NDArray[np.bool_] = ids[:, None] == ids[None, :]
    return same


def baseline_of(vectors: NDArray[Any]) -> float:
    """The mean cosine of different rows of (n, dim) unit vectors, at least 0: a `baseline` where the rows are texts on
    subjects that have nothing in common, such as `UNRELATED` encoded. Raises ValueError for fewer than two rows."""
    num = len(vectors)
    if num < 2:
        raise ValueError(f"a baseline needs at least 2 texts, not {num}")
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    return float(np.clip((cosines.sum() - np.trace(cosines)) / (num * (num - 1)), 0.0, 0.95))


UNRELATED = (
    "The recipe asks for two eggs, a cup of flour and a pinch of salt.",
    "The court ruled that the contract had never been valid.",
    "Glaciers carve deep valleys as they move towards the sea.",
    "She scored the winning goal in the last minute of the match.",
    "The printer does not respond after the driver was updated.",
    "Interest rates rose again, and house prices began to fall.",
    "The symphony opens with a slow melody for the oboe.",
    "Bees tell each other with a dance where they found nectar.",
    "The patient was given antibiotics for ten days.",
    "Napoleon's army crossed the river in the winter of 1812.",
    "Change to the second gear before you turn into the street.",
    "The telescope sees galaxies whose light is billions of years old.",
)
"""Sentences with nothing in common but their language."""


def _rebased(cosines: NDArray[np.float64], settings: FusionSettings) -> NDArray[np.float64]:
    """Cosines on a scale where unrelated texts have 0, and the same text 1."""
    rebased: NDArray[np.float64] = (cosines - settings.baseline) / (1 - settings.baseline)
    return rebased


def _ranks(scores: NDArray[np.float64], above: float = -np.inf) -> NDArray[np.int64]:
    """The rank of each score, from 1, of equal ones in their order; 0 for a score that is not above `above`."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return np.where(scores > above, ranks, 0)
