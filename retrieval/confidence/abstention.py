"""How far to trust a search: what the calibration looks at, and fitting it on the passages of an index.

The search runs once for each made question. Its passage, with what says the same, is then taken out of the list that
was found: what is left is what a search without it would find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retrieval.confidence.questions import Labelled, Question, is_held_out, make_questions
from retrieval.index.manifest import Manifest
from retrieval.index.store import Place, Store
from retrieval.scoring.calibration import MIN_QUESTIONS, TARGET_FALSE_REFUSAL, Calibration, features, fit
from retrieval.scoring.lexical import WeightedQuery, parse_query
from retrieval.scoring.tokens import Tokenizer
from retrieval.search.filters import Filter
from retrieval.search.ranking import Candidates, Ranker
from retrieval.types import Encoder, Passage

NUM_SAMPLED = 2000  # passages that questions are made from, spread over the index
NUM_QUESTIONS = 300
NUM_CANDIDATES = 100


class Judge:
    """Gives the features that a calibration turns into a confidence."""

    def __init__(self, store: Store, ranker: Ranker) -> None:
        self._store, self._ranker = store, ranker
        self._tokenizer = Tokenizer(store.manifest.settings.lexical.language)

    def features(self, candidates: Candidates, words: WeightedQuery) -> NDArray[np.float64]:
        """(3,), see `calibration.features`."""
        if not len(candidates):
            return features([], {}, ())
        text = self._store.segments[int(candidates.segments[0])].text(int(candidates.ids[0]))
        terms = set(self._tokenizer.tokens(text))
        return features(candidates.dense, self._ranker.lexical.term_weights(words), terms)


def fit_floor(
    store: Store,
    encoder: Encoder,
    labelled: Sequence[Labelled] = (),
    target_false_refusal: float = TARGET_FALSE_REFUSAL,
) -> Manifest:
    """The manifest of an index with a floor that was fitted to its own passages, or to the questions in `labelled`.

    An index with too few passages to say anything keeps the floor that it has.
    """
    ranker = Ranker(store)
    sample = sampled(store, NUM_SAMPLED)
    if labelled:
        rows = _from_labelled(store, ranker, encoder, labelled)
    else:
        language = store.manifest.settings.lexical.language
        questions = make_questions([passage for _, passage in sample], NUM_QUESTIONS, language=language)
        rows = _from_made(store, ranker, encoder, questions, [place for place, _ in sample])
    if not labelled and min(map(len, rows)) < MIN_QUESTIONS:
        return store.manifest
    calibration: Calibration = fit(*rows, target_false_refusal=target_false_refusal)
    return replace(store.manifest, calibration=calibration, floor=calibration.threshold)


def sampled(store: Store, num: int) -> list[tuple[Place, Passage]]:
    """About `num` live passages, evenly spread."""
    step = max(len(store) // num, 1)
    places = [
        (number, i)
        for number, segment in enumerate(store.segments)
        for i in np.flatnonzero(segment.live())[::step].tolist()
    ]
    return [(place, store.passage(place)) for place in places]


def _from_made(
    store: Store, ranker: Ranker, encoder: Encoder, questions: Sequence[Question], places: Sequence[Place]
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Features with the passage there, for questions whose passage is found at all, and with it held out."""
    judge = Judge(store, ranker)
    settings = store.manifest.settings.lexical
    words = [parse_query(question.words, settings=settings) for question in questions]
    vectors = encoder.encode([question.text for question in questions])
    found = ranker.rank(vectors, words, NUM_CANDIDATES, Filter())
    present, absent = [], []
    for question, query, candidates in zip(questions, words, found, strict=True):
        held_out = _held_out(store, question, candidates, places[question.passage])
        present.append(judge.features(candidates, query))
        absent.append(judge.features(candidates.without(held_out), query))
    return present, absent


def _held_out(store: Store, question: Question, candidates: Candidates, place: Place) -> NDArray[np.bool_]:
    """Which of the candidates say what the question's own passage says."""
    own = store.segments[place[0]].vectors[place[1]]
    held_out = np.zeros(len(candidates), dtype=bool)
    for row, (number, i) in enumerate(zip(candidates.segments.tolist(), candidates.ids.tolist(), strict=True)):
        segment = store.segments[number]
        held_out[row] = (number, i) == place or is_held_out(question, segment.text(i), float(segment.vectors[i] @ own))
    return held_out


def _from_labelled(
    store: Store, ranker: Ranker, encoder: Encoder, labelled: Sequence[Labelled]
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Features of the user's own questions; those whose answer is named serve once more with it held out."""
    judge = Judge(store, ranker)
    settings = store.manifest.settings.lexical
    words = [parse_query(question.text, settings=settings) for question in labelled]
    found = ranker.rank(encoder.encode([question.text for question in labelled]), words, NUM_CANDIDATES, Filter())
    present: list[NDArray[np.float64]] = []
    absent: list[NDArray[np.float64]] = []
    for question, query, candidates in zip(labelled, words, found, strict=True):
        (present if question.answerable else absent).append(judge.features(candidates, query))
        if question.gold:
            names = set(question.gold)
            held_out = np.zeros(len(candidates), dtype=bool)
            for row, place in enumerate(zip(candidates.segments.tolist(), candidates.ids.tolist(), strict=True)):
                passage = store.passage(place)
                held_out[row] = bool(names & {passage.id, passage.id.rpartition("#")[0], passage.source})
            absent.append(judge.features(candidates.without(held_out), query))
    return present, absent
