"""The embedded classifier on held-back rows and by folds, beside TF-IDF + logistic regression and alt-profanity-check.

Run: python -m tools.bench.moderation [--data DIR] [--harmless FILE] [--folds 5] [--cache DIR]

Held-back rows are those with `split` test, and the calibration rows of hh_helpful, which no head learns from. The
rivals: one logistic regression for each label on TF-IDF of words and pairs, trained on the rows that the head
learned from; and alt-profanity-check, which knows one label, where it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from common.cli import OneLineCommand
from moderation.head.classifier import HeadClassifier
from moderation.head.commands import read_recipe
from moderation.head.corpus import Corpus, make_corpus
from moderation.head.data import read_harmless, read_rows
from moderation.head.export import Scorer, fold_figures
from moderation.head.gate import measure, scores_of
from moderation.head.metrics import auprc, ece, threshold_at
from moderation.head.training import Recipe, collect, parts, source_groups, unseen
from retrieval.encoders import open_encoder

BENIGN = {"questions": ("nq_q", "clinc", "banking77"), "instructions": ("alpaca_seed", "hh_helpful")}
HARMFUL = ("malicious_instruct", "tdc2023", "ailuminate")
LAST_RESORT = "hh_helpful"  # has no test rows; its calibration rows were not learned from, but set thresholds
RANDOM_TEXTS = 50_000
GROUPS = 3


@click.command(cls=OneLineCommand)
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data/moderation"), show_default=True)
@click.option("--model", type=click.Path(path_type=Path), help="A trained directory; the shipped one if left out.")
@click.option("--folds", type=click.IntRange(min=0), default=5, show_default=True, help="0 leaves the folds out.")
@click.option("--harmless", type=click.Path(path_type=Path), default=Path("../shared/data/retrieval/nq/corpus.jsonl"),
              show_default=True, help="Harmless passages; left out where there is no such file.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path), default=Path("models/.moderation-vectors"),
              show_default=True, help="Sentence vectors are kept here for the next run.")  # fmt: skip
def cli(data: Path, model: Path | None, folds: int, harmless: Path, cache: Path) -> None:
    """Print all figures of the embedded classifier, and of its rivals on the same rows."""
    files = sorted(data.glob("*.jsonl.gz"))
    if not files:
        raise ValueError(f"{data}: no *.jsonl.gz; give the folder of the data sets with --data")
    classifier = HeadClassifier.open(model)
    recipe = read_recipe(model / "head.json" if model else _shipped_settings())
    encoder = open_encoder(classifier.encoder)
    rows = read_rows(files).rows + (read_harmless([harmless]).rows if harmless.is_file() else [])
    corpus = make_corpus(collect(rows, recipe), encoder.encode, _note, cache)
    part = parts(corpus, recipe)
    kept = {LAST_RESORT: "calib"}
    held_back = np.array(
        [i for i, row in enumerate(corpus.rows) if row.split == kept.get(row.source, "test")], dtype=np.int64
    )
    test = corpus.select(held_back)
    head = classifier.head
    scorers: dict[str, Scorer] = {"head": lambda rows: scores_of(head, rows)}
    scorers["tf-idf + lr"] = tfidf(corpus.select(part["train"]))
    if profanity := profanity_check(corpus.labels):
        scorers["alt-profanity"] = profanity
    for name, scorer in scorers.items():
        print_figures(name, test, scorer(test))
    print_gate(measure(head, test))
    if folds:
        click.echo(f"== {folds} folds: AUPRC, ECE")
        print_folds("head", fold_figures(corpus, recipe, folds, _note))
        rival = fold_figures(corpus, recipe, folds, _note, lambda all_, learn, *_: tfidf(all_.select(learn)))
        print_folds("tf-idf + lr", rival)
        click.echo(f"== {GROUPS} groups of sources, each left out in turn: AUPRC of what was left out")
        print_left_out(corpus, part, recipe)
    print_latency(classifier, encoder, [row.text for row in test.rows])
    print_robustness(HeadClassifier(head, encoder.encode))


def tfidf(learn: Corpus) -> Scorer:
    """Logistic regressions on TF-IDF of words and pairs, one for each label, on the rows that know it."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = words.fit_transform(learn.texts)
    models: list[Any] = []
    for truth in learn.truth.T:
        known = np.flatnonzero(~np.isnan(truth))
        both = len(set(truth[known])) == 2
        models.append(
            LogisticRegression(C=4.0, solver="liblinear").fit(features[known], truth[known]) if both else None
        )

    def score(rows: Corpus) -> NDArray[np.float64]:
        found = words.transform(rows.texts)
        nothing = np.full(len(rows.rows), np.nan)
        return np.stack([nothing if m is None else m.predict_proba(found)[:, 1] for m in models], axis=1)

    return score


def profanity_check(labels: Sequence[str]) -> Scorer | None:
    """alt-profanity-check's probability as `unsafe`; None, and a line that says how to get it, where it is missing."""
    if importlib.util.find_spec("profanity_check") is None:
        click.echo("alt-profanity-check is not installed; to compare: pip install alt-profanity-check")
        return None
    predict = importlib.import_module("profanity_check").predict_prob

    def score(rows: Corpus) -> NDArray[np.float64]:
        result = np.full((len(rows.rows), len(labels)), np.nan)
        result[:, list(labels).index("unsafe")] = predict(rows.texts)
        return result

    return score


def print_figures(name: str, test: Corpus, scores: NDArray[np.float64]) -> None:
    """AUPRC and ECE of any label; AUPRC by label; recall of harmful instructions at 1% of each kind of harmless text:
    the threshold is the one that the hardest source of that kind asks for."""
    column = test.labels.index("unsafe")
    overall, truth = scores[:, column], test.truth[:, column]
    click.echo(f"== {name}: any label AUPRC {_show(auprc(truth, overall))}, ECE {_show(ece(truth, overall))}")
    by_label = ((label, auprc(test.truth[:, j], scores[:, j])) for j, label in enumerate(test.labels))
    click.echo("AUPRC" + "".join(f"  {label} {_show(value)}" for label, value in by_label))
    splits = {**BENIGN, "both": sum(BENIGN.values(), ())}
    for kind, sources in splits.items():
        threshold = max(threshold_at(overall[test.sources == source], 0.01) for source in sources)
        recalls = {s: float((overall[(test.sources == s) & (truth == 1)] >= threshold).mean()) for s in HARMFUL}
        shown = "".join(f"  {source} {value:.3f}" for source, value in recalls.items())
        click.echo(f"recall at 1% of {kind:<13} (threshold {threshold:.3f}){shown}")


def print_folds(name: str, by_label: dict[str, Any]) -> None:
    """One line: for each label its AUPRC and its ECE."""
    click.echo(name.ljust(12) + "".join(f"  {k} {_show(f['auprc'])}, {_show(f['ece'])}" for k, f in by_label.items()))


def print_left_out(corpus: Corpus, part: dict[str, NDArray[np.int64]], recipe: Recipe) -> None:
    """How heads, and the rival, judge rows of sources that they did not learn from: any label, then each label."""
    found = unseen(corpus, part["train"], part["calib"], replace(recipe, unseen=GROUPS), _note)
    rows = corpus.select(found.rows)
    rival = np.full(rows.truth.shape, np.nan)
    for left_out in source_groups(corpus, found.rows, GROUPS):
        rest = part["train"][~np.isin(corpus.sources[part["train"]], left_out)]
        theirs = np.isin(rows.sources, left_out)
        rival[theirs] = tfidf(corpus.select(rest))(rows.select(np.flatnonzero(theirs)))
    for name, scores in (("head", found.logits), ("tf-idf + lr", rival)):
        values = {label: auprc(rows.truth[:, j], scores[:, j]) for j, label in enumerate(corpus.labels)}
        click.echo(name.ljust(12) + "".join(f"  {label} {_show(value)}" for label, value in values.items()))


def print_gate(measured: dict[str, Any]) -> None:
    """What the head's own thresholds do: flagged by any label, by source."""
    click.echo("== head, at its own thresholds: flagged by any label")
    for kind, what in (("false_positives", "harmless"), ("recall", "harmful")):
        click.echo(f"{what:<9}" + "".join(f"  {source} {share:.2%}" for source, share in measured[kind].items()))
    click.echo(f"labels that meet the gate for blocking: {', '.join(measured['passes']) or 'none'}")


def print_latency(classifier: HeadClassifier, encoder: Any, texts: Sequence[str]) -> None:
    """Milliseconds for one text: with the sentence vector known, and with one encoder pass."""
    classifier = HeadClassifier(classifier.head, encoder.encode)
    chosen = random.Random(1).sample(list(texts), 300)  # noqa: S311  # a sample, no secret
    vectors = encoder.encode(chosen)
    ways: dict[str, Callable[[int], object]] = {
        "vector shared": lambda i: classifier.from_vectors([chosen[i]], vectors[i : i + 1]),
        "one encoder pass": lambda i: classifier.scores([chosen[i]]),
    }
    click.echo("== added latency for one text")
    for name, call in ways.items():
        times = [_milliseconds(call, i) for i in range(len(chosen))]
        click.echo(
            f"{name:<18} p50 {statistics.median(times):.2f} ms, p99 {statistics.quantiles(times, n=100)[98]:.2f}"
        )


def print_robustness(classifier: HeadClassifier) -> None:
    """RANDOM_TEXTS random Unicode strings, an empty text and one of 1 MB: each must get its scores."""
    draw = random.Random(2)  # noqa: S311  # test data, no secret
    texts = ["".join(chr(draw.randrange(0x110000)) for _ in range(draw.randrange(1, 40))) for _ in range(RANDOM_TEXTS)]
    started = time.perf_counter()
    missing = 0
    for start in range(0, len(texts), 256):
        batch = texts[start : start + 256]
        for text, scores in zip(batch, classifier.scores(batch), strict=True):
            missing += scores["unsafe"] is None and bool(text.strip())
    click.echo(f"== {RANDOM_TEXTS} random strings in {time.perf_counter() - started:.0f} s: {missing} without scores")
    started = time.perf_counter()
    long, empty = classifier.scores(["word " * 200_000, ""])
    click.echo(f"1 MB: unsafe {long['unsafe']}, {time.perf_counter() - started:.2f} s; empty: {empty['unsafe']}")


def _shipped_settings() -> Path:
    from moderation.head.classifier import shipped

    return shipped() / "head.json"


def _milliseconds(call: Callable[[int], object], i: int) -> float:
    started = time.perf_counter()
    call(i)
    return (time.perf_counter() - started) * 1000


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _note(message: str) -> None:
    click.echo(message, err=True)


if __name__ == "__main__":
    cli()
