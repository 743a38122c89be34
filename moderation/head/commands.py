"""The commands `train` and `evaluate` of `python -m moderation`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from common.files import check_can_write, read_json
from common.plugins import plugin
from moderation.classifiers import open_classifier
from moderation.head.data import Row, Rows, read_harmless, read_rows
from moderation.head.metrics import evaluate
from moderation.head.report import table
from moderation.types import Classifier

FILES = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
BATCH = 64

Opener = Callable[[str, str | None], Classifier]


@click.command(cls=OneLineCommand)
@click.argument("rows", nargs=-1, required=True, type=FILES)
@click.option("--harmless", multiple=True, type=FILES, help="JSON Lines of harmless texts, such as your documents.")
@click.option("--out", required=True, type=FOLDER, help="Directory to write: what --moderation-model takes.")
@click.option("--folds", type=click.IntRange(min=0), default=0, help="Also measure by so many folds (slow).")
@click.option("--recipe", "recipe_path", type=FILES, help="JSON: features, rate, sources, fit; or a head.json.")
@click.option("--encoder", help="Sentence encoder; minilm, or the recipe's.")
@click.option("--templates/--no-templates", default=None, help="Add the sentences of templates.yaml; yes by default.")
@click.option("--cache", type=FOLDER, help="Keep sentence vectors here for the next run.")
@click.option("--device", help="Torch device of the encoder, such as cpu or cuda:1.")
def train_command(
    rows: tuple[Path, ...],
    harmless: tuple[Path, ...],
    out: Path,
    folds: int,
    recipe_path: Path | None,
    encoder: str | None,
    templates: bool | None,
    cache: Path | None,
    device: str | None,
) -> None:
    """Train a classifier from ROWS (.jsonl, .jsonl.gz or .csv with text and labels), measure it, and write it.

    A label that a row does not name is unknown. See docs/moderation-training.md.
    """
    if folds == 1:
        raise click.UsageError("--folds 1 would leave nothing to learn from; give 2 or more, or leave it out")
    from moderation.head.export import Job, run  # torch and scikit-learn load here

    recipe = read_recipe(recipe_path)
    if encoder is not None:
        recipe = replace(recipe, encoder=encoder)
    if templates is not None:
        recipe = replace(recipe, templates=templates)
    check_can_write(out / "head.json")
    given, texts = read_rows(rows), read_harmless(harmless)
    _say(given)
    _say(texts)
    encode = plugin("parley.encoder")(recipe.encoder, device).encode
    job = Job([*given.rows, *texts.rows], recipe, encode, folds, cache, [*rows, *harmless])
    result = run(job, out, _progress())
    click.echo(result)


def read_recipe(path: Path | None) -> Any:
    """A Recipe from a JSON file, or from the `recipe` of a head.json; ValueError for unknown settings."""
    from moderation.head.training import Recipe

    if path is None:
        return Recipe()
    content = read_json(path)
    content = content.get("recipe", content) if isinstance(content, dict) else content
    known = {f.name for f in fields(Recipe)}
    if not isinstance(content, dict) or not set(content) <= known:
        wrong = ", ".join(sorted(set(content) - known)) if isinstance(content, dict) else "not a mapping"
        raise ValueError(f"{path}: not a recipe: {wrong}; its settings are {', '.join(sorted(known))}")
    return Recipe(**content)


def make_evaluate_command(open_classifier: Opener) -> click.Command:
    """`evaluate` with classifiers opened by `open_classifier(name, device)`."""

    @click.command("evaluate", cls=OneLineCommand)
    @click.argument("files", nargs=-1, required=True, type=FILES)
    @click.option("--model", default="default", show_default=True, help="The classifier, as in `check`.")
    @click.option("--group", default="source", show_default=True, help="source, split, group, or none.")
    @click.option("--split", help="Only rows of this split, such as test.")
    @click.option("--fpr", type=click.FloatRange(0, 1, max_open=True), default=0.01, show_default=True,
                  help="The false-positive rate at which recall is given.")  # fmt: skip
    @click.option("--device", help="Torch device of the classifier.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
    def command(
        files: tuple[Path, ...],
        model: str,
        group: str,
        split: str | None,
        fpr: float,
        device: str | None,
        as_json: bool,
    ) -> None:
        """Measure a classifier on labelled FILES: AUPRC, AUROC, recall at a false-positive rate, calibration error.

        By label; and by group, for any label ("unsafe" where rows and classifier have it).
        """
        if group not in ("source", "split", "group", "none"):
            raise click.UsageError(f"--group '{group}' is not one of source, split, group, none")
        given = read_rows(files)
        _say(given)
        rows = [row for row in given.rows if split is None or row.split == split]
        if not rows:
            raise ValueError(f"no row has the split '{split}'; leave out --split for all rows")
        classifier = open_classifier(model, device)
        scores = [score for i in range(0, len(rows), BATCH) for score in _judge(classifier, rows[i : i + BATCH])]
        result = evaluate(rows, scores, fpr, lambda row: "all" if group == "none" else str(getattr(row, group)))
        click.echo(json.dumps({"model": model, **result}) if as_json else table(result))

    return command


evaluate_command = make_evaluate_command(open_classifier)


def _judge(classifier: Classifier, rows: list[Row]) -> list[dict[str, float | None]]:
    return classifier.scores([row.text for row in rows])


def _say(given: Rows) -> None:
    for note in given.notes():
        click.echo(note, err=True)


def _progress() -> Callable[[str], None]:
    started = time.monotonic()
    return lambda message: click.echo(f"[{time.monotonic() - started:5.0f} s] {message}", err=True)
