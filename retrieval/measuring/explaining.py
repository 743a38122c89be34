"""Why a query finds what it finds: each candidate's place by words, by vectors and by both, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval.retriever import NOT_AMONG, Picked, Retriever


@dataclass(frozen=True)
class Row:
    """A candidate. `score`: fused; `dense`: cosine; `lexical`: BM25; ranks count from 1, 0 where that side alone would
    not have found it. `decision`: kept, or why not."""

    title: str
    location: str
    score: float
    dense: float
    dense_rank: int
    lexical: float
    lexical_rank: int
    decision: str


@dataclass(frozen=True)
class Explanation:
    """`words`: what was searched for by words, with their weights (rarer words have more). `verdict`: whether the
    documents answer, and how sure that is."""

    words: str
    confidence: float
    floor: float
    verdict: str
    rows: tuple[Row, ...]


def explain(retriever: Retriever, query: str, k: int, near: int = 5, context: str = "") -> Explanation:
    """The `k` passages that a search keeps, those cut on the way, and the `near` best after them.

    Raises ValueError for a blank query, for k < 1 and for near < 0.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if near < 0:
        raise ValueError(f"near is {near}; the number of near misses must be at least 0")
    if not query.strip():
        raise ValueError("the query is empty; say what to search for")
    opened = retriever.current()
    floor = opened.store.manifest.floor
    vectors = retriever.query_vectors([query], [context])
    words = retriever.words(opened, [query], [context])
    candidates = retriever.candidates(opened, vectors, words, k + near)[0]
    rows: list[Row] = []
    num_kept = 0
    for number, outcome in retriever.pick(opened, candidates, vectors[0], k):
        if num_kept == k and near == 0:
            break
        place = int(candidates.segments[number]), int(candidates.ids[number])
        passage = opened.store.passage(place)
        rows.append(
            Row(
                passage.title,
                passage.location,
                float(candidates.scores[number]),
                float(candidates.dense[number]),
                int(candidates.dense_ranks[number]),
                float(candidates.lexical[number]),
                int(candidates.lexical_ranks[number]),
                "kept" if isinstance(outcome, Picked) else f"cut: {outcome}",
            )
        )
        num_kept += isinstance(outcome, Picked)
        near -= not isinstance(outcome, Picked) and outcome.startswith(NOT_AMONG)
    confidence = retriever.confidence(opened, candidates, words[0])
    return Explanation(
        ", ".join(f"{word} {weight:.2f}" for word, weight in opened.ranker.lexical.term_weights(words[0]).items())
        or "(none that count)",
        confidence,
        floor,
        _verdict(confidence, floor),
        tuple(rows),
    )


def _verdict(confidence: float, floor: float) -> str:
    if confidence >= floor:
        return f"confidence {confidence:.2f} reaches the floor, {floor:.2f}: a bot answers from these"
    return f'confidence {confidence:.2f} is below the floor, {floor:.2f}: a bot says "the documents do not say"'
