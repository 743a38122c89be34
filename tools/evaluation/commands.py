"""The commands of tools/evaluate.py that compare answers: reward, ece, win_rate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from chatbot.assembly import load_model
from chatbot.engines.base import Generation
from chatbot.options import FILE, loading_options
from common.calibration import BY, expected_calibration_error, reliability
from common.files import expand, json_text
from tools.evaluation import judging, rewards
from tools.evaluation.answers import aligned, read_answers, read_scored
from tools.evaluation.outcomes import read_outcomes
from tools.evaluation.report import Draw, rates_plot, reliability_plot, scores_plot, write_report
from tools.evaluation.resuming import NOT_IN_SETTINGS, append_records, done_rows, read_records
from tools.evaluation.statistics import wilson
from tools.evaluation.win_rate import win_figures
from training.data.mixture import Source
from training.data.reading import Report
from training.rl.rewards import open_rewards

FOLDER = click.Path(path_type=Path, file_okay=False)
_SECONDS = 5.0  # between two lines of progress

_bins = click.option("--bins", type=click.IntRange(min=1), multiple=True, default=(5,), help="Of calibration errors.")
_by = click.option("--by", type=click.Choice(BY), default="uniform", help="Bins of equal width, or of equal numbers.")
_report = click.option("--report", type=FOLDER, metavar="DIR", help="Write JSON, Markdown and plots there.")
_skip = click.option(
    "--skip-bad-rows", is_flag=True, help="Count rows that cannot be used, instead of stopping at one."
)


@click.command("reward")
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="JSON Lines of scores to write, or to go on with.")
@_bins
@_by
@_skip
@click.option("--device", help="cpu, cuda:1 ...  [default: the first GPU, else the CPU]")
@click.option(
    "--max-length", type=click.IntRange(min=2), help="Tokens of prompt and answer.  [default: as in training]"
)
@_report
def reward(
    model: str,
    data: tuple[str, ...],
    out: Path,
    bins: tuple[int, ...],
    by: str,
    skip_bad_rows: bool,
    device: str | None,
    max_length: int | None,
    report: Path | None,
) -> None:
    """Score the answers in DATA with the reward MODEL: a directory, a Hugging Face id, the address of a reward server,
    or a function (module:name). DATA: ranked answers, preferences, conversations, or files of `generate` for the same
    prompts. The scores are data for training; where people scored the answers too, the report says how far the model
    agrees."""
    target = expand(out)
    reads = {each: Report() for each in data}
    settings: dict[str, Any] = {"model": model, "skip_bad_rows": skip_bad_rows, "data": _sums(reads)}
    done = done_rows(target, settings if max_length is None else settings | {"max_length": max_length})
    rows = list(read_scored(reads, strict=not skip_bad_rows))
    if done < len(rows):
        found = rewards.scored(open_rewards(model, device=device, max_length=max_length), rows[done:])
        records = (rewards.to_record(*each) for each in found)
        _told(append_records(target, records, done), done, len(rows))
    agreement = rewards.Agreement()
    for record in read_records(target):
        agreement.add(record["scores"], record.get("given"))
    figures = agreement.figures(bins, by)
    plots: dict[str, Draw] = {"scores": scores_plot([score for row in agreement.scores for score in row])}
    if agreement.differences:
        plots |= _reliability_plots(*agreement.confidence(), bins, by)
    about = {"model": model, "data": list(data), "skipped": _skipped(reads), "scores": str(target), "bins_by": by}
    _finish(figures | about, report, "Reward model", plots)


@click.command("ece")
@click.argument("data")
@click.option("--confidence", default="confidence", metavar="COLUMN", help="From 0 to 1.")
@click.option("--correct", default="correct", metavar="COLUMN", help="true or false, 1 or 0.")
@_bins
@_by
@_report
def ece(data: str, confidence: str, correct: str, bins: tuple[int, ...], by: str, report: Path | None) -> None:
    """Expected calibration error: of a file with columns of confidences and outcomes, or of the scores that `reward`
    wrote for answers that people scored too."""
    sure, right = read_outcomes(expand(data), confidence, correct)
    figures: dict[str, Any] = {"predictions": len(sure), "accuracy": sum(right) / len(right)}
    figures |= {"accuracy_ci": wilson(sum(right), len(right)), "mean_confidence": sum(sure) / len(sure)}
    figures |= {f"ece_{num}": expected_calibration_error(sure, right, num, by) for num in bins}
    plots = _reliability_plots(sure, right, bins, by)
    _finish(figures | {"data": data, "bins_by": by}, report, "Calibration", plots)


@click.command("win_rate")
@click.argument("ours")
@click.argument("theirs")
@click.option("--judge", metavar="MODEL", help="Chat model that compares the answers, with --engine and its like.")
@click.option("--reward", "reward_model", metavar="MODEL", help="Reward model, or its server, that does so instead.")
@click.option("--criterion", type=click.Choice(list(judging.CRITERIA)), default="union", help="What is better.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=200, help="Longest reply of the judge.")
@click.option("--at-once", type=click.IntRange(min=1), default=8, help="Replies in the making at a time.")
@click.option("--out", type=FILE, required=True, help="JSON Lines of judgements to write, or to go on with.")
@_skip
@_report
@loading_options
def win_rate(
    ours: str,
    theirs: str,
    judge: str | None,
    reward_model: str | None,
    criterion: str,
    max_tokens: int,
    at_once: int,
    out: Path,
    skip_bad_rows: bool,
    report: Path | None,
    **options: Any,
) -> None:
    """How often the answers in OURS are better than those in THEIRS to the same prompts: files of `generate`, or
    conversations, of which the last answers count. A chat model is asked twice, with both orders."""
    if (judge is None) == (reward_model is None):
        raise ValueError("name one judge: a chat model (--judge MODEL), or a reward model (--reward MODEL)")
    target = expand(out)
    reads = {each: Report() for each in (ours, theirs)}
    settings: dict[str, Any] = {"data": _sums(reads), "skip_bad_rows": skip_bad_rows}
    if judge is None:
        settings |= {"reward": reward_model}
    else:
        loading = {name: value for name, value in options.items() if name not in NOT_IN_SETTINGS}
        settings |= {"judge": judge, "criterion": criterion, "max_tokens": max_tokens, **loading}
    done = done_rows(target, settings)
    columns = [list(read_answers(each, read, strict=not skip_bad_rows)) for each, read in reads.items()]
    pairs = [(one, other) for one, other in aligned(columns, [ours, theirs])]
    if left := pairs[done:]:
        if judge is None:
            judgements = judging.judge_by_reward(open_rewards(reward_model, device=options["device"]), left)
        else:
            generation = Generation(max_tokens=max_tokens)
            judgements = judging.judge_by_chat(load_model(judge, options), left, criterion, generation, at_once)
        records = (judging.to_record(*pair, each) for pair, each in zip(left, judgements, strict=True))
        _told(append_records(target, records, done), done, len(pairs))
    figures = win_figures(list(read_records(target)))
    about = {"ours": ours, "theirs": theirs, "judge": judge or reward_model, "skipped": _skipped(reads)}
    if judge is not None:
        about["criterion"] = criterion
    _finish(figures | about | {"judgements": str(target)}, report, "Win rate", {"win_rate": rates_plot(figures)})


def _sums(reads: Mapping[str, Report]) -> dict[str, str]:
    return {each: read.fingerprint(Source(each)) for each, read in reads.items()}


def _skipped(reads: Mapping[str, Report]) -> dict[str, int]:
    """Rows left out, by reason; what was read of each file goes to stderr."""
    counts: Counter[str] = Counter()
    for read in reads.values():
        counts.update(read.skipped())
        for line in read.lines() if read.num_read else ():
            click.echo(line, err=True)
    return dict(counts)


def _told(counts: Iterable[int], done: int, total: int) -> None:
    """Go through it; a line now and then says how far it is."""
    if done:
        click.echo(f"going on after {done:,} of {total:,} rows", err=True)
    begun = told = time.monotonic()
    for count in counts:
        if (now := time.monotonic()) - told > _SECONDS:
            told = now
            click.echo(f"{count:,} of {total:,} rows, {(count - done) / (now - begun):.2f} a second", err=True)


def _reliability_plots(sure: Sequence[float], right: Sequence[bool], bins: Iterable[int], by: str) -> dict[str, Draw]:
    return {
        f"reliability_{num}": reliability_plot(
            reliability(sure, right, num, by), expected_calibration_error(sure, right, num, by)
        )
        for num in bins
    }


def _finish(figures: Mapping[str, Any], report: Path | None, title: str, plots: Mapping[str, Draw]) -> None:
    if report is not None:
        write_report(expand(report), title, figures, plots)
    click.echo(json_text(figures), nl=False)
