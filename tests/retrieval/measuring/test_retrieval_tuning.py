"""Tuning and the floor: figures against brute force, when a setting changes, and what an index remembers of it."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from brute_force import bm25, query_vector, ranked, weighted_terms
from click.testing import CliRunner, Result

from retrieval.build import cli
from retrieval.confidence.abstention import fit_floor
from retrieval.confidence.questions import Labelled
from retrieval.encoders import HashEncoder
from retrieval.index.manifest import IndexSettings, Manifest, read_manifest
from retrieval.index.store import Store
from retrieval.measuring.tuning import best_window, tune_index, with_window
from retrieval.passages import SplitSettings, embedding_text
from retrieval.retriever import Retriever
from retrieval.scoring.fusion import FusionSettings, Method
from retrieval.scoring.tokens import Tokenizer
from retrieval.writing.building import build_index
from retrieval.writing.removal import compact_index, delete_documents
from retrieval.writing.updating import update_index

COMMON = [f"{first}{second}" for first in ("ba", "ko", "mi", "tu") for second in ("lan", "der", "sor", "pim")]
NUM = 40


def write_corpus(folder: Path) -> list[list[str]]:
    """Forty records, each of eight of the sixteen COMMON words and a code of its own. Returns their words."""
    rng = random.Random(1)
    words = [rng.sample(COMMON, 8) for _ in range(NUM)]
    records = [{"id": f"r{i}", "title": "", "text": " ".join([f"code{i}", *own])} for i, own in enumerate(words)]
    (folder / "c.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return words


def by_code(words: list[list[str]]) -> list[Labelled]:
    """The code of one record with the words of the next: for BM25 the code counts, for counts of words it is one of
    nine."""
    return [Labelled(" ".join([f"code{i}", *words[(i + 1) % NUM][:6]]), True, (f"r{i}",)) for i in range(NUM)]


def by_words(words: list[list[str]]) -> list[Labelled]:
    """Words of one record with the codes of the next two: the other way round."""
    codes = [f"code{(i + 1) % NUM} code{(i + 2) % NUM}" for i in range(NUM)]
    return [Labelled(" ".join([codes[i], *words[i][:5]]), True, (f"r{i}",)) for i in range(NUM)]


@pytest.fixture
def corpus_words(tmp_path: Path) -> list[list[str]]:
    return write_corpus(tmp_path)


@pytest.fixture
def codes(corpus_words: list[list[str]], tmp_path: Path) -> Path:
    """An index of the forty records, with no floor."""
    build_index([tmp_path / "c.jsonl"], tmp_path / "index", "hash", calibrate=False)
    return tmp_path / "index"


def gold_of(codes: Path, labelled: Sequence[Labelled]) -> list[Labelled]:
    """Golds by the ids that passages have in the index."""
    source = read_manifest(codes).sources[0]
    return [Labelled(each.text, each.answerable, tuple(f"{source}#{name}" for name in each.gold)) for each in labelled]


def reciprocal_ranks(index: Path, labelled: Sequence[Labelled], fusion: FusionSettings) -> list[float]:
    values = []
    for each in labelled:
        names = [row.passage.id.rpartition("#")[0] for row in ranked(index, each.text, fusion=fusion)[:10]]
        values.append(1 / (names.index(each.gold[0]) + 1) if each.gold[0] in names else 0.0)
    return values


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


# The ranking --------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_brute_force(codes: Path, corpus_words: list[list[str]]) -> None:
    labelled = gold_of(codes, by_code(corpus_words)[::2] + by_words(corpus_words)[::2])
    tuned = tune_index(codes, HashEncoder(), labelled)
    rows = {row.name: row for row in tuned.rows}
    assert tuned.num_questions == 40
    assert len(rows) == 14  # weights with and without smoothing, the three others, and in use
    own = reciprocal_ranks(codes, labelled, FusionSettings())
    assert rows["in use"].mrr == pytest.approx(statistics.mean(own), abs=1e-9)
    for name, fusion in {
        "dense": FusionSettings("dense"),
        "lexical": FusionSettings("lexical"),
        "weighted 0.3, smoothing 0": FusionSettings(weight=0.3, smoothing=0),
    }.items():
        values = reciprocal_ranks(codes, labelled, fusion)
        differences = [value - used for value, used in zip(values, own, strict=True)]
        assert rows[name].mrr == pytest.approx(statistics.mean(values), abs=1e-9)
        assert rows[name].difference == pytest.approx(statistics.mean(differences), abs=1e-9)
        assert rows[name].spread == pytest.approx(statistics.stdev(differences) / math.sqrt(40), abs=1e-9)
    assert [row.mrr for row in tuned.rows] == sorted((row.mrr for row in tuned.rows), reverse=True)


@pytest.mark.parametrize(("ask", "start", "side"), [(by_code, "weighted", "lexical"), (by_words, "lexical", "dense")])
def test_the_side_that_finds_more_wins(
    corpus_words: list[list[str]], tmp_path: Path, ask: object, start: Method, side: str
) -> None:
    settings = IndexSettings(fusion=FusionSettings(start))
    build_index([tmp_path / "c.jsonl"], codes := tmp_path / "index", "hash", settings, calibrate=False)
    labelled = gold_of(codes, ask(corpus_words))  # type: ignore[operator]

    def num_first(retriever: Retriever) -> int:
        found = retriever.search([each.text for each in labelled], 1)
        return sum(
            hits[0].passage.id.startswith(each.gold[0] + "#") for hits, each in zip(found, labelled, strict=True)
        )

    before, retriever = read_manifest(codes), Retriever.open(codes)
    num_before = num_first(retriever)
    tuned = tune_index(codes, HashEncoder(), labelled)
    assert tuned.changed
    used, now = before.settings.fusion, read_manifest(codes).settings.fusion
    assert now == tuned.rows[0].fusion != used
    if side == "lexical":
        assert now.method == "lexical" or now.weight < used.weight
    else:
        assert now.method == "dense" or (now.method == "weighted" and now.weight > 0.5)
    assert now.baseline == used.baseline
    assert num_first(retriever) > num_before  # a reader that was open uses it at once
    again = tune_index(codes, HashEncoder(), labelled)
    assert not again.changed


def test_a_setting_stays_where_none_is_clearly_better(codes: Path, corpus_words: list[list[str]]) -> None:
    labelled = gold_of(codes, by_code(corpus_words)[:9])  # too few to say anything, though all say the same
    tuned = tune_index(codes, HashEncoder(), labelled)
    assert tuned.rows[0].difference > 0
    assert not tuned.changed
    assert read_manifest(codes).settings.fusion.method == "weighted"
    assert read_manifest(codes).settings.fusion.weight == FusionSettings.weight
    # All find it first: equal figures change nothing.
    easy = gold_of(codes, [Labelled(f"code{i} " + " ".join(corpus_words[i]), True, (f"r{i}",)) for i in range(NUM)])
    tuned = tune_index(codes, HashEncoder(), easy)
    assert (tuned.rows[0].name, tuned.rows[0].mrr, tuned.changed) == ("in use", 1.0, False)


def test_questions_that_name_no_answer_cannot_tune(codes: Path) -> None:
    with pytest.raises(ValueError, match='none of the questions names what answers it; add "passages"'):
        tune_index(codes, HashEncoder(), [Labelled("what is it", True), Labelled("nothing", False)])


def test_too_few_passages_make_no_questions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Yes.")
    build_index([tmp_path / "a.txt"], tmp_path / "index", "hash")
    with pytest.raises(ValueError, match="no questions can be made from the 1 passages of this index; give some"):
        tune_index(tmp_path / "index", HashEncoder())


@pytest.mark.parametrize(("stride", "expected"), [(3, 5), (2, 2)])
def test_another_window_keeps_the_overlap(stride: int, expected: int) -> None:
    settings = SplitSettings(window=3, stride=stride)
    assert (with_window(settings, 5).window, with_window(settings, 5).stride) == (5, expected)
    assert with_window(settings, 1).stride == 1


# The floor ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, make_documents: object) -> Path:
    """An index whose floor was fitted when it was built; its documents are beside it."""
    folder = tmp_path_factory.mktemp("calibrated")
    make_documents(folder / "docs", 40)  # type: ignore[operator]
    build_index([folder / "docs"], folder / "index", "hash")
    return folder / "index"


def test_a_build_fits_and_stores_a_floor(calibrated: Path) -> None:
    manifest = read_manifest(calibrated)
    assert manifest.calibration is not None
    assert manifest.floor == manifest.calibration.threshold == Retriever.open(calibrated).floor
    assert min(manifest.calibration.num_answerable, manifest.calibration.num_unanswerable) >= 20
    assert 0 < manifest.floor < 1


@pytest.mark.parametrize("query", ["when was the castle number4 built", "the tower of nowhere", "???"])
def test_the_confidence_is_the_logistic_model_of_three_features(calibrated: Path, query: str) -> None:
    store = Store(calibrated)
    (hits,) = Retriever.open(calibrated).search([query], 3)
    texts = [embedding_text(passage) for _, passage in store.live_passages()]
    cosines = np.sort(HashEncoder().encode(texts) @ query_vector(query))[::-1]
    first = set(Tokenizer().tokens(embedding_text(hits[0].passage)))
    _, terms = bm25(texts, {}), weighted_terms(query)
    idf = {}
    for term in terms:
        df = sum(term in Tokenizer().tokens(text) for text in texts)
        idf[term] = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
    held = sum(terms[term] * idf[term] for term in terms if term in first)
    coverage = held / sum(terms[term] * idf[term] for term in terms) if terms else 0.0
    features = [cosines[0], cosines[0] - cosines[1:10].mean(), coverage]
    calibration = store.manifest.calibration
    assert calibration is not None
    total = calibration.intercept + sum(c * f for c, f in zip(calibration.coefficients, features, strict=True))
    assert {hit.confidence for hit in hits} == {hits[0].confidence}
    assert hits[0].confidence == pytest.approx(1 / (1 + math.exp(-total)), abs=1e-4)


def test_questions_that_the_documents_answer_have_more_confidence(calibrated: Path) -> None:
    retriever = Retriever.open(calibrated)
    known = [f"when was the {what} number{i} opened" for i, what in ((4, "castle"), (11, "tower"), (20, "bridge"))]
    unknown = ["a recipe for soup", "the price of gold yesterday"]
    found = [hits[0].confidence for hits in retriever.search(known + unknown, 1)]
    assert min(found[:3]) >= retriever.floor > max(found[3:])


def test_the_floor_survives_every_change(calibrated: Path, tmp_path: Path) -> None:
    docs = calibrated.parent / "docs"
    build_index([docs], tmp_path / "index", "hash")
    before = read_manifest(tmp_path / "index")

    def kept() -> bool:
        now = read_manifest(tmp_path / "index")
        return (now.floor, now.calibration) == (before.floor, before.calibration) and now.calibration is not None

    (docs / "new.txt").write_text("Something new about a lighthouse.")
    assert update_index(tmp_path / "index").num_new_passages == 1
    assert kept()
    delete_documents(tmp_path / "index", ["*/new.txt"])
    assert kept()
    compact_index(tmp_path / "index")
    assert kept()
    (docs / "new.txt").unlink()


def test_few_passages_keep_the_floor_that_they_have(codes: Path) -> None:
    (codes.parent / "few.txt").write_text("A tower that is here. Another one is there.")
    build_index([codes.parent / "few.txt"], codes.parent / "few", "hash", floor=0.25)
    store = Store(codes.parent / "few")
    assert fit_floor(store, HashEncoder()) == store.manifest
    assert (store.manifest.floor, store.manifest.calibration) == (0.25, None)


def own_questions() -> list[Labelled]:
    """Thirty with an answer, thirty without."""
    subjects = ("bridge", "tower", "river", "harbour", "castle", "garden", "station", "museum", "market", "theatre")
    known = [Labelled(f"when was the {subjects[i % 10]} number{i} built", True) for i in range(30)]
    return known + [Labelled(f"who painted portrait {i} of nobody", False) for i in range(30)]


def test_the_users_questions_fit_the_floor(calibrated: Path) -> None:
    manifest: Manifest = fit_floor(Store(calibrated), HashEncoder(), own_questions())
    assert manifest.calibration is not None
    assert (manifest.calibration.num_answerable, manifest.calibration.num_unanswerable) == (30, 30)
    assert manifest.calibration.false_answer == 0.0


def test_a_named_answer_is_held_out_to_make_a_question_without_one(calibrated: Path) -> None:
    source = f"{calibrated.parent}/docs/doc"
    named = [Labelled(each.text, True, (f"{source}{i:02}.txt",)) for i, each in enumerate(own_questions()[:30])]
    calibration = fit_floor(Store(calibrated), HashEncoder(), named).calibration
    assert calibration is not None
    assert (calibration.num_answerable, calibration.num_unanswerable) == (30, 30)


# The command --------------------------------------------------------------------------------------------------------


def test_tune_prints_every_setting_and_the_floor(calibrated: Path) -> None:
    result = run("tune", "--index", calibrated)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith("questions, MRR@10 and its difference to the setting in use (standard error):")
    assert len([line for line in lines if line.startswith("  ")]) == 14
    assert lines[-2].startswith(("now in use: ", "none is clearly better"))
    assert lines[-1].startswith("floor 0.")
    assert "questions with an answer" in lines[-1]


def test_tune_reads_questions_and_answers_in_json(codes: Path, corpus_words: list[list[str]]) -> None:
    rows = [{"question": each.text, "documents": list(each.gold)} for each in gold_of(codes, by_code(corpus_words))]
    (codes.parent / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("tune", "--index", codes, "--questions", codes.parent / "q.jsonl", "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert set(content) == {"windows", "ranking", "changed", "floor"}
    assert content["changed"] is True
    assert {"name", "mrr", "difference"} == set(content["ranking"][0])
    assert content["floor"] == read_manifest(codes).floor > 0


def test_questions_that_are_kept_for_a_test_tune_nothing(codes: Path, corpus_words: list[list[str]]) -> None:
    rows = [{"question": each.text, "passage": each.gold[0]} for each in by_code(corpus_words)]
    file = codes.parent / "q.jsonl"
    file.write_text("\n".join(json.dumps(row | {"split": "train" if i % 4 else "test"}) for i, row in enumerate(rows)))
    result = run("tune", "--index", codes, "--questions", file)
    assert result.stderr == f"{file}: 10 questions of a test (split) are left out\n"
    assert result.stdout.startswith("30 questions, MRR@10")
    file.write_text("\n".join(json.dumps(row | {"split": "test"}) for row in rows))
    refused = run("tune", "--index", codes, "--questions", file)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "all 40 questions are of a test (split); give others" in refused.stderr


def test_a_few_questions_tune_the_ranking_and_made_ones_fit_the_floor(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "when was castle number4 built", "source": "doc04.txt"}')
    result = run("tune", "--index", calibrated, "--questions", tmp_path / "q.jsonl")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("1 questions, MRR@10")
    assert read_manifest(calibrated).calibration is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no questions; write one JSON object a line"),
        ("not json", "q.jsonl:1: not a JSON object"),
        ('{"question": "a"}', 'q.jsonl:1: needs "answerable" (true or false), or "passages"'),
        ('{"question": " ", "answerable": true}', 'q.jsonl:1: needs "question", a text'),
        ('{"question": "a", "answerable": true}', "none of the questions names what answers it"),
        ('{"question": "a", "source": 7}', '"source" must be a text or a list of texts'),
        (None, "cannot read the questions in"),
    ],
)
def test_bad_questions_are_one_line(codes: Path, tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "q.jsonl").write_text(content)
    before = (codes / "manifest.json").read_bytes()
    result = run("tune", "--index", codes, "--questions", tmp_path / "q.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert (codes / "manifest.json").read_bytes() == before


def test_tune_with_paths_builds_an_index_of_the_best_window(tmp_path: Path, make_documents: object) -> None:
    docs = make_documents(tmp_path / "docs", 25)  # type: ignore[operator]
    for i, file in enumerate(sorted(docs.iterdir())):  # long enough for windows to matter
        said = " ".join(f"The {word}{i} of number{i} was made from {word}stone and painted." for word in COMMON[:6])
        file.write_text(f"{file.read_text()}\n{said}\n")
    result = run("tune", docs, "--index", tmp_path / "index", "--windows", "1,6,1", "--encoder", "hash", "--json")
    assert result.exit_code == 0, result.stderr
    tried = json.loads(result.stdout)["windows"]
    assert sorted(window for window, _ in tried) == [1, 6]
    assert tried[0][1] >= tried[1][1]
    assert all(0 < figure <= 1 for _, figure in tried)
    split = read_manifest(tmp_path / "index").settings.split
    assert (split.window, split.stride) == (tried[0][0], tried[0][0])
    assert tried == [
        list(row) for row in best_window([str(docs)], [1, 6], HashEncoder(), read_manifest(tmp_path / "index").settings)
    ]


def test_tune_with_paths_refuses_a_folder_of_other_things_at_once(codes: Path) -> None:
    result = run("tune", codes.parent / "c.jsonl", "--index", codes.parent, "--encoder", "./nowhere")
    assert result.exit_code == 2
    assert "is not empty and holds no index" in result.stderr
