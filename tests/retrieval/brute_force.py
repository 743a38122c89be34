"""What a hybrid search should find, computed from the texts of an index alone, all passages against all formulas.

Cosines from the hash encoder's vectors made anew, BM25 by bm25s, fusion and smoothing in plain loops.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bm25s
import numpy as np

from retrieval.encoders import HashEncoder
from retrieval.index.store import Store
from retrieval.passages import embedding_text
from retrieval.scoring.fusion import UNRELATED, FusionSettings
from retrieval.scoring.tokens import Tokenizer
from retrieval.types import Passage

NUM_SMOOTHED, NUM_NEIGHBOURS, RRF_K, LEAD = 30, 8, 60, 0.2


@dataclass
class Scored:
    """A passage with its cosine, BM25 and fused score, all higher is better."""

    passage: Passage
    dense: float
    lexical: float
    score: float


def query_vector(query: str, context: str = "") -> np.ndarray:
    """The mix of a follow-up question alone (0.6) and after its conversation (0.4)."""
    own, whole = HashEncoder().encode([query, f"{context.strip()[-800:]}\n{query}"])
    mixed = 0.6 * own + 0.4 * whole if context.strip() else own
    return mixed / np.linalg.norm(mixed)


def weighted_terms(query: str, context: str = "", language: str = "english") -> Mapping[str, float]:
    """The terms of a follow-up question (0.6 each) and those of its conversation (0.4 each)."""
    tokens = Tokenizer(language).tokens
    parts = [(query, 0.6), (context, 0.4)] if context.strip() else [(query, 1.0)]
    terms: Counter[str] = Counter()
    for part, weight in parts:
        for term in tokens(part):
            terms[term] += weight  # type: ignore[assignment]
    return terms


def bm25(texts: list[str], terms: Mapping[str, float], language: str = "english") -> tuple[np.ndarray, float]:
    """Scores of all texts (k1 0.9, b 0.4), and the sum of weight * idf over the terms that occur."""
    tokens = [Tokenizer(language).tokens(text) for text in texts]
    rival = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    rival.index(tokens, show_progress=False)
    scores, bound = np.zeros(len(texts)), 0.0
    for term, weight in terms.items():
        df = sum(term in each for each in tokens)
        if df:
            scores += weight * rival.get_scores([term])
            bound += weight * math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
    return scores, bound


@cache
def baseline() -> float:
    """The mean cosine of sentences that have nothing in common."""
    vectors = HashEncoder().encode(UNRELATED)
    cosines = [float(a @ b) for i, a in enumerate(vectors) for j, b in enumerate(vectors) if i != j]
    return round(sum(cosines) / len(cosines), 3)


def ranked(index: Path, query: str, context: str = "", fusion: FusionSettings | None = None) -> list[Scored]:
    """All live passages, best first. Only for an index none of whose passages is deleted, and of at most 100 passages:
    above that a search does not look at all of them."""
    passages = [passage for _, passage in Store(index).live_passages()]
    fusion = fusion or FusionSettings()
    texts = [embedding_text(passage) for passage in passages]
    vectors = HashEncoder().encode(texts)
    dense = vectors @ query_vector(query, context)
    lexical, bound = bm25(texts, weighted_terms(query, context))
    fused = np.array([_fused(*pair, bound, fusion) for pair in zip(dense.tolist(), lexical.tolist(), strict=True)])
    if fusion.method == "rrf":
        fused = np.zeros(len(passages))
        for side, least in ((dense, -2.0), (lexical, 0.0)):
            for rank, i in enumerate(np.argsort(-side, kind="stable").tolist(), start=1):
                fused[i] += 1 / (RRF_K + rank) if side[i] > least else 0
    order = np.argsort(-fused, kind="stable").tolist()
    best = order[:NUM_SMOOTHED]
    if fusion.method == "weighted":
        titles = [passages[i].title.partition(" > ")[0] or passages[i].id.rpartition("#")[0] for i in best]
        shares = [lexical[i] / bound if bound else 0.0 for i in best]
        fused[best] = smoothed(fused[best].tolist(), vectors[best], titles, shares, fusion)
        best = [best[i] for i in np.argsort(-fused[best], kind="stable")]
    return [
        Scored(passages[i], float(dense[i]), float(lexical[i]), float(fused[i])) for i in [*best, *order[NUM_SMOOTHED:]]
    ]


def _fused(cosine: float, words: float, bound: float, fusion: FusionSettings) -> float:
    if fusion.method != "weighted":
        return {"dense": cosine, "lexical": words, "rrf": 0.0}[fusion.method]
    rebased = (cosine - baseline()) / (1 - baseline())
    return fusion.weight * rebased + (1 - fusion.weight) * (words / bound if bound else 0.0)


def smoothed(
    scores: list[float], vectors: np.ndarray, titles: list[str], shares: list[float], fusion: FusionSettings
) -> list[float]:
    """Each score averaged with those of its eight nearest of other subjects, by how far they are above `similarity`,
    unless they hold much less of the query's words."""
    result = []
    for i, score in enumerate(scores):
        alike = [
            ((float(vectors[i] @ vectors[j]) - baseline()) / (1 - baseline()), j)
            for j in range(len(scores))
            if j != i and not (titles[i] and titles[i] == titles[j])
        ]
        total, weights = score, 1.0
        for cosine, j in sorted(alike, key=lambda each: -each[0])[:NUM_NEIGHBOURS]:
            weight = fusion.smoothing * max(cosine - fusion.similarity, 0) / (1 - fusion.similarity)
            if shares[i] - shares[j] < LEAD:
                total, weights = total + weight * scores[j], weights + weight
        result.append(total / weights)
    return result
