"""Make training data of what people said about answers: the log that the shell and the server keep.

Run: python tools/feedback.py review feedback/feedback.jsonl
     python tools/feedback.py export feedback/feedback.jsonl --sft sft.jsonl --preferences pairs.jsonl --mask emails
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from chatbot.options import FILE
from chatbot.terminal import Keyboard, Screen, is_terminal
from common.cli import OneLineGroup
from common.files import check_can_write, expand, json_text
from tools.feedback_data.exporting import FORMATS, exported, gathered
from tools.feedback_data.masking import CLASSES, Masker
from tools.feedback_data.reading import read_entries
from tools.feedback_data.reviewing import DECISIONS, Decision, review, unreviewed
from tools.generating.writing import only_writer, write_rows
from training.data.reading import Report

_LOG = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group(cls=OneLineGroup, context_settings={"show_default": True})
def cli() -> None:
    """Training data from ratings and corrections of answers."""


@cli.command("export")
@click.argument("feedback", nargs=-1, required=True, type=_LOG)
@click.option("--sft", type=FILE, help="Write good and corrected answers there, as `messages`.")
@click.option("--preferences", type=FILE, help="Write better over worse answers to one prompt there, as `preference`.")
@click.option("--ranked", type=FILE, help="Write the answers to one prompt with scores there, as `ranked`.")
@click.option("--mask", default="", metavar="CLASSES", help=f"Personal data to mask, of: {','.join(CLASSES)}.")
@click.option("--reviewed-only", is_flag=True, help="Only what `review` kept or edited.")
def export(
    feedback: tuple[Path, ...],
    sft: Path | None,
    preferences: Path | None,
    ranked: Path | None,
    mask: str,
    reviewed_only: bool,
) -> None:
    """Write what can be learned from FEEDBACK, one log or several. Each file is written whole or not at all; figures go
    to stdout as JSON, and what was left out, and why, to stderr too."""
    named = {"sft": sft, "preferences": preferences, "ranked": ranked}
    targets = {kind: expand(path) for kind, path in named.items() if path is not None}
    if not targets:
        raise ValueError("nothing to write; name a file: " + ", ".join(f"--{kind} FILE" for kind in FORMATS))
    _check_different([*feedback, *targets.values()])
    masker = Masker([each.strip() for each in mask.split(",") if each.strip()])
    log = Report(location=", ".join(map(str, feedback)))
    log.formats["feedback"] = len(feedback)
    reports = {kind: Report() for kind in targets}
    with contextlib.ExitStack() as locks:  # before anything is read: two exports must not mix
        held = {kind: locks.enter_context(only_writer(path)) for kind, path in targets.items()}
        asked = gathered(read_entries(feedback, log, reviewed_only), masker, log)
        written = {kind: write_rows(path, exported(kind, asked, reports[kind])) for kind, path in held.items()}
    for report in (log, *reports.values()):
        for line in report.lines():
            click.echo(line, err=True)
    figures = {
        "lines": log.num_read,
        "entries": log.num_given,
        "prompts": len(asked),
        "left_out": log.skipped(),
        "changed": dict(log.changed),
        "masked": dict(masker.counts),
    }
    for kind, num in written.items():
        figures[kind] = {"file": str(targets[kind]), "rows": num, "left_out": reports[kind].skipped()}
    click.echo(json_text(figures), nl=False)


@cli.command("review")
@click.argument("feedback", type=_LOG)
def review_(feedback: Path) -> None:
    """Go through FEEDBACK in the terminal: keep, drop or correct each answer. Decisions are further lines of the log,
    the last of which holds; run again it goes on."""
    report = Report(location=str(feedback))
    report.formats["feedback"] = 1
    lines = list(unreviewed(feedback, report))
    if not is_terminal():
        raise ValueError(f"{feedback}: {len(lines)} answers to review, and no terminal to ask in; `export` needs none")
    check_can_write(feedback)
    for about in report.lines():
        click.echo(about, err=True)
    keyboard: list[Keyboard] = []

    def edit(text: str) -> str:
        keyboard[:] = keyboard or [Keyboard([])]
        return keyboard[0].read(text)

    done = review(feedback, lines, Screen(), _decide, edit)
    left = f"; {len(lines) - done:,} left, the same command goes on" if done < len(lines) else ""
    click.echo(f"{feedback}: {done:,} reviewed{left}", err=True)


def _decide() -> Decision:
    while True:
        try:
            said = click.prompt("keep, drop, edit or quit", prompt_suffix="? ").strip().lower()
        except click.Abort:  # Ctrl-D, Ctrl-C: what was decided is written
            click.echo(err=True)
            return "quit"
        if said and (found := [each for each in DECISIONS if each.startswith(said)]):
            return found[0]


def _check_different(paths: list[Path]) -> None:
    """ValueError where two of the files are one."""
    known: set[Path] = set()
    for path in paths:
        if path.resolve() in known:
            raise ValueError(f"{path} is named twice; each file must be another")
        known.add(path.resolve())


if __name__ == "__main__":
    cli()
