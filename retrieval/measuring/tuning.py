"""Settings measured on the user's own documents: which ranking, and which cut, finds the right passage first.

The questions are made from the passages (see `questions`) or are the user's own. A setting's figure is MRR@10: the mean
of 1 / rank of the first passage that answers, 0 beyond rank 10; higher is better.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.confidence.abstention import NUM_CANDIDATES, NUM_QUESTIONS, NUM_SAMPLED, fit_floor, sampled
from retrieval.confidence.questions import Labelled, make_questions
from retrieval.index.manifest import IndexSettings, Manifest, now
from retrieval.index.store import Store, commit, writing
from retrieval.passages import SplitSettings
from retrieval.scoring.calibration import MIN_QUESTIONS, TARGET_FALSE_REFUSAL
from retrieval.scoring.fusion import FusionSettings
from retrieval.scoring.lexical import WeightedQuery, parse_query
from retrieval.search.filters import Filter
from retrieval.search.ranking import Candidates, Ranker
from retrieval.types import Encoder, Passage
from retrieval.writing.building import build_index
from retrieval.writing.runners import OnProgress

WEIGHTS = (0.3, 0.45, 0.6, 0.75, 0.9)
SMOOTHING = (0.0, 1.0)
DEPTH = 10
MIN_ASKED = 10  # of fewer questions the standard error says little


@dataclass(frozen=True)
class Asked:
    """A question, what each side searches for, and which passages answer it."""

    text: str
    words: WeightedQuery
    answers: Callable[[Passage], bool]


@dataclass(frozen=True)
class Measured:
    """A setting and its figure. `spread`: the standard error of its difference to the setting in use."""

    name: str
    fusion: FusionSettings
    mrr: float
    difference: float
    spread: float


@dataclass(frozen=True)
class Tuned:
    """What tuning found: the settings in the order of their figures, the first of which is in the index now, unless
    none was clearly better than what was there (`changed` is False)."""

    num_questions: int
    rows: tuple[Measured, ...]
    changed: bool
    manifest: Manifest


def tune_index(
    index: str | Path,
    encoder: Encoder,
    labelled: Sequence[Labelled] = (),
    false_refusals: float = TARGET_FALSE_REFUSAL,
) -> Tuned:
    """Measure the ranking settings of an index, keep the winner, and fit the floor to it.

    Another setting replaces the one in use only if it is better by more than two standard errors, on 10 questions or
    more. The floor is fitted to `labelled` where these are enough, else to made questions, so that it refuses the
    share `false_refusals` of those that have an answer. Raises ValueError where no
    questions can be made or none of `labelled` names what answers it.
    """
    index = Path(index)
    with writing(index):
        store = Store(index)
        asked = _asked(store, labelled)
        used = store.manifest.settings.fusion
        found = _searched(store, encoder, asked)
        own = found(used)
        rows = [Measured("in use", used, float(own.mean()), 0.0, 0.0)]
        for fusion in _choices(used):
            figures = found(fusion)
            difference = figures - own
            spread = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else 0.0
            rows.append(Measured(_name(fusion), fusion, float(figures.mean()), float(difference.mean()), spread))
        rows.sort(key=lambda row: -row.mrr)
        best = rows[0]
        changed = len(asked) >= MIN_ASKED and best.difference > 2 * best.spread
        settings = replace(store.manifest.settings, fusion=best.fusion if changed else used)
        manifest = replace(store.manifest, settings=settings, updated=now())
        manifest = fit_floor(Store(index, manifest), encoder, labelled if _is_enough(labelled) else (), false_refusals)
        commit(index, manifest)
    return Tuned(len(asked), tuple(rows), changed, manifest)


def best_window(
    paths: Sequence[str],
    windows: Sequence[int],
    encoder: Encoder,
    settings: IndexSettings,
    on_progress: OnProgress | None = None,
) -> list[tuple[int, float]]:
    """(sentences in a passage, MRR@10) of indexes of the documents under `paths`, best first.

    Each index is built anew in a temporary folder; the questions are those of the first one, and are answered by
    whatever passage holds the sentence they were made from.
    """
    figures: list[tuple[int, float]] = []
    asked: list[Asked] = []
    with tempfile.TemporaryDirectory(prefix="parley-tune-") as scratch:
        for window in windows:
            index = Path(scratch) / f"window-{window}"
            split = with_window(settings.split, window)
            tried = replace(settings, split=split)
            build_index(paths, index, encoder, tried, calibrate=False, on_progress=on_progress)
            store = Store(index)
            asked = asked or _asked(store, ())
            figures.append((window, float(_searched(store, encoder, asked)(store.manifest.settings.fusion).mean())))
    return sorted(figures, key=lambda row: -row[1])


def with_window(settings: SplitSettings, window: int) -> SplitSettings:
    """`settings` with another window; a stride equal to the window stays so."""
    stride = window if settings.stride == settings.window else min(settings.stride, window)
    return replace(settings, window=window, stride=stride)


def _asked(store: Store, labelled: Sequence[Labelled]) -> list[Asked]:
    settings = store.manifest.settings.lexical
    if labelled:
        own = [
            Asked(each.text, parse_query(each.text, settings=settings), _is_gold(each))
            for each in labelled
            if each.gold
        ]
        if not own:
            raise ValueError('none of the questions names what answers it; add "passages", "documents" or "source"')
        return own
    passages = [passage for _, passage in sampled(store, NUM_SAMPLED)]
    made = make_questions(passages, NUM_QUESTIONS, language=settings.language)
    if not made:
        raise ValueError(
            f"no questions can be made from the {len(store)} passages of this index; give some of your own"
        )
    return [Asked(each.text, parse_query(each.words, settings=settings), _holds(each.sentence)) for each in made]


def _is_gold(question: Labelled) -> Callable[[Passage], bool]:
    names = set(question.gold)
    return lambda passage: bool(names & {passage.id, passage.id.rpartition("#")[0], passage.source})


def _holds(sentence: str) -> Callable[[Passage], bool]:
    wanted = " ".join(sentence.split())
    return lambda passage: wanted in " ".join(passage.text.split())


def _is_enough(labelled: Sequence[Labelled]) -> bool:
    """Whether a floor can be fitted to the user's questions: enough with an answer, and enough without one or with its
    name, which can be held out."""
    num_present = sum(each.answerable for each in labelled)
    num_absent = sum(not each.answerable or bool(each.gold) for each in labelled)
    return min(num_present, num_absent) >= MIN_QUESTIONS


def _searched(
    store: Store, encoder: Encoder, asked: Sequence[Asked]
) -> Callable[[FusionSettings], NDArray[np.float64]]:
    """What gives for a setting the (n,) reciprocal ranks of the questions."""
    ranker = Ranker(store)
    vectors = encoder.encode([each.text for each in asked])
    words = [each.words for each in asked]

    def measure(fusion: FusionSettings) -> NDArray[np.float64]:
        found = ranker.rank(vectors, words, NUM_CANDIDATES, Filter(), fusion)
        return np.array([_reciprocal_rank(store, each, row) for each, row in zip(asked, found, strict=True)])

    return measure


def _reciprocal_rank(store: Store, asked: Asked, found: Candidates) -> float:
    places = zip(found.segments[:DEPTH].tolist(), found.ids[:DEPTH].tolist(), strict=True)
    for rank, place in enumerate(places, start=1):
        if asked.answers(store.passage(place)):
            return 1 / rank
    return 0.0


def _choices(used: FusionSettings) -> list[FusionSettings]:
    """What is measured beside the setting in use."""
    weighted = [
        replace(used, method="weighted", weight=weight, smoothing=smoothing)
        for weight in WEIGHTS
        for smoothing in SMOOTHING
    ]
    alone = [replace(used, method=method) for method in ("rrf", "dense", "lexical")]
    return [fusion for fusion in [*weighted, *alone] if fusion != used]


def _name(fusion: FusionSettings) -> str:
    if fusion.method != "weighted":
        return fusion.method
    return f"weighted {fusion.weight:g}, smoothing {fusion.smoothing:g}"
