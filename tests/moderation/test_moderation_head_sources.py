"""Where rows come from besides labelled files: our own labels, harmless texts; and sources that a head did not see."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from moderation.head.annotations import CODES, annotation
from moderation.head.calibration import joint_thresholds
from moderation.head.commands import train_command
from moderation.head.corpus import make_corpus
from moderation.head.data import LABELS, Row, read_harmless, read_rows
from moderation.head.training import Recipe, source_groups, train, unseen
from retrieval.encoders import open_encoder

RED_TEAM = Path("../shared/data/moderation/hh_harmless_q.jsonl.gz")
FIT = {"epochs": 25, "hidden": 8, "bag": 4}


def test_annotations_are_well_formed():
    text = resources.files("moderation.head").joinpath("annotations.json").read_text(encoding="utf-8")
    annotated = json.loads(text)
    assert set(annotated) == {"train", "test"}
    assert not set(annotated["train"]) & set(annotated["test"])
    for rows in annotated.values():
        assert all(re.fullmatch("[0-9a-f]{12}", digest) for digest in rows)
        assert all(set(letters) <= set(CODES) for letters in rows.values())
    assert set(CODES.values()) < set(LABELS)


def test_a_text_that_nobody_annotated(tmp_path):
    assert annotation("A text that stands in no data set.") is None
    (tmp_path / "a.jsonl").write_text('{"text": "x", "labels": {}, "split": "unlabelled"}\n')
    assert read_rows([tmp_path / "a.jsonl"]).skipped == {"unlabelled": 1}


@pytest.mark.skipif(not RED_TEAM.exists(), reason=f"{RED_TEAM} is not there")
def test_annotated_rows_have_labels():
    rows = read_rows([RED_TEAM]).rows
    assert {row.split for row in rows} == {"train", "test"}
    fair = [row for row in rows if not any(row.labels.values())]
    assert len(fair) > 300
    assert all(row.labels == dict.fromkeys(LABELS, 0) for row in fair)
    assert all(row.labels["unsafe"] == 1 for row in rows if any(row.labels.values()))


def test_harmless_texts(tmp_path):
    (tmp_path / "pages.jsonl").write_text('{"_id": 1, "text": "Bread.", "labels": {"hate": 1}}\n{"title": "x"}\n3\n')
    found = read_harmless([tmp_path / "pages.jsonl"])
    assert found.rows == [Row("Bread.", dict.fromkeys(LABELS, 0), source="harmless_pages")]
    assert found.skipped == {"no text": 2}
    with pytest.raises(ValueError, match="no row with a text"):
        read_harmless([_write(tmp_path / "empty.jsonl", [])])


def test_training_with_harmless_texts(tmp_path):
    rows = _write(tmp_path / "rows.jsonl", [{"text": r.text, "labels": r.labels, "source": r.source} for r in _rows()])
    pages = _write(tmp_path / "pages.jsonl", [{"text": f"page {i} of the book"} for i in range(400)])
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"encoder": "hash", "templates": False, "features": 200, "fit": FIT, "unseen": 2}))
    out = tmp_path / "out"
    arguments = [str(rows), "--harmless", str(pages), "--out", str(out), "--recipe", str(recipe)]
    done = CliRunner().invoke(train_command, arguments)
    assert done.exit_code == 0, done.output
    about = json.loads((out / "head.json").read_text())
    assert set(about["made_of"]["files"]) == {"rows.jsonl", "pages.jsonl"}
    assert about["made_of"]["rows"]["harmless_pages/unsaid"] == 400
    assert about["measured"]["false_positives"]["harmless_pages"] <= 0.05


# Unseen sources -------------------------------------------------------------------------------------------------------


def test_heads_know_nothing_of_the_sources_that_were_left_out():
    """Each source has a word of its own for what is wrong: a head that knows the source finds it, no other can."""
    recipe = Recipe("hash", templates=False, features=200, fit=FIT, unseen=4)
    head, corpus, part = train(_rows(), recipe, open_encoder("hash").encode)
    found = unseen(corpus, part["train"], part["calib"], recipe)
    assert set(found.rows) <= {*part["train"], *part["calib"]}
    truth = corpus.truth[found.rows, 0]
    rows = corpus.select(found.rows)
    assert roc_auc_score(truth, head.probabilities(rows.texts, rows.vectors)[:, 0]) > 0.95
    assert abs(roc_auc_score(truth, found.logits[:, 0]) - 0.5) < 0.15


def test_each_group_has_harmful_and_harmless_sources():
    corpus = make_corpus(
        [Row(f"{name} {i}", {"hate": int(name > "b")}, source=name) for name in "abcd" for i in range(3)],
        open_encoder("hash").encode,
        print,
        None,
    )
    assert source_groups(corpus, np.arange(12), 2) == [["a", "c"], ["b", "d"]]
    with pytest.raises(ValueError, match="4 sources"):
        source_groups(corpus, np.arange(12), 5)


def test_a_source_may_have_a_rate_of_its_own():
    scores = np.linspace(0.5, 0.99, 100).reshape(-1, 1)
    both = np.concatenate([scores, scores])
    benign = {"strict": np.arange(100), "loose": np.arange(100, 200)}
    alone = {"loose": benign["loose"]}
    for rates, share in (({}, 0.01), ({"loose": 0.1}, 0.1)):
        threshold = joint_thresholds(both, ["x"], alone, 0.01, rates)["x"]
        assert (scores >= threshold).mean() == pytest.approx(share)
    strictest = joint_thresholds(both, ["x"], benign, 0.01, {"loose": 0.1})["x"]
    assert (both[benign["strict"], 0] >= strictest).mean() <= 0.01


# Vectors --------------------------------------------------------------------------------------------------------------


def test_only_new_texts_are_encoded(tmp_path):
    encoder = open_encoder("hash")
    seen: list[str] = []

    def encode(texts):
        seen.extend(texts)
        return encoder.encode(texts)

    def vectors(texts, cache):
        seen.clear()
        return make_corpus([Row(text, {"hate": 0}) for text in texts], encode, print, cache).vectors

    first = vectors(["a tree", "a long river", "a tree"], tmp_path)
    assert set(seen) >= {"a tree", "a long river"}
    np.testing.assert_array_equal(first, encoder.encode(["a tree", "a long river", "a tree"]))
    again = vectors(["a long river", "a house"], tmp_path)
    assert "a house" in seen
    assert "a long river" not in seen
    np.testing.assert_array_equal(again, encoder.encode(["a long river", "a house"]))


def _rows() -> list[Row]:
    """Four sources of harmful and harmless texts, one of harmless texts."""
    draw = np.random.default_rng(1)
    words = ["tree", "house", "river", "cloud", "stone", "road", "bread", "light"]
    rows = []
    for number, bad in enumerate(("vile", "foul", "grim", "rank")):
        for i in range(500):
            text = [*draw.choice(words, 6), bad if i % 2 else ("fine", "fair", "kind", "good")[number]]
            rows.append(Row(" ".join(draw.permutation(text)), {"hate": i % 2, "unsafe": i % 2}, source=bad))
    plain = {"hate": 0, "unsafe": 0}
    return rows + [Row(" ".join(draw.choice(words, 7)), plain, source="plain") for _ in range(500)]


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path
