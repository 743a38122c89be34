"""Reading rows, training a small head, the two commands. The encoder is the hashed one: no model is needed."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moderation.head import plots
from moderation.head.classifier import HeadClassifier
from moderation.head.commands import make_evaluate_command, read_recipe, train_command
from moderation.head.corpus import part_of, row_weights
from moderation.head.data import LABELS, Row, label_names, matrix, read_rows
from moderation.head.templates import SOURCE, fill, gerund, template_rows

RECIPE = {"encoder": "hash", "templates": False, "features": 200, "fit": {"epochs": 25, "hidden": 8, "bag": 4}}


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


# Rows -----------------------------------------------------------------------------------------------------------------


def test_rows_of_every_kind_of_file(tmp_path):
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "x", "labels": {"self_harm": 1, "injection": 0, "hate": None}}])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "y", "labels": {"sexual_minors": 0}, "split": "test", "source": "s"}))
    (tmp_path / "c.csv").write_text('text,labels,group\r\n"a, b",hate=1;unsafe=0,g\r\nc,"{""hate"": 0}",\r\n')
    (tmp_path / "d.csv").write_text("text,hate,unsafe\nz,1,\n")
    rows = read_rows([lines, tmp_path / "b.jsonl.gz", tmp_path / "c.csv", tmp_path / "d.csv"]).rows
    assert rows == [
        Row("x", {"self-harm": 1, "prompt_injection": 0}, "", "a"),
        Row("y", {"sexual/minors": 0}, "test", "s"),
        Row("a, b", {"hate": 1, "unsafe": 0}, "", "c", "g"),
        Row("c", {"hate": 0}, "", "c"),
        Row("z", {"hate": 1}, "", "d"),
    ]


def test_what_cannot_be_used_is_counted_with_its_place(tmp_path):
    rows = [{"text": "x", "labels": {"a": 1}}, {"text": " ", "labels": {"a": 1}}, {"text": "x", "labels": {}}, 5]
    rows += [{"text": "x", "labels": {"a": 2}}, {"text": "x", "labels": {"a": 1}, "split": "dev"}, {"text": "q"}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    with open(path, "a") as file:
        file.write("{broken\n")
    found = read_rows([path])
    assert len(found.rows) == 1
    assert sum(found.skipped.values()) == 7
    assert found.skipped["not a row"] == 2
    assert any(f"{path}:2" in note and "no text" in note for note in found.notes())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "unknown kind of file"),
        ("a.jsonl", b"", "no row"),
        ("a.jsonl", b"\xff", "not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz"),
        ("a.csv", b"words,labels\nx,y\n", "no column 'text'"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows([tmp_path / name])


def test_a_csv_text_may_be_longer_than_the_csv_module_likes(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text", "labels"], ["x" * 1_000_000, "hate=1"]])
    assert len(read_rows([tmp_path / "a.csv"]).rows[0].text) == 1_000_000


def test_unknown_labels_are_no_zeros():
    rows = [Row("x", {"zeta": 1, "unsafe": 0}), Row("y", {"hate": 1})]
    assert label_names(rows) == ("hate", "unsafe", "zeta")
    np.testing.assert_equal(matrix(rows, ["hate", "unsafe"]), [[np.nan, 0], [1, np.nan]])


def test_sources_weigh_by_the_root_of_their_size():
    weights = row_weights(["a"] * 4 + ["b"] * 16, {"b": 2.0})
    assert weights[4:].sum() / weights[:4].sum() == pytest.approx(2 * 4 / 2)
    assert weights.mean() == pytest.approx(1)


# Templates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phrase", "ing"),
    [("make a cake", "making a cake"), ("run home", "running home"), ("free a cat", "freeing a cat"),
     ("lie", "lying"), ("dye a shirt", "dyeing a shirt"), ("3D print a toy", "3D printing a toy"),
     ("traffic in stamps", "trafficking in stamps"), ("hot-wire a car", "hot-wiring a car")],
)  # fmt: skip
def test_the_ing_form(phrase, ing):
    assert gerund(phrase).strip() == ing


def test_slots_are_filled():
    assert fill("Tips for {ing}?", "bake bread") == "Tips for baking bread?"
    assert fill("{x} are here", "cats") == "Cats are here"


def test_template_rows_are_the_same_every_time_and_wholly_filled():
    rows = template_rows()
    assert rows == template_rows()
    assert len({row.text for row in rows}) == len(rows)
    assert all("{" not in row.text and "|" not in row.text for row in rows)
    assert {label for row in rows for label in row.labels} == set(LABELS)
    texts = {row.text: row for row in rows}
    harmless = [row for row in rows if "kill a Python process" in row.text]
    assert len(harmless) == 4  # of seven; the others have "killing"
    assert all(set(row.labels.values()) == {0} for row in harmless)
    assert any(row.labels.get("unsafe") == 1 and row.source == SOURCE for row in texts.values())


# Training -------------------------------------------------------------------------------------------------------------


def examples(count: int, seed: int = 1) -> list[dict[str, object]]:
    """`vile` makes a text hate; `lewd` sexual, of which the first half of the rows says nothing; rare has one row."""
    draw = random.Random(seed)
    filler = ["tree", "house", "river", "cloud", "stone", "road", "bread", "light", "sound", "chair"]
    rows: list[dict[str, object]] = []
    for i in range(count):
        words = draw.choices(filler, k=draw.randrange(3, 9))
        hate, sexual = i % 3 == 0, i % 3 == 1
        words.insert(draw.randrange(len(words)), "vile" if hate else "lewd" if sexual else "fine")
        labels = {"hate": int(hate), "unsafe": int(hate or sexual)}
        if i >= count // 2:
            labels["sexual"] = int(sexual)
        if i == 0:
            labels["rare"] = 1
        harmless = not (hate or sexual)
        rows.append({"text": " ".join(words), "labels": labels, "source": "plain" if harmless else "mixed"})
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    run_training(folder, folder / "out", "--folds", "2")
    return folder / "out"


def run_training(folder: Path, out: Path, *options: str) -> str:
    rows = write_lines(folder / "rows.jsonl", [*examples(3000), {"text": ""}])
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    arguments = [str(rows), "--out", str(out), "--recipe", str(folder / "recipe.json"), *options]
    done = CliRunner().invoke(train_command, arguments)
    assert done.exit_code == 0, done.output
    assert "1 rows skipped: no text" in done.stderr
    return done.stdout


def test_a_trained_directory_is_loaded_and_right(trained):
    classifier = HeadClassifier.open(trained)
    vile, lewd, fine = classifier.scores(["vile stone", "a lewd road", "fine bread and light"])
    assert vile["hate"] > 0.8 > 0.2 > fine["hate"]
    assert lewd["sexual"] > 0.5 > fine["sexual"]
    assert vile["unsafe"] > 0.8
    assert vile["rare"] is None  # one row is too few to learn from
    assert fine["unsafe"] < classifier.thresholds["unsafe"]
    assert {"hate", "unsafe"} <= set(classifier.head.blocks)


def test_the_directory_records_what_it_was_made_of(trained):
    about = json.loads((trained / "head.json").read_text())
    assert about["recipe"] == {**about["recipe"], **RECIPE}
    assert len(about["made_of"]["files"]["rows.jsonl"]) == 64
    assert sum(about["made_of"]["rows"].values()) == len({row["text"] for row in examples(3000)})
    assert about["measured"]["labels"]["hate"]["auprc"] > 0.9
    assert about["folds"]["hate"]["auprc"] > 0.9
    assert "cannot do" in (trained / "README.md").read_text()
    report = (trained / "report.md").read_text()
    for image in ("curves.svg", "reliability.svg", "sources.svg"):
        assert image in report
        assert (trained / image).read_text().startswith("<svg")


def test_the_recorded_recipe_gives_the_same_head(trained, tmp_path):
    run_training(tmp_path, tmp_path / "again", "--recipe", str(trained / "head.json"))
    texts = [str(row["text"]) for row in examples(30, seed=2)]
    first, second = (HeadClassifier.open(folder).scores(texts) for folder in (trained, tmp_path / "again"))
    assert first == second


def test_equal_texts_are_in_one_part():
    assert {part_of(Row("x", {"a": i}, source=str(i)), "fold", 5) for i in range(5)} == {
        part_of(Row("x", {}), "fold", 5)
    }


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"colour": 1}, "colour"),
        ({"fit": {"speed": 1}}, "speed"),
        ([], "not a recipe"),
    ],
)
def test_an_unknown_setting_is_refused(tmp_path, recipe, message):
    rows = write_lines(tmp_path / "rows.jsonl", examples(200))
    (tmp_path / "recipe.json").write_text(json.dumps({**RECIPE, **recipe} if recipe else recipe))
    done = CliRunner().invoke(
        train_command, [str(rows), "--out", str(tmp_path / "o"), "--recipe", str(tmp_path / "recipe.json")]
    )
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "o" / "head.json").exists()


def test_too_few_rows_are_refused(tmp_path):
    rows = write_lines(tmp_path / "rows.jsonl", examples(12))
    done = CliRunner().invoke(
        train_command, [str(rows), "--out", str(tmp_path / "o"), "--encoder", "hash", "--no-templates"]
    )
    assert done.exit_code == 2
    assert "give more rows" in done.stderr


def test_the_default_recipe(tmp_path):
    assert read_recipe(None).rate == 0.01


# Evaluation -----------------------------------------------------------------------------------------------------------


class Fake:
    """Knows `hate` by its word, and cannot judge anything else."""

    labels = ("hate", "sexual")

    def scores(self, texts):
        return [{"hate": 0.9 if "vile" in text else 0.1, "sexual": None} for text in texts]


def evaluate(tmp_path: Path, *options: str):
    rows = [{"text": "vile", "labels": {"hate": 1, "sexual": 0}, "source": "a", "split": "test"}]
    rows += [{"text": "fine", "labels": {"hate": 0}, "source": "b", "split": "train"}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    command = make_evaluate_command(lambda *_: Fake())
    return CliRunner().invoke(command, [str(path), "--model", "fake", *options])


def test_evaluation_as_json(tmp_path):
    done = evaluate(tmp_path, "--json")
    result = json.loads(done.stdout)
    assert result["labels"]["hate"]["auprc"] == 1.0
    assert result["labels"]["hate"]["ece"] == pytest.approx(0.1)
    assert result["labels"]["sexual"] == {
        "rows": 0, "positives": 0, "auprc": None, "auroc": None, "recall": None, "ece": None
    }  # fmt: skip
    assert set(result["groups"]) == {"a", "b"}


def test_evaluation_as_tables(tmp_path):
    done = evaluate(tmp_path, "--group", "split")
    assert done.exit_code == 0
    assert "AUPRC" in done.stdout
    assert "train" in done.stdout


def test_evaluation_of_one_split(tmp_path):
    assert json.loads(evaluate(tmp_path, "--split", "test", "--json").stdout)["labels"]["any"]["rows"] == 1
    done = evaluate(tmp_path, "--split", "calib")
    assert done.exit_code == 2
    assert "no row has the split" in done.stderr


def test_an_unknown_group_is_refused(tmp_path):
    assert evaluate(tmp_path, "--group", "colour").exit_code == 2


def test_plots_are_whole_even_without_points():
    import xml.etree.ElementTree as ET

    image = plots.lines("a < b", "x", "y", {"one & two": [(0, 0), (2, 1)], "empty": []}, diagonal=True)
    assert ET.fromstring(image).tag.endswith("svg")  # noqa: S314
    assert ET.fromstring(plots.bars("nothing", {})).tag.endswith("svg")  # noqa: S314
