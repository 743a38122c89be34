"""Candidates and their fused ranking, against brute force over all passages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brute_force import baseline, query_vector, ranked, weighted_terms

from retrieval.index.manifest import IndexSettings
from retrieval.index.store import Store
from retrieval.passages import SplitSettings
from retrieval.retriever import Retriever
from retrieval.scoring.fusion import FusionSettings
from retrieval.scoring.lexical import parse_query
from retrieval.search.filters import Filter
from retrieval.search.ranking import Candidates, Ranker
from retrieval.writing.building import build_index
from retrieval.writing.removal import delete_documents
from retrieval.writing.updating import update_index

QUERIES = ["when was the bridge opened", "number7 was built", "tower castle garden 1804", "nothing of the kind", "???"]
SENTENCES = IndexSettings(split=SplitSettings(window=1, stride=1, min_chars=0))
SETTINGS = [
    FusionSettings(),
    FusionSettings(weight=0.25, smoothing=0),
    FusionSettings(smoothing=2.5, similarity=0.2),
    FusionSettings("dense"),
    FusionSettings("lexical"),
    FusionSettings("rrf"),
]


@pytest.fixture(scope="module")
def two_segments(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """An index of 60 single-sentence passages in two segments."""
    folder = tmp_path_factory.mktemp("two")
    half, rest = folder / "half", folder / "rest"
    for number, file in enumerate(sorted(corpus.iterdir())):
        (target := half if number < 8 else rest).mkdir(exist_ok=True)
        (target / file.name).write_text(file.read_text())
    build_index([half], folder / "index", "hash", SENTENCES)
    update_index(folder / "index", [rest])
    assert len(Store(folder / "index").segments) == 2
    return folder / "index"


def search(
    index: Path, query: str, num: int = 100, fusion: FusionSettings | None = None, where: str = ""
) -> Candidates:
    store = Store(index)
    fusion = None if fusion is None else replace(fusion, baseline=store.manifest.settings.fusion.baseline)
    only = Filter.parse([where] if where else [])
    return Ranker(store).rank(query_vector(query)[None], [parse_query(query)], num, only, fusion)[0]


def ids_of(index: Path, candidates: Candidates) -> list[str]:
    store = Store(index)
    places = zip(candidates.segments.tolist(), candidates.ids.tolist(), strict=True)
    return [store.passage(place).id for place in places]


@pytest.mark.parametrize("fusion", SETTINGS, ids=str)
@pytest.mark.parametrize("query", QUERIES)
def test_all_scores_are_those_of_brute_force(two_segments: Path, query: str, fusion: FusionSettings) -> None:
    found, expected = search(two_segments, query, fusion=fusion), ranked(two_segments, query, fusion=fusion)
    rows = {row.passage.id: row for row in expected}
    names = ids_of(two_segments, found)
    assert sorted(names) == sorted(rows)
    for side in ("dense", "lexical"):
        np.testing.assert_allclose(getattr(found, side), [getattr(rows[name], side) for name in names], atol=1e-5)
    if fusion.method == "rrf":  # of passages with equal scores on one side either may be first
        assert found.scores.sum() == pytest.approx(sum(row.score for row in expected), abs=1e-4)
    else:
        np.testing.assert_allclose(found.scores, [rows[name].score for name in names], atol=2e-5)
    # The order is that of the scores, which holds beyond the smoothed ones too.
    assert np.all(np.diff(found.scores) <= 1e-6)


def test_the_baseline_of_the_encoder_is_in_the_index(two_segments: Path) -> None:
    assert Store(two_segments).manifest.settings.fusion.baseline == pytest.approx(baseline(), abs=1e-3)


@pytest.mark.parametrize("query", QUERIES)
def test_ranks_are_those_of_each_side_alone(two_segments: Path, query: str) -> None:
    store = Store(two_segments)
    ranker = Ranker(store)
    found = search(two_segments, query, num=7)
    near = ranker.dense.search(query_vector(query)[None], 7)[0]
    worded = ranker.lexical.search(parse_query(query), 7)
    for ranks, side in ((found.dense_ranks, near), (found.lexical_ranks, worded)):
        listed = {place: rank for rank, place in enumerate(zip(side.segments, side.ids, strict=True), start=1)}
        assert ranks.tolist() == [listed.get(place, 0) for place in zip(found.segments, found.ids, strict=True)]
    assert {*near.ids.tolist()} | {*worded.ids.tolist()} == {*found.ids.tolist()}


def test_what_one_side_alone_found_has_its_exact_score_on_the_other(two_segments: Path) -> None:
    found = search(two_segments, "number7 was built", num=3)
    rows = {row.passage.id: row for row in ranked(two_segments, "number7 was built")}
    assert (found.dense_ranks == 0).any()
    assert (found.lexical_ranks == 0).any()
    names = ids_of(two_segments, found)
    np.testing.assert_allclose(found.dense, [rows[name].dense for name in names], atol=1e-5)
    np.testing.assert_allclose(found.lexical, [rows[name].lexical for name in names], atol=1e-5)


def test_the_upper_bound_is_the_sum_of_weight_times_idf(two_segments: Path) -> None:
    query = "the bridge number4 number4 castle unheard"
    found, terms = search(two_segments, query), weighted_terms(query)
    df = {"number4": 3, "castl": 6, "bridg": 6}
    idf = {term: np.log(1 + (60 - num + 0.5) / (num + 0.5)) for term, num in df.items()}
    assert found.upper_bound == pytest.approx(sum(terms[term] * idf[term] for term in df), rel=1e-5)
    assert found.lexical.max() <= found.upper_bound


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("title=doc0?", {f"doc{i:02}" for i in range(10)}),
        ("source!=*doc1*", {f"doc{i:02}" for i in range(10)}),
        ("title=Doc19", {"doc19"}),
        ("title=nothing", set()),
    ],
)
def test_a_filter_hides_the_others_and_changes_no_score(two_segments: Path, where: str, expected: set[str]) -> None:
    found = search(two_segments, "the castle number4 was built", where=where, fusion=FusionSettings(smoothing=0))
    names = ids_of(two_segments, found)
    assert {Path(name.partition("#")[0]).stem for name in names} == expected
    assert len(names) == 3 * len(expected)
    rows = ranked(two_segments, "the castle number4 was built", fusion=FusionSettings(smoothing=0))
    kept = [row for row in rows if Path(row.passage.source).stem in expected]
    np.testing.assert_allclose(found.scores, [row.score for row in kept], atol=1e-5)


def test_numbers_in_metadata_filter(tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"r{i}", "title": "", "text": f"a tower {i}", "year": 1900 + i}) for i in range(9)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    build_index([tmp_path / "records.jsonl"], tmp_path / "index", "hash", calibrate=False)
    names = ids_of(tmp_path / "index", search(tmp_path / "index", "tower", where="year>=1906"))
    assert sorted(name.rpartition("#")[0][-2:] for name in names) == ["r6", "r7", "r8"]


def test_deleted_passages_are_no_candidates(corpus: Path, tmp_path: Path) -> None:
    build_index([corpus], tmp_path / "index", "hash", SENTENCES, calibrate=False)
    delete_documents(tmp_path / "index", ["*/doc04.txt", "*/doc1?.txt"])
    names = ids_of(tmp_path / "index", search(tmp_path / "index", "castle number4"))
    assert {Path(name.partition("#")[0]).stem for name in names} == {f"doc0{i}" for i in range(10) if i != 4}


@pytest.mark.parametrize("fusion", SETTINGS, ids=str)
def test_a_batch_is_its_queries_alone(two_segments: Path, fusion: FusionSettings) -> None:
    store = Store(two_segments)
    ranker = Ranker(store)
    vectors = np.stack([query_vector(query) for query in QUERIES])
    words = [parse_query(query) for query in QUERIES]
    together = ranker.rank(vectors, words, 20, Filter(), fusion)
    for i, found in enumerate(together):
        (alone,) = ranker.rank(vectors[i : i + 1], words[i : i + 1], 20, Filter(), fusion)
        assert places(alone) == places(found)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-6)


def places(candidates: Candidates) -> Sequence[tuple[int, int]]:
    return list(zip(candidates.segments.tolist(), candidates.ids.tolist(), strict=True))


def test_without_keeps_the_order_of_the_others(two_segments: Path) -> None:
    found = search(two_segments, "the castle")
    rows = np.arange(len(found)) % 3 == 1
    left = found.without(rows)
    assert places(left) == [place for i, place in enumerate(places(found)) if i % 3 != 1]
    assert left.scores.tolist() == found.scores[~rows].tolist()
    assert left.upper_bound == found.upper_bound


@pytest.mark.usefixtures("minilm")
def test_of_passages_that_differ_in_a_number_the_one_asked_for_comes_first(
    tmp_path: Path, make_documents: Callable[[Path, int], Path]
) -> None:
    build_index([make_documents(tmp_path / "documents", 40)], tmp_path / "index", "minilm", SENTENCES, calibrate=False)
    queries = [f"when was number{i} built?" for i in range(40)]
    found = Retriever.open(tmp_path / "index").search(queries, 1)
    assert [Path(hits[0].passage.source).name for hits in found] == [f"doc{i:02}.txt" for i in range(40)]
