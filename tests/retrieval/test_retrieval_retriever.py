"""Search: against NumPy, with contexts, repeated texts, and every way to ask for what cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from retrieval.build import build_index
from retrieval.encoders import HashEncoder
from retrieval.passages import embedding_text
from retrieval.retriever import Retriever
from retrieval.store import Store
from retrieval.types import Searcher

ROOT = Path(__file__).parents[2]
QUERIES = ["when was the bridge opened", "number7 was built", "tower castle garden 1804", "nothing of the kind"]


def brute_force(index: Path, vectors: np.ndarray) -> list[list[float]]:  # type: ignore[type-arg]
    """The cosines of all passages, best first."""
    store = Store(index)
    texts = [embedding_text(store.passage(i)) for i in range(len(store))]
    return np.sort(vectors @ HashEncoder().encode(texts).T, axis=1)[:, ::-1].tolist()  # type: ignore[no-any-return]


def test_search_agrees_with_numpy(index: Path) -> None:
    retriever: Searcher = Retriever.open(index)
    queries = HashEncoder().encode(QUERIES)
    best = brute_force(index, queries)
    for query, hits, scores in zip(queries, retriever.search(QUERIES, 5), best, strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], scores[:5], atol=1e-6)
        own = HashEncoder().encode([embedding_text(hit.passage) for hit in hits])  # each score is that of its text
        np.testing.assert_allclose([hit.score for hit in hits], own @ query, atol=1e-6)


def test_a_batch_equals_single_queries(index: Path) -> None:
    retriever = Retriever.open(index)
    batch = retriever.search([*QUERIES, "", "  "], 3, ["", "", "about the river", "", "", ""])
    for query, context, hits in zip(QUERIES, ["", "", "about the river", ""], batch, strict=False):
        (alone,) = retriever.search([query], 3, [context])
        np.testing.assert_allclose([hit.score for hit in alone], [hit.score for hit in hits], atol=1e-6)
    assert batch[4:] == [[], []]


def test_a_context_moves_the_query_as_the_formula_says(index: Path) -> None:
    query, context = "opened?", "castle number4"
    own, whole = HashEncoder().encode([query, f"{context}\n{query}"])
    mixed = 0.7 * own + 0.3 * whole
    mixed /= np.linalg.norm(mixed)
    (hits,) = Retriever.open(index).search([query], 4, [context])
    np.testing.assert_allclose([hit.score for hit in hits], brute_force(index, mixed[None])[0][:4], atol=1e-6)
    assert hits[0].passage.source.endswith("doc04.txt")
    assert Retriever.open(index).search([query], 4, [" "]) == Retriever.open(index).search([query], 4)


def test_of_a_long_context_the_end_counts(index: Path) -> None:
    retriever = Retriever.open(index)
    long = "the garden number5 " * 1000 + "castle number4 " * 60
    assert retriever.search(["opened?"], 4, [long]) == retriever.search(["opened?"], 4, [long[-801:]])
    assert retriever.search(["opened?"], 1, [long])[0][0].passage.source.endswith("doc04.txt")


def test_k_larger_than_the_index_gives_everything_in_order(index: Path) -> None:
    retriever = Retriever.open(index)
    (hits,) = retriever.search(["bridge"], 10**6)
    assert len(hits) == retriever.manifest.num_passages
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_same_text_counts_once(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(40):
        (folder / f"copy{i}.txt").write_text("The  SAME words." if i % 2 else "The same words.")
    (folder / "other.txt").write_text("Other words, further away.")
    build_index([folder], tmp_path / "index", "hash")
    (hits,) = Retriever.open(tmp_path / "index").search(["the same words"], 3)
    assert [hit.passage.text.lower().split()[0] for hit in hits] == ["the", "other"]


def test_floor(corpus: Path, tmp_path: Path) -> None:
    for given, expected in ((None, 0.0), (0.25, 0.25)):
        build_index([corpus], tmp_path / "index", "hash", floor=given)
        assert Retriever.open(tmp_path / "index").floor == expected


@pytest.mark.parametrize(
    ("queries", "k", "contexts", "message"),
    [
        (["a"], 0, None, "k is 0; it must be at least 1"),
        (["a"], 1, [], "there are 0 contexts for 1 queries"),
        ("abc", 1, None, "queries must be a list of texts"),
    ],
)
def test_arguments_that_make_no_sense(
    index: Path, queries: list[str], k: int, contexts: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Retriever.open(index).search(queries, k, contexts)


def test_no_queries(index: Path) -> None:
    assert Retriever.open(index).search([], 3) == []


def test_another_encoder_is_refused_with_the_remedy(index: Path) -> None:
    class Other(HashEncoder):
        name = "other"

    with pytest.raises(ValueError, match=r"built with encoder 'hash' .* which encoder 'other' .* is not") as error:
        Retriever.open(index, Other(128))
    assert f"python -m retrieval build DOCUMENTS --index {index} --encoder other" in str(error.value)
    assert Retriever.open(index, HashEncoder()).search(["bridge"], 1)[0]


def test_an_encoder_that_has_gone_is_named(corpus: Path, tmp_path: Path) -> None:
    class Gone(HashEncoder):
        name = "./gone"

    build_index([corpus], tmp_path / "index", Gone())
    with pytest.raises(ValueError, match=r"was built with encoder '\./gone': model directory '\./gone' does not exist"):
        Retriever.open(tmp_path / "index")


def test_minilm_on_the_sample_documents(minilm: Path, tmp_path: Path) -> None:
    """The quality promised in `encoders.FLOORS`, on questions with known documents and on some that have no answer."""
    documents, questions = ROOT / "docs" / "sample", ROOT / "tests" / "data" / "sample_questions.jsonl"
    if not (documents.is_dir() and questions.is_file()):
        pytest.skip("docs/sample is not there")
    build_index([documents], tmp_path / "index", "minilm", device="cpu")
    retriever = Retriever.open(tmp_path / "index", device="cpu")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    found = list(zip(rows, retriever.search([row["question"] for row in rows], 3), strict=True))
    answerable = [(row, hits) for row, hits in found if row["source"]]
    others = [hits for row, hits in found if not row["source"]]
    right = [hits[0].passage.source.endswith(row["source"]) for row, hits in answerable]
    kept = [hits[0].score >= retriever.floor for _, hits in answerable]
    refused = [hits[0].score < retriever.floor for hits in others]
    assert np.mean(right) >= 0.9
    assert np.mean(kept) >= 0.95
    assert np.mean(refused) >= 0.4
