"""Why a search finds what it finds; and what search, explain and info print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from brute_force import ranked
from click.testing import CliRunner, Result

from retrieval.build import cli
from retrieval.index.manifest import IndexSettings
from retrieval.measuring.explaining import Explanation, explain
from retrieval.passages import SplitSettings
from retrieval.retriever import Retriever
from retrieval.writing.building import build_index
from retrieval.writing.removal import delete_documents

QUERIES = ["when was the bridge opened", "number7 was built", "tower castle garden 1804", "???"]


@pytest.fixture(scope="module")
def index(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty passages, with no calibration and no floor."""
    folder = tmp_path_factory.mktemp("explained") / "index"
    build_index([corpus], folder, "hash", calibrate=False)
    return folder


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three texts, the best of which is there four times."""
    folder = tmp_path_factory.mktemp("copies")
    texts = ["the old tower"] * 4 + ["the old tower stands", "a tower and a lot more words"]
    records = [json.dumps({"id": f"r{i}", "title": "", "text": text}) for i, text in enumerate(texts)]
    (folder / "c.jsonl").write_text("\n".join(records))
    build_index([folder / "c.jsonl"], folder / "index", "hash", calibrate=False)
    return folder / "index"


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def decisions(explanation: Explanation) -> list[str]:
    return [row.decision for row in explanation.rows]


# explain ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["", "the castle number4"])
@pytest.mark.parametrize("query", QUERIES)
def test_each_rank_and_score_is_that_of_its_side_alone(index: Path, query: str, context: str) -> None:
    expected = ranked(index, query, context)
    rows = {row.passage.location: row for row in expected}
    explanation = explain(Retriever.open(index), query, 3, near=20, context=context)
    assert len(explanation.rows) == 20
    for row in explanation.rows:
        own = rows[row.location]
        assert row.title == own.passage.title
        assert (row.dense, row.lexical, row.score) == pytest.approx((own.dense, own.lexical, own.score), abs=2e-5)
        for side, rank in (("dense", row.dense_rank), ("lexical", row.lexical_rank)):
            value = getattr(own, side)
            if side == "lexical" and value == 0:
                assert rank == 0
                continue
            num_better = sum(getattr(other, side) > value + 1e-6 for other in expected)
            num_equal = sum(abs(getattr(other, side) - value) <= 1e-6 for other in expected)
            assert num_better < rank <= num_better + num_equal
    scores = [row.score for row in explanation.rows]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(("k", "near"), [(1, 0), (1, 4), (5, 0), (5, 3), (20, 5), (50, 5)])
def test_k_are_kept_and_so_many_near_misses_follow(index: Path, k: int, near: int) -> None:
    retriever = Retriever.open(index)
    explanation = explain(retriever, "the castle number4", k, near)
    num_kept = min(k, 20)
    misses = [f"cut: not among the best {k}"] * min(near, 20 - num_kept)
    assert decisions(explanation) == ["kept"] * num_kept + misses
    hits = retriever.search(["the castle number4"], k)[0]
    assert [row.location for row in explanation.rows[:num_kept]] == [hit.passage.location for hit in hits]
    assert [row.score for row in explanation.rows[:num_kept]] == [hit.score for hit in hits]
    assert explanation.confidence == hits[0].confidence


@pytest.mark.parametrize("near", [0, 1, 5])
def test_copies_are_cut_and_cost_nothing(copies: Path, near: int) -> None:
    explanation = explain(Retriever.open(copies), "the old tower", 2, near)
    same, miss = "cut: the same text as 1", "cut: not among the best 2"
    assert decisions(explanation) == ["kept", same, same, same, "kept", *[miss] * min(near, 1)]


def test_neighbours_are_cut_where_they_are_shown_with_a_hit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A castle with a tower. A castle with a big tower. A castle with a red tower.")
    (tmp_path / "b.txt").write_text("A tower on its own.")
    settings = IndexSettings(split=SplitSettings(window=1, stride=1, min_chars=0))
    build_index([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "index", "hash", settings, calibrate=False)
    explanation = explain(Retriever.open(tmp_path / "index", reach=2), "a castle with a tower", 2)
    neighbour = "cut: shown with 1, its neighbour"
    assert sorted(decisions(explanation)) == [neighbour, neighbour, "kept", "kept"]
    assert explanation.rows[0].decision == "kept"


def test_the_verdict_compares_confidence_and_floor(corpus: Path, index: Path, tmp_path: Path) -> None:
    assert "reaches the floor, 0.00: a bot answers" in explain(Retriever.open(index), "castle", 1).verdict
    build_index([corpus], tmp_path / "index", "hash", floor=0.99)
    explanation = explain(Retriever.open(tmp_path / "index"), "unheard words", 1)
    assert explanation.floor == 0.99
    assert "is below the floor, 0.99" in explanation.verdict


@pytest.mark.parametrize(
    ("query", "k", "near", "message"),
    [
        (" ", 1, 1, "the query is empty"),
        ("a", 0, 1, "k is 0; it must be at least 1"),
        ("a", 1, -1, "near is -1; the number of near misses must be at least 0"),
    ],
)
def test_arguments_that_make_no_sense(index: Path, query: str, k: int, near: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(Retriever.open(index), query, k, near)


def test_an_index_without_documents_explains_nothing(corpus: Path, tmp_path: Path) -> None:
    build_index([corpus], tmp_path / "index", "hash", calibrate=False)
    delete_documents(tmp_path / "index", ["*"])
    explanation = explain(Retriever.open(tmp_path / "index"), "castle", 3)
    assert (explanation.rows, explanation.confidence) == ((), 0.0)


# The commands -------------------------------------------------------------------------------------------------------


def test_explain_prints_words_a_table_and_the_verdict(index: Path) -> None:
    shown = run("explain", "the", "castle", "number4", "--index", index, "-k", 2, "--near", 3)
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("words: castl ")
    assert "number4" in lines[0]
    rows = [line for line in lines if line[:2].strip().isdigit()]
    assert [int(line[:2]) for line in rows] == [1, 2, 3, 4, 5]
    assert "(#1)" in rows[0]
    assert rows[0].endswith("/doc04.txt:1")
    assert [line.strip() for line in lines if line.startswith(" " * 40)] == ["kept"] * 2 + [
        "cut: not among the best 2"
    ] * 3
    assert lines[-1].startswith("confidence 0.")


def test_explain_json_is_the_explanation(index: Path) -> None:
    shown = run(
        "explain", "castle number4", "--index", index, "--json", "--context", "the garden", "--where", "title!=Doc04"
    )
    content = json.loads(shown.stdout)
    assert set(content) == {"words", "confidence", "floor", "verdict", "rows"}
    assert len(content["rows"]) == 10
    assert all("doc04" not in row["location"] for row in content["rows"])
    assert "garden" in content["words"]


def test_search_prints_rank_score_title_place_and_text(index: Path) -> None:
    found = run("search", "the", "castle", "number4", "--index", index, "-k", 2)
    assert found.exit_code == 0, found.stderr
    first = found.stdout.split("\n")
    assert first[0].startswith("1. 0.")
    assert first[0].endswith("  Doc04")
    assert first[1].endswith("/doc04.txt:1")
    assert first[2] == "   The castle number4 was planned in 1804."
    assert "\n2. 0." in found.stdout
    assert found.stderr == ""


def test_search_json_has_scores_and_passages(index: Path) -> None:
    found = json.loads(run("search", "castle number4", "--index", index, "-k", 2, "--json").stdout)
    (hits,) = Retriever.open(index).search(["castle number4"], 2)
    assert [each["rank"] for each in found] == [1, 2]
    assert [each["score"] for each in found] == [hit.score for hit in hits]
    assert [each["confidence"] for each in found] == [hit.confidence for hit in hits]
    assert (found[0]["title"], found[0]["start"], found[0]["end"], found[0]["unit"]) == ("Doc04", 1, 5, "line")


def test_flags_of_search_change_what_is_found(index: Path) -> None:
    def first(*flags: str | int) -> str:
        (hit,) = json.loads(run("search", "opened?", "--index", index, "-k", 1, "--json", *flags).stdout)
        return Path(hit["source"]).stem

    assert first("--context", "castle number4") == "doc04"
    assert first("--where", "title=Doc07") == "doc07"
    assert first("--where", "title>=Doc07", "--where", "title<Doc08", "--expand", 1) == "doc07"


def test_expand_shows_neighbours(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A tower is here. A tower is there. A tower is old.")
    run("build", tmp_path / "a.txt", "--index", tmp_path / "i", "--encoder", "hash", "--window", 1, "--stride", 1)
    (one,) = json.loads(run("search", "tower", "--index", tmp_path / "i", "--expand", 2, "--json").stdout)
    assert one["text"] == "A tower is here. A tower is there. A tower is old."


def test_a_search_below_the_floor_says_so(corpus: Path, tmp_path: Path) -> None:
    build_index([corpus], tmp_path / "index", "hash", floor=0.9)
    found = run("search", "unheard", "words", "--index", tmp_path / "index")
    assert found.exit_code == 0
    assert "is below the floor, 0.90: the documents may not answer this" in found.stderr


def test_a_search_that_finds_nothing_says_so(index: Path) -> None:
    found = run("search", "castle", "--index", index, "--where", "title=x")
    assert (found.exit_code, found.stdout, found.stderr) == (0, "", "nothing was found\n")
    assert json.loads(run("search", "castle", "--index", index, "--where", "title=x", "--json").stdout) == []


def test_info_shows_what_an_index_holds(corpus: Path, index: Path) -> None:
    shown = run("info", "--index", index).stdout
    for part in (
        "documents  20",
        "passages   20",
        "encoder    hash (256 dimensions)",
        "window 3",
        "weight 0.58",
        "Flat",
    ):
        assert part in shown
    assert "deleted" not in shown
    content = json.loads(run("info", "--index", index, "--json").stdout)
    assert (content["num_documents"], content["sources"]) == (20, [str(corpus)])
    listed = run("info", "--index", index, "--documents").stdout.splitlines()
    assert len(listed) == 20
    assert listed[4].split() == ["1", f"{corpus}/doc04.txt", "Doc04"]
    documents = run("info", "--index", index, "--documents", "--json").stdout.splitlines()
    assert [json.loads(line)["title"] for line in documents] == [f"Doc{i:02}" for i in range(20)]


def test_info_leaves_out_what_is_deleted(corpus: Path, tmp_path: Path) -> None:
    build_index([corpus], tmp_path / "index", "hash", calibrate=False)
    delete_documents(tmp_path / "index", ["*/doc1?.txt"])
    assert "deleted    10 passages, until compact clears them away" in run("info", "--index", tmp_path / "index").stdout
    assert len(run("info", "--index", tmp_path / "index", "--documents").stdout.splitlines()) == 10
