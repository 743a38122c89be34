"""The commands that measure an index: evaluate, tune, doctor."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import click

from common.text import printable
from retrieval.commands.options import (
    device_option,
    encoder_option,
    false_refusals_option,
    index_option,
    json_option,
)
from retrieval.commands.progress import progress_bar
from retrieval.confidence.questions import Labelled, read_labelled
from retrieval.encoders import DEFAULT_ENCODER, open_encoder
from retrieval.index.manifest import IndexSettings, read_manifest
from retrieval.index.store import check_target
from retrieval.measuring.doctor import Finding, examine
from retrieval.measuring.evaluate import (
    MEASURES,
    count_unknown_documents,
    measure,
    read_beir,
    read_trec_run,
    write_trec_run,
)
from retrieval.measuring.trials import Result, evaluate_index
from retrieval.measuring.tuning import best_window, tune_index, with_window
from retrieval.writing.building import build_index


@click.command("tune")
@click.argument("paths", nargs=-1)
@index_option
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    help="JSON Lines of your own, or questions.jsonl of tools/make_qa.py, instead of made ones.",
)
@click.option("--windows", default="2,3,5", show_default=True, help="With PATHS: sentences in a passage to try.")
@encoder_option
@false_refusals_option
@device_option
@json_option
def tune_command(
    paths: tuple[str, ...],
    index: str,
    questions: Path | None,
    windows: str,
    encoder: str | None,
    false_refusals: float,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure settings on questions made from the documents, and keep the winner.

    With PATHS an index is built with each of several passage lengths, and DIR with the best one; without, the ranking
    of DIR is tuned as it is. Either way the floor is fitted anew.
    """
    labelled = _own_questions(questions) if questions else []
    numbers = _numbers(windows)
    tried: list[tuple[int, float]] = []
    if paths:
        check_target(Path(index))  # the rest is slow
        opened = open_encoder(encoder or DEFAULT_ENCODER, device)
        with progress_bar() as on_progress:
            tried = best_window(paths, numbers, opened, IndexSettings(), on_progress)
            settings = IndexSettings(split=with_window(IndexSettings().split, tried[0][0]))
            build_index(paths, index, opened, settings, calibrate=False, on_progress=on_progress)
    else:
        opened = open_encoder(encoder or read_manifest(Path(index)).encoder.name, device)
    tuned = tune_index(index, opened, labelled, false_refusals)
    if as_json:
        figures = [{"name": row.name, "mrr": row.mrr, "difference": row.difference} for row in tuned.rows]
        shown = {"windows": tried, "ranking": figures, "changed": tuned.changed, "floor": tuned.manifest.floor}
        click.echo(json.dumps(shown, indent=2))
        return
    for window, mrr in tried:
        click.echo(f"{window} sentences in a passage: MRR@10 {mrr:.3f}")
    click.echo(f"{tuned.num_questions} questions, MRR@10 and its difference to the setting in use (standard error):")
    for row in tuned.rows:
        click.echo(f"  {row.name:<30} {row.mrr:.3f}  {row.difference:+.3f} ({row.spread:.3f})")
    kept = f"now in use: {tuned.rows[0].name}" if tuned.changed else "none is clearly better than what is in use: kept"
    click.echo(kept)
    calibration = tuned.manifest.calibration
    click.echo(
        f"floor {tuned.manifest.floor:.2f}" + (f", {calibration}" if calibration else ": too few questions to fit")
    )


def _own_questions(file: Path) -> list[Labelled]:
    """Those of a file that are not kept to measure with."""
    found = read_labelled(file)
    kept = [each for each in found if not each.for_test]
    if not kept:
        raise ValueError(f"{file}: all {len(found)} questions are of a test (split); give others")
    if len(kept) < len(found):
        click.echo(f"{file}: {len(found) - len(kept):,} questions of a test (split) are left out", err=True)
    return kept


@click.command("evaluate")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--index", type=click.Path(path_type=Path), metavar="DIR", help="An index of the corpus, if there is one."
)
@click.option("--split", default="test", show_default=True, help="Which judgements: qrels/SPLIT.tsv.")
@click.option("--encoder", help="Sentence encoder.  [default: the index's, else minilm]")
@click.option("--run-file", type=click.Path(path_type=Path), help="Write what was found as a TREC run.")
@click.option(
    "--rival", multiple=True, type=click.Path(path_type=Path), help="TREC run of another system, measured beside."
)
@device_option
@json_option
def evaluate_command(
    folder: Path,
    index: Path | None,
    split: str,
    encoder: str | None,
    run_file: Path | None,
    rival: tuple[Path, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Measure retrieval on a BEIR data set in FOLDER: by words, by vectors, and by both.

    Without --index, the corpus is indexed in a temporary folder.
    """
    data = read_beir(folder, split)
    rivals = {str(path): read_trec_run(path) for path in rival}
    num_missing = count_unknown_documents(data)
    with progress_bar() as on_progress:
        results = evaluate_index(data, index, encoder, device, on_progress)
    results |= {name: Result(run, measure(data.qrels, run)) for name, run in rivals.items()}
    if run_file:
        write_trec_run(run_file, results["in use"].run, "parley")
    if as_json:
        click.echo(json.dumps({name: result.figures for name, result in results.items()}, indent=2))
        return
    click.echo(f"{len(data.qrels)} questions, {folder}")
    if num_missing or data.num_unknown or data.num_unjudged:
        click.echo(
            f"{num_missing} judgements are of documents that the corpus lacks, {data.num_unknown} of questions that "
            f"are not there; {data.num_unjudged} questions have no judgement"
        )
    width = max(map(len, ["words   ", *results]))
    click.echo(f"{'':{width}} " + " ".join(f"{name:>10}" for name in MEASURES))
    for name, result in results.items():
        click.echo(f"{name:<{width}} " + " ".join(f"{result.figures[measure]:>10.3f}" for measure in MEASURES))


@click.command("doctor")
@index_option
@encoder_option
@device_option
@json_option
def doctor_command(index: str, encoder: str | None, device: str | None, as_json: bool) -> None:
    """Look for what may be wrong with an index: damage, stale files, another encoder, repeated or overlong passages.

    Exits with 1 where something is.
    """
    findings = []
    for finding in examine(index, encoder, device):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    if any(finding.problem for finding in findings):
        sys.exit(1)


def _show(finding: Finding) -> None:
    if not finding.problem:
        click.echo(printable(f"well   {finding.name:<11} {finding.found}"))
        return
    click.echo(printable(f"AMISS  {finding.name:<11} {finding.problem}"))
    if finding.remedy:
        click.echo(printable(f"{'':19}remedy: {finding.remedy}"))


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--windows {text}: write whole numbers with commas, as in 2,3,5") from None
    for number in numbers:
        replace(IndexSettings().split, window=number, stride=number)  # raises where it is out of range
    return list(dict.fromkeys(numbers))
