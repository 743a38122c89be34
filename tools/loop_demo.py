"""The whole loop on the sample library: documents and feedback make the small model better, or the gate refuses it.

Run: python tools/loop_demo.py    (or: make loop-demo)

Builds an index of docs/sample, makes test and training rows of the questions in tools/improving/sample/, fits the
index's floor to those for training, trains on them and on a sample feedback log, and measures the old and the new model
on the questions held out. What is promoted is so in a home of the demonstration's own, `WORK/home`: your bot stays as
it is. The same command again goes on, or shows the table; delete WORK to begin anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click

from common.cli import OneLineCommand
from common.files import expand
from common.models import resolve_model
from tools.improve import REFUSED

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = Path("tools/improving/sample")
MODELS = ("smollm2-135m", "minilm")
# 80 steps of 4 rows: each row once or twice.
TRAINING = (
    "trainer.max_steps=80",
    "trainer.batch_size=4",
    "trainer.lr=5e-4",
    "trainer.samples=0",
    "trainer.save_every=20",
    "data.max_length=512",
)


@click.command(cls=OneLineCommand)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default="runs/loop-demo", show_default=True)
def cli(work: Path) -> None:
    """Show the whole loop on the sample library, in about ten minutes on two cores."""
    work = expand(work).absolute()
    _make_home(work / "home")
    began = time.monotonic()
    index, questions = work / "index", work / "questions"
    if not (ready := work / "ready").is_file():
        _run(work, "-m", "retrieval", "build", "docs/sample", "--index", index)
        given = ("--questions", SAMPLE / "questions.jsonl", "--test-share", 0.35)
        _run(work, "tools/make_qa.py", index, "--out", questions, *given, quiet=True)
        _run(work, "-m", "retrieval", "tune", "--index", index, "--questions", questions / "questions.jsonl")
        ready.touch()
    learned = ("--feedback", SAMPLE / "feedback.jsonl", "--questions", questions)
    bot = ("--index", index, "--max-tokens", 64, "--no-moderation")
    code = _run(work, "tools/improve.py", *bot, *learned, "--work", work / "improve", *TRAINING)
    _run(work, "tools/improve.py", "--status")
    if code == 0:
        _run(work, "tools/improve.py", "--rollback")
    click.echo(f"\n{(time.monotonic() - began) / 60:.1f} minutes; all of it is in {work}")


def _make_home(home: Path) -> None:
    """A PARLEY_HOME with the prepared models linked in."""
    (home / "models").mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        if not (home / "models" / name).exists():
            (home / "models" / name).symlink_to(Path(resolve_model(name)).resolve())


def _run(work: Path, *arguments: object, quiet: bool = False) -> int:
    """One command, shown as it is typed; its exit code. Raises ValueError where it fails."""
    words = [str(each) for each in arguments]
    click.echo(f"\n$ python {' '.join(words)}", err=True)
    environment = {**os.environ, "PARLEY_HOME": str(work / "home")}
    out = subprocess.DEVNULL if quiet else None
    sys.stdout.flush()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, stdout=out, check=False)
    if done.returncode not in (0, REFUSED):
        raise ValueError(f"python {words[0]} ended with {done.returncode}; the same command goes on from there")
    return done.returncode


if __name__ == "__main__":
    cli()
