"""Improvements killed at random moments and started again: is it in the end as if nobody had touched them?

    python -m tools.torture.improving --kills 40 --seed 0

A tiny random model learns one reply; rows, training, merging, both measurements, the gate and the switch run in a
forked process, which gets SIGKILL after a random share of the time that an undisturbed run takes, and is started
again, until it ends. All the while the default model must be the old one or the new one, with all its files as they
were written; in the end it must be the one that an undisturbed run makes, to the last bit, promoted once, by the same
figures. Exits with 1 where anything went otherwise.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from common.default_model import default_model
from common.models import models_folder
from tools.improving.figures import FIGURES
from tools.improving.promoting import damaged
from tools.torture.kills import end, start
from tools.torture.resumes import fork_model, preload

MAX_KILLS = 4  # of one improvement, before it may end
_BOT = ("--engine", "transformers", "--no-moderation", "--no-attribution", "--floor", "0", "--max-tokens", "24")
_TRAINING = ("trainer.max_steps=12", "trainer.batch_size=4", "trainer.lr=2e-2", "trainer.samples=0", "model.device=cpu")
_GATE = "refusals_of_unanswerable: {min: 0}\n"  # what is tortured is the way, not the model
_TIMED = {name for name in FIGURES if name.endswith("seconds")}


def prepare(folder: Path) -> None:
    """What every improvement begins with: a home with a first model, an index, questions and a gate."""
    from retrieval.writing.building import build_index

    (folder / "docs").mkdir()
    (folder / "docs" / "bridge.md").write_text("# Bridge\n\nThe bridge was built in 1932.\n")
    start_and_wait(lambda: build_index([folder / "docs"], folder / "index", "hash"))
    (folder / "questions").mkdir()
    turns = [{"role": "user", "content": "Who built it?"}, {"role": "assistant", "content": "Not said."}]
    (folder / "questions" / "train.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 8)
    asked = "".join(json.dumps({"question": f"Who was king in {year}?"}) + "\n" for year in range(1600, 1608))
    (folder / "questions" / "test.jsonl").write_text(asked)
    (folder / "gate.yaml").write_text(_GATE)


def start_and_wait(action: Any) -> None:
    """Run in a process of its own, to its end: this one must not compute."""
    end(start(action), 600)


def improve(folder: Path, home: Path) -> None:
    """One run of the command, in this process. Raises RuntimeError where it refuses."""
    os.environ["PARLEY_HOME"] = str(home)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    from tools.improve import cli

    given = ["--index", folder / "index", "--questions", folder / "questions", "--gate", folder / "gate.yaml"]
    arguments = [*given, "--work", home / "work", *_BOT, *_TRAINING]
    if code := cli.main([str(each) for each in arguments], standalone_mode=False):
        raise RuntimeError(f"exit code {code}")


def result(home: Path) -> dict[str, Any]:
    """What must be the same: which model runs, its files, what happened, and the figures."""
    os.environ["PARLEY_HOME"] = str(home)
    default = default_model()
    if default is None:
        return {}
    report = json.loads((home / "work" / "report" / "report.json").read_text())
    figures = {name: each for name, each in report["figures"].items() if name not in _TIMED}
    return {
        "model": default.model,
        "damaged": damaged(models_folder() / default.model),
        "events": [(each["event"], each["model"]) for each in default.history],
        "figures": figures,
    }


def problem_after_kill(home: Path, new: str) -> str | None:
    """What is wrong with the default model at this moment; None where it is the old one or the new one, and whole."""
    os.environ["PARLEY_HOME"] = str(home)
    try:
        default = default_model()
    except ValueError as error:
        return str(error)
    if default is not None and default.model != new:
        return f"the default model is {default.model}"
    return damaged(models_folder() / default.model) if default is not None else None


def killed(
    folder: Path, home: Path, seconds: float, whole: dict[str, Any], rng: random.Random
) -> tuple[int, list[str]]:
    """One improvement, killed up to MAX_KILLS times, then to its end: how many kills hit, and the problems."""
    hits, problems = 0, []
    for _ in range(rng.randint(1, MAX_KILLS)):
        moment = rng.uniform(0, seconds)
        if not end(start(lambda: improve(folder, home)), moment):
            break
        hits += 1
        if problem := problem_after_kill(home, whole["model"]):
            problems.append(f"after a kill at {moment:.2f} s: {problem}")
    end(start(lambda: improve(folder, home)), 600)
    found = result(home)
    problems += [f"{key}: {found.get(key)}" for key in whole if found.get(key) != whole[key]]
    return hits, problems


@click.command()
@click.option("--kills", default=40, show_default=True, help="To be made.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(kills: int, seed: int) -> None:
    """Kill improvements at random moments."""
    preload()
    rng = random.Random(seed)  # noqa: S311  # moments, not secrets
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parley-improving-") as name:
        folder = Path(name)
        prepare(folder)
        first = folder / "first" / "models" / "smollm2-135m"
        first.parent.mkdir(parents=True)
        os.waitpid(fork_model(first), 0)
        homes = (folder / f"home-{number}" for number in range(sys.maxsize))
        seconds = 0.0
        for _ in range(2):  # the first also fills the caches of the system
            home = _fresh(next(homes), folder / "first")
            started = time.monotonic()
            start_and_wait(lambda home=home: improve(folder, home))
            seconds, whole = time.monotonic() - started, result(home)
        if [event for event, _ in whole.get("events", [])] != ["promoted"]:
            raise RuntimeError("an undisturbed run did not promote its model")
        counts, problems = Counter[str](), list[str]()
        while counts["kills"] < kills:
            home = _fresh(next(homes), folder / "first")
            hits, found = killed(folder, home, seconds, whole, rng)
            counts.update(kills=hits, improvements=1)
            problems += found
            shutil.rmtree(home)
    click.echo(
        f"{counts['improvements']} improvements ({seconds:.1f} s undisturbed) with {counts['kills']} kills in "
        f"{time.monotonic() - began:.0f} s, {len(problems)} problems"
    )
    for problem in problems[:10]:
        click.echo(f"  {problem}")
    sys.exit(1 if problems else 0)


def _fresh(home: Path, first: Path) -> Path:
    shutil.copytree(first, home)
    return home


if __name__ == "__main__":
    main()
