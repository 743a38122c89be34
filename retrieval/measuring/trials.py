"""A whole index measured on a test collection: each way of ranking on the same passages and questions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from retrieval.encoders import DEFAULT_ENCODER, as_encoder
from retrieval.index.encoder import encoder_of
from retrieval.index.store import Store
from retrieval.measuring.evaluate import Beir, measure
from retrieval.scoring.lexical import parse_query
from retrieval.search.filters import Filter
from retrieval.search.ranking import Ranker
from retrieval.types import Encoder
from retrieval.writing.building import build_index
from retrieval.writing.runners import OnProgress

NUM_CANDIDATES = 200  # passages; of documents with several, one counts
QUERIES_AT_A_TIME = 256

Run = dict[str, list[tuple[str, float]]]


@dataclass(frozen=True)
class Result:
    """What one way of ranking found, by question, and its figures by measure; higher is better."""

    run: Run
    figures: Mapping[str, float]


def evaluate_index(
    data: Beir,
    index: Path | None = None,
    encoder: str | Encoder | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Result]:
    """By name of the ranking ('words', 'vectors', 'rrf', and 'in use', the index's own) what it found and its figures.

    Without `index` the corpus is indexed in a temporary folder. A document's score is that of its best passage.
    Raises ValueError for an index whose documents are not those of the data set.
    """
    with tempfile.TemporaryDirectory(prefix="parley-evaluate-") as scratch:
        if index is None:
            opened = as_encoder(encoder, DEFAULT_ENCODER, device)
            index = Path(scratch) / "index"
            build_index([data.corpus], index, opened, calibrate=False, on_progress=on_progress)
            store = Store(index)
        else:
            store = Store(index)
            opened = encoder_of(store.manifest, index, encoder, device)
        return _measured(data, store, opened)


def _measured(data: Beir, store: Store, encoder: Encoder) -> dict[str, Result]:
    used = store.manifest.settings.fusion
    ways = {
        "words": replace(used, method="lexical"),
        "vectors": replace(used, method="dense"),
        "rrf": replace(used, method="rrf"),
        "in use": used,
    }
    ranker = Ranker(store)
    asked = {name: text for name, text in data.queries.items() if name in data.qrels}
    runs: dict[str, Run] = {way: {} for way in ways}
    names = list(asked)
    for start in range(0, len(names), QUERIES_AT_A_TIME):
        batch = names[start : start + QUERIES_AT_A_TIME]
        vectors = encoder.encode([asked[name] for name in batch])
        words = [parse_query(asked[name], settings=store.manifest.settings.lexical) for name in batch]
        for way, fusion in ways.items():
            found = ranker.rank(vectors, words, NUM_CANDIDATES, Filter(), fusion)
            for name, candidates in zip(batch, found, strict=True):
                best: dict[str, float] = {}
                rows = zip(
                    candidates.segments.tolist(), candidates.ids.tolist(), candidates.scores.tolist(), strict=True
                )
                for number, i, score in rows:
                    segment = store.segments[number]
                    document = segment.document(segment.document_number(i))
                    best.setdefault(document.id.removeprefix(f"{document.source}#"), score)
                runs[way][name] = list(best.items())
    known = {document for judged in data.qrels.values() for document in judged}
    if not any(document in known for run in runs["in use"].values() for document, _ in run):
        raise ValueError(f"index '{store.index}' holds none of the documents that {data.corpus.parent} judges")
    return {way: Result(run, measure(data.qrels, run)) for way, run in runs.items()}
