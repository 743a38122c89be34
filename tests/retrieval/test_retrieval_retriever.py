"""Search: against brute force, with contexts, filters, repeated texts, a reranker, and an index that changes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from brute_force import ranked
from numpy.typing import NDArray

from retrieval.encoders import HashEncoder
from retrieval.index.manifest import IndexSettings
from retrieval.index.store import Store
from retrieval.passages import SplitSettings
from retrieval.retriever import Retriever
from retrieval.scoring.fusion import UNRELATED
from retrieval.search.filters import Filter
from retrieval.types import Hit, Searcher
from retrieval.writing.building import build_index
from retrieval.writing.removal import compact_index, delete_documents
from retrieval.writing.updating import update_index

ROOT = Path(__file__).parents[2]
QUERIES = ["when was the bridge opened", "number7 was built", "tower castle garden 1804", "nothing of the kind"]
SENTENCES = IndexSettings(split=SplitSettings(window=1, stride=1, min_chars=0))


@pytest.fixture(scope="module")
def index(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the corpus that no test of this file changes."""
    folder = tmp_path_factory.mktemp("shared") / "index"
    build_index([corpus], folder, "hash", calibrate=False)
    return folder


def write_lines(path: Path, records: Sequence[object]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


class Fake:
    """A reranker that likes long texts, and remembers what it read."""

    name = "fake"

    def __init__(self) -> None:
        self.read: list[str] = []

    def score(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        self.read = list(texts)
        return np.array([len(text) / 1000 for text in texts], dtype=np.float32)


# What is found ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["", "about the castle number4"])
@pytest.mark.parametrize("query", QUERIES)
def test_search_agrees_with_brute_force(index: Path, query: str, context: str) -> None:
    retriever: Searcher = Retriever.open(index)
    (hits,) = retriever.search([query], 5, [context])
    expected = ranked(index, query, context)
    scores = {row.passage.id: row.score for row in expected}
    np.testing.assert_allclose([hit.score for hit in hits], [row.score for row in expected[:5]], atol=2e-5)
    np.testing.assert_allclose([hit.score for hit in hits], [scores[name] for name in ids(hits)], atol=2e-5)
    assert [hit.passage for hit in hits] == [
        next(p for _, p in Store(index).live_passages() if p.id == name) for name in ids(hits)
    ]


def test_a_batch_equals_single_queries(index: Path) -> None:
    retriever = Retriever.open(index)
    batch = retriever.search([*QUERIES, "", "  "], 3, ["", "", "about the river", "", "", ""])
    for query, context, hits in zip(QUERIES, ["", "", "about the river", ""], batch, strict=False):
        (alone,) = retriever.search([query], 3, [context])
        assert ids(alone) == ids(hits)
        np.testing.assert_allclose([hit.score for hit in alone], [hit.score for hit in hits], atol=1e-6)
    assert batch[4:] == [[], []]


def test_a_context_moves_a_follow_up(index: Path) -> None:
    (hits,) = Retriever.open(index).search(["opened?"], 4, ["castle number4"])
    assert hits[0].passage.source.endswith("doc04.txt")
    assert Retriever.open(index).search(["opened?"], 4, [" "]) == Retriever.open(index).search(["opened?"], 4)


def test_of_a_long_context_the_end_is_encoded(index: Path) -> None:
    retriever = Retriever.open(index)
    long = "the garden number5 " * 1000 + "castle number4 " * 60
    vectors = retriever.query_vectors(["opened?", "opened?"], [long, long[-801:]])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert abs(float(np.linalg.norm(vectors[0])) - 1) < 1e-6


def test_k_larger_than_the_index_gives_everything_in_order(index: Path) -> None:
    retriever = Retriever.open(index)
    (hits,) = retriever.search(["bridge"], 10**6)
    assert len(set(ids(hits))) == len(hits) == retriever.manifest.num_passages
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_same_text_counts_once_whatever_its_title(tmp_path: Path) -> None:
    records = [
        {"id": str(i), "title": f"T{i}", "text": "The  SAME words." if i % 2 else "The same words."} for i in range(300)
    ]
    records.append({"id": "other", "title": "", "text": "Other words, further away."})
    build_index([write_lines(tmp_path / "c.jsonl", records)], tmp_path / "index", "hash", calibrate=False)
    (hits,) = Retriever.open(tmp_path / "index").search(["the same words"], 3)
    assert [hit.passage.text.lower().split()[0] for hit in hits] == ["the", "other"]


def test_a_filter_limits_the_documents(index: Path) -> None:
    retriever = Retriever.open(index, where=Filter.parse(["title>=Doc08", "title<Doc12"]))
    assert str(retriever) == "20 documents (20 passages)"
    (hits,) = retriever.search(["the castle number4"], 20)
    assert {Path(hit.passage.source).stem for hit in hits} == {"doc08", "doc09", "doc10", "doc11"}
    (none,) = Retriever.open(index, where=Filter.parse(["title=x"])).search(["the castle number4"], 20)
    assert none == []


def test_no_queries_and_no_documents(changing: tuple[Path, Path]) -> None:
    _, index = changing
    assert Retriever.open(index).search([], 3) == []
    delete_documents(index, ["*"])
    assert Retriever.open(index).search(["the castle"], 3) == [[]]


# Reranking ----------------------------------------------------------------------------------------------------------


def test_a_reranker_orders_the_best_and_gives_the_scores(tmp_path: Path) -> None:
    texts = [" ".join(["tower"] * (i % 7 + 1) + [f"w{j}" for j in range(i)]) for i in range(40)]
    records = [{"id": f"r{i}", "title": "A", "text": text} for i, text in enumerate(texts)]
    build_index([write_lines(tmp_path / "c.jsonl", records)], tmp_path / "index", "hash", calibrate=False)
    store, fake = Store(tmp_path / "index"), Fake()
    (plain,) = Retriever(store, HashEncoder()).search(["tower"], 30)
    retriever = Retriever(store, HashEncoder(), reranker=fake)
    (hits,) = retriever.search(["tower"], 5)
    assert fake.read == [f"A. {hit.passage.text}" for hit in plain]
    lengths = sorted((len(text) for text in fake.read), reverse=True)
    assert [hit.score for hit in hits] == pytest.approx([length / 1000 for length in lengths[:5]])
    assert [len(f"A. {hit.passage.text}") for hit in hits] == lengths[:5]
    assert {hit.confidence for hit in hits} == {plain[0].confidence}
    assert len(retriever.search(["tower"], 39)[0]) == 39


def test_copies_do_not_crowd_out_what_the_reranker_should_read(tmp_path: Path) -> None:
    records = [{"id": str(i), "title": "", "text": "tower castle"} for i in range(90)]
    records += [{"id": f"o{i}", "title": "", "text": f"tower number{i}"} for i in range(40)]
    build_index([write_lines(tmp_path / "c.jsonl", records)], tmp_path / "index", "hash", calibrate=False)
    fake = Fake()
    (hits,) = Retriever(Store(tmp_path / "index"), HashEncoder(), reranker=fake).search(["tower castle"], 5)
    assert len(hits) == 5
    assert len(set(fake.read)) == len(fake.read) == 30


# Confidence ---------------------------------------------------------------------------------------------------------


def test_without_a_calibration_the_confidence_is_the_best_cosine(corpus: Path, tmp_path: Path) -> None:
    build_index([corpus], index := tmp_path / "index", "hash", calibrate=False)
    retriever = Retriever.open(index)
    assert retriever.manifest.calibration is None
    for query, hits in zip(QUERIES, retriever.search(QUERIES, 3), strict=True):
        assert {hit.confidence for hit in hits} == {hits[0].confidence}
        assert hits[0].confidence == pytest.approx(max(row.dense for row in ranked(index, query)), abs=1e-6)


@pytest.mark.parametrize(("given", "expected"), [(None, 0.0), (0.25, 0.25)])
def test_the_floor_is_the_given_one(corpus: Path, tmp_path: Path, given: float | None, expected: float) -> None:
    build_index([corpus], tmp_path / "index", "hash", floor=given, calibrate=False)
    assert Retriever.open(tmp_path / "index").floor == expected


# An index that changes ----------------------------------------------------------------------------------------------


@pytest.fixture
def changing(tmp_path: Path, make_documents: Callable[[Path, int], Path]) -> tuple[Path, Path]:
    """A folder of 12 documents and its index."""
    folder = make_documents(tmp_path / "docs", 12)
    build_index([folder], tmp_path / "index", "hash", SENTENCES, calibrate=False)
    return folder, tmp_path / "index"


def sources(retriever: Retriever) -> set[str]:
    (hits,) = retriever.search(["the castle number4 was built"], 1000)
    return {Path(hit.passage.source).stem for hit in hits}


def test_a_search_sees_each_change_at_once(changing: tuple[Path, Path]) -> None:
    folder, index = changing
    retriever = Retriever.open(index, reach=2)
    held = {f"doc{i:02}" for i in range(12)}
    assert sources(retriever) == held
    delete_documents(index, ["*/doc04.txt"])
    assert sources(retriever) == held - {"doc04"}
    (folder / "new.txt").write_text("A castle that is new.")
    update_index(index)
    assert sources(retriever) == (held | {"new"}) - {"doc04"}
    compact_index(index)
    assert sources(retriever) == (held | {"new"}) - {"doc04"}
    assert str(retriever) == "12 documents (34 passages)"


def test_a_writer_may_replace_the_index_in_the_middle_of_a_search(tmp_path: Path) -> None:
    """The Faiss file is opened by the first search; by then its segment has been swept."""
    index, settings = tmp_path / "index", IndexSettings(factory="SQ8")
    records = [{"id": f"r{i}", "title": "", "text": f"castle number{i}"} for i in range(700)]
    corpus = write_lines(tmp_path / "c.jsonl", records)
    build_index([corpus], index, "hash", settings, calibrate=False)
    assert list(index.glob("*/ann.faiss"))

    class Rebuilding(HashEncoder):
        num = 0

        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if "castle" in texts and not self.num:
                self.num += 1
                write_lines(corpus, [*records, {"id": "late", "title": "", "text": "castle"}])
                build_index([corpus], index, "hash", settings, calibrate=False)
            return super().encode(texts)

    (hits,) = Retriever.open(index, Rebuilding()).search(["castle"], 20)
    assert hits[0].passage.text == "castle"


def test_another_encoder_in_a_rebuilt_index_is_noticed(changing: tuple[Path, Path]) -> None:
    class Other(HashEncoder):
        name = "other"

    folder, index = changing
    retriever = Retriever.open(index)
    build_index([folder], index, Other(64), calibrate=False)
    with pytest.raises(ValueError, match=r"built with encoder 'other' .* which encoder 'hash' .* is not"):
        retriever.search(["castle"], 1)


CHANGES = """
import sys
from retrieval.writing.updating import update_index
from retrieval.writing.removal import compact_index, delete_documents
from pathlib import Path
folder, index = map(Path, sys.argv[1:])
for i in range(12):
    (folder / "extra.txt").write_text(f"An extra castle, version {i}.")
    update_index(index, [folder / "extra.txt"])
    if i % 3 == 2:
        compact_index(index)
    if i % 4 == 3:
        delete_documents(index, [str(folder / "extra.txt")])
"""


def test_threads_search_while_another_process_writes(changing: tuple[Path, Path]) -> None:
    folder, index = changing
    retriever = Retriever.open(index)
    ended, failures, num_searches = threading.Event(), [], [0, 0, 0]

    def search(number: int) -> None:
        try:
            while not ended.is_set() or num_searches[number] < 3:
                (hits,) = retriever.search([f"castle number4 {num_searches[number]}"], 50)
                old = [hit for hit in hits if "extra" not in hit.passage.source]
                assert len(old) == 36, len(old)
                assert len(hits) - len(old) <= 1
                num_searches[number] += 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        subprocess.run([sys.executable, "-c", CHANGES, folder, index], cwd=ROOT, check=True, timeout=100)
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert min(num_searches) >= 3


# What cannot be had -------------------------------------------------------------------------------------------------


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


def test_a_reach_below_0_shows_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expand is -1; the number of neighbours must be at least 0"):
        Retriever.open(tmp_path / "no-index", reach=-1)


def test_another_encoder_is_refused_with_the_remedy(index: Path) -> None:
    class Other(HashEncoder):
        name = "other"

    for opened in (lambda: Retriever.open(index, Other(128)), lambda: Retriever(Store(index), Other(128))):
        with pytest.raises(ValueError, match=r"built with encoder 'hash' .* which encoder 'other' .* is not") as error:
            opened()
        assert f"python -m retrieval build DOCUMENTS --index {index} --encoder other" in str(error.value)
    assert Retriever.open(index, HashEncoder()).search(["bridge"], 1)[0]


def test_an_encoder_that_has_gone_is_named(corpus: Path, tmp_path: Path) -> None:
    class Gone(HashEncoder):
        name = "./gone"

    build_index([corpus], tmp_path / "index", Gone())
    with pytest.raises(ValueError, match=r"was built with encoder '\./gone': model directory '\./gone' does not exist"):
        Retriever.open(tmp_path / "index")


def test_a_query_is_encoded_once(index: Path) -> None:
    class Counting(HashEncoder):
        texts: list[str] = []  # noqa: RUF012

        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            self.texts.extend(text for text in texts if text not in UNRELATED)
            return super().encode(texts)

    retriever = Retriever.open(index, Counting())
    for _ in range(3):
        retriever.search(["the bridge", "the castle"], 1)
    assert sorted(Counting.texts) == ["the bridge", "the castle"]


def test_minilm_on_the_sample_documents(minilm: Path, tmp_path: Path) -> None:
    """The right document first, most answerable questions answered, many others refused."""
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
    kept = [hits[0].confidence >= retriever.floor for _, hits in answerable]
    refused = [hits[0].confidence < retriever.floor for hits in others]
    assert np.mean(right) >= 0.9
    assert np.mean(kept) >= 0.9
    assert np.mean(refused) >= 0.4
