"""Measures by hand, run files there and back, and collections that are broken in every way."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.measuring.evaluate import (
    MEASURES,
    best_per_document,
    compare,
    count_unknown_documents,
    measure,
    measure_each,
    read_beir,
    read_trec_run,
    write_trec_run,
)

DATA = Path(__file__).parents[4] / "shared" / "data" / "retrieval"


def _collection(folder: Path, qrels: str = "query-id\tcorpus-id\tscore\nq1\td1\t1\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "qrels").mkdir(exist_ok=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": f"text {i}"} for i in range(3)]
    queries = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def test_measures_by_hand() -> None:
    pytest.importorskip("ir_measures")
    qrels = {"q": {"a": 3, "b": 1, "c": 0, "d": 2}}
    run = {"q": [("c", 0.9), ("a", 0.8), ("x", 0.7), ("b", 0.6)]}
    # The gain of a document is its grade; at rank r it counts 1 / log2(r + 1).
    dcg = 3 / math.log2(3) + 1 / math.log2(5)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    expected = {"nDCG@10": dcg / ideal, "Recall@10": 2 / 3, "Recall@100": 2 / 3, "MRR@10": 1 / 2}
    assert measure(qrels, run) == pytest.approx(expected, abs=1e-6)


def test_recall_and_mrr_look_no_further_than_they_say() -> None:
    pytest.importorskip("ir_measures")
    run = {"q": [(f"d{i:03}", 200.0 - i) for i in range(120)]}
    values = measure({"q": {"d010": 1, "d099": 1, "d100": 1, "d003": 1}}, run)
    assert values["Recall@10"] == pytest.approx(1 / 4)
    assert values["Recall@100"] == pytest.approx(3 / 4)
    assert values["MRR@10"] == pytest.approx(1 / 4)
    assert measure({"q": {"d010": 1}}, run)["MRR@10"] == 0


def test_every_judged_query_counts_and_no_other() -> None:
    pytest.importorskip("ir_measures")
    qrels = {"found": {"a": 1}, "missing": {"a": 1}, "empty": {"a": 1}, "unjudged": {"a": 0}}
    run = {"found": [("a", 1.0)], "empty": [], "unjudged": [("a", 1.0)], "unknown": [("a", 1.0)]}
    each = measure_each(qrels, run)
    assert sorted(each) == ["empty", "found", "missing"]
    assert measure(qrels, run)["nDCG@10"] == pytest.approx(1 / 3)


def test_ties_do_not_depend_on_the_order_given() -> None:
    pytest.importorskip("ir_measures")
    qrels = {"q": {"b": 1}}
    hits = [("a", 1.0), ("b", 1.0), ("c", 1.0)]
    values = {measure(qrels, {"q": order})["MRR@10"] for order in (hits, hits[::-1], [hits[1], hits[0], hits[2]])}
    assert values == {0.5}  # by falling id: c, b, a


def test_scores_that_differ_less_than_single_precision_are_told_apart() -> None:
    pytest.importorskip("ir_measures")
    assert measure({"q": {"a": 1}}, {"q": [("b", 1.0), ("a", 1.0 + 1e-12)]})["MRR@10"] == 1.0


def test_a_run_that_is_broken() -> None:
    pytest.importorskip("ir_measures")
    with pytest.raises(ValueError, match="a document twice; use best_per_document"):
        measure({"q": {"a": 1}}, {"q": [("a", 1.0), ("a", 0.5)]})
    with pytest.raises(ValueError, match="the score of 'a' is not a finite number"):
        measure({"q": {"a": 1}}, {"q": [("a", math.nan)]})
    with pytest.raises(ValueError, match="nothing to measure"):
        measure({"q": {"a": 0}}, {})


def test_a_document_scores_as_its_best_passage() -> None:
    hits = [("a", 0.2), ("b", 0.5), ("a", 0.7), ("b", 0.1), ("c", 0.5)]
    assert best_per_document(hits) == [("a", 0.7), ("c", 0.5), ("b", 0.5)]
    assert best_per_document([]) == []


def test_comparing_runs() -> None:
    pytest.importorskip("ir_measures")
    qrels = {f"q{i}": {"a": 1} for i in range(12)}
    worse = {query: [("b", 2.0), ("a", 1.0)] for query in qrels}
    better = {query: [("a", 2.0), ("b", 1.0)] for query in qrels}
    found = compare(qrels, worse, better, "MRR@10")
    assert found.difference == pytest.approx(0.5)
    assert found.num_queries == 12
    # Of 2^12 ways to swap, only the two with all signs equal differ as much.
    assert found.p_value == pytest.approx(2 / 2**12, abs=0.002)
    assert compare(qrels, better, worse, "MRR@10").difference == pytest.approx(-0.5)
    same = compare(qrels, better, better)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert compare(qrels, worse, better, seed=3) == compare(qrels, worse, better, seed=3)
    with pytest.raises(ValueError, match="unknown measure 'F1'; known: nDCG@10"):
        compare(qrels, worse, better, "F1")


_ids = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(st.dictionaries(_ids, st.dictionaries(_ids, st.floats(allow_nan=False, allow_infinity=False)), max_size=4))
def test_a_run_survives_its_file(tmp_path_factory: pytest.TempPathFactory, run: dict[str, dict[str, float]]) -> None:
    path = tmp_path_factory.mktemp("run") / "run.txt"
    write_trec_run(path, {query: list(scores.items()) for query, scores in run.items()})
    assert {query: dict(hits) for query, hits in read_trec_run(path).items()} == {q: s for q, s in run.items() if s}


def test_the_file_of_a_run(tmp_path: Path) -> None:
    write_trec_run(tmp_path / "run", {"q2": [("d", 0.5)], "q1": [("a", 0.25), ("b", 1.0)]}, tag="hybrid")
    assert (tmp_path / "run").read_text().splitlines() == [
        "q1 Q0 b 1 1.0 hybrid",
        "q1 Q0 a 2 0.25 hybrid",
        "q2 Q0 d 1 0.5 hybrid",
    ]


@pytest.mark.parametrize(("query", "document", "tag"), [("a b", "d", "t"), ("q", "", "t"), ("q", "d", "my run")])
def test_ids_that_a_run_file_cannot_hold(tmp_path: Path, query: str, document: str, tag: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a TREC run"):
        write_trec_run(tmp_path / "run", {query: [(document, 1.0)]}, tag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1\n", ":1: not a line of a TREC run: it has 4 columns, not 6"),
        ("q Q0 d 1 0.5 t\nq Q0 d 2 0.4 t\n", ":2: document 'd' is there twice"),
        ("q Q0 d 1 high t\n", ":1: 'high' is not a finite number"),
        ("q Q0 d 1 nan t\n", ":1: 'nan' is not a finite number"),
    ],
)
def test_run_files_that_are_broken(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trec_run(tmp_path / "run")


def test_reading_a_collection(tmp_path: Path) -> None:
    qrels = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td9\t2\nq2\td1\t0\nq7\td1\t1\nq7\td2\t1\n"
    beir = read_beir(_collection(tmp_path / "c", qrels))
    assert beir.queries == {"q1": "one"}
    assert beir.qrels == {"q1": {"d1": 1, "d9": 2}}
    assert (beir.num_unjudged, beir.num_unknown) == (1, 2)
    assert beir.corpus == tmp_path / "c" / "corpus.jsonl"
    assert count_unknown_documents(beir) == 1


def test_a_compressed_collection_without_a_header(tmp_path: Path) -> None:
    folder = _collection(tmp_path / "c", "q1\td1\t1\n")
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    beir = read_beir(folder)
    assert beir.qrels == {"q1": {"d1": 1}}
    assert count_unknown_documents(beir) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("queries.jsonl", None, "is no BEIR collection: it has no queries.jsonl or queries.jsonl.gz"),
        ("corpus.jsonl", None, "is no BEIR collection: it has no corpus.jsonl"),
        ("qrels/test.tsv", None, "splits that are there: none"),
        ("queries.jsonl", b"{", 'queries.jsonl:1: not a JSON object with "_id" and "text"'),
        ("queries.jsonl", b"[]\n", 'queries.jsonl:1: not a JSON object with "_id" and "text"'),
        ("queries.jsonl", b'{"_id": 1, "text": "a"}\n', "must be texts"),
        ("queries.jsonl", b'{"_id": "q1", "text": "a"}\n' * 2, ":2: the id 'q1' is there twice"),
        ("queries.jsonl", b"\xff\xff", "queries.jsonl: it is not UTF-8"),
        ("qrels/test.tsv", b"q1 d1 1\n", "test.tsv:1: 1 columns"),
        ("qrels/test.tsv", b"q1\td1\tgood\n", "test.tsv:1: 'good' is not a finite number"),
        ("qrels/test.tsv", b"q1\td1\t0\n", "has a relevant document in qrels/test.tsv; are the ids the same?"),
    ],
)
def test_collections_that_are_broken(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    folder = _collection(tmp_path / "c")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_beir(folder)


def test_a_truncated_archive(tmp_path: Path) -> None:
    folder = _collection(tmp_path / "c")
    (folder / "queries.jsonl.gz").write_bytes(gzip.compress((folder / "queries.jsonl").read_bytes())[:-9])
    (folder / "queries.jsonl").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*queries\.jsonl\.gz"):
        read_beir(folder)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dev\.tsv is missing; splits that are there: test"):
        read_beir(_collection(tmp_path / "c"), "dev")


def test_a_real_collection() -> None:
    if not (DATA / "nq").is_dir():
        pytest.skip("needs the retrieval collections in ../shared/data, which are not there")
    beir = read_beir(DATA / "nq")
    assert len(beir.queries) == 1327
    assert beir.num_unknown == 0
    pytest.importorskip("ir_measures")
    ideal = {query: [(document, 1.0) for document in grades] for query, grades in beir.qrels.items()}
    assert measure(beir.qrels, ideal) == pytest.approx(dict.fromkeys(MEASURES, 1.0))
