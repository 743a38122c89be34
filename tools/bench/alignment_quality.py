"""The whole chain on real preferences: do DPO, RRHF and rejection raise a learned reward on prompts held out?

Run: python -m tools.bench.alignment_quality --data PATH --work FOLDER [--prompts 96] [--samples 4]

PATH is a file of preferences or scored answers, in any known format, or a folder of such files, which should prefer the
same things (what is harmless is often not what is helpful). Prompts are split by their words, so that none is on both
sides. Then, each step a command that anyone could give:

1. `reward` on the training pairs; held-out pair accuracy with its interval. A small encoder, or `--reward-model`.
2. `sft` on the best answers; several answers of this model to training prompts are sampled and scored by the reward.
3. `dpo`, `rrhf` and `rejection` go on from there with these scores.
4. Answers of all four to held-out prompts, drawn as those that were trained on, and greedy ones: their mean reward, the
   difference to SFT over the same prompts with its 95 % interval (bootstrap), win rate, length.

What is finished in --work is not done again: after a kill, or with more to do, give the same command.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from common.cli import OneLineCommand
from common.files import atomic_write
from tools.evaluation.resuming import read_records
from tools.evaluation.statistics import bootstrap_ratio
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import RankedRow

METHODS = ("dpo", "rrhf", "rejection")
HELD_OUT = 30  # of 100 prompts
DRAWN = 2  # answers to a held-out prompt
_PROMPT = 240  # characters of a prompt that the policy answers, at most
_TOKENS = 48  # of an answer of the policy


class Chain(NamedTuple):
    """Where it works, and the models it begins with."""

    work: Path
    policy: str
    reward_model: str
    seed: int


@click.command(cls=OneLineCommand)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="A file, or a folder.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Kept, and gone on with.")
@click.option("--policy", default="smollm2-135m", show_default=True)
@click.option("--reward-model", default="minilm", show_default=True, help="What the reward model is made of.")
@click.option("--reward-epochs", default=2.0, show_default=True)
@click.option("--sft-rows", type=click.IntRange(1), default=256, show_default=True)
@click.option("--prompts", type=click.IntRange(1), default=96, show_default=True, help="That are sampled from.")
@click.option("--samples", type=click.IntRange(2), default=4, show_default=True, help="Answers to each.")
@click.option("--held-out", type=click.IntRange(1), default=128, show_default=True, help="Prompts to compare on.")
@click.option("--epochs", default=3.0, show_default=True, help="Of dpo, rrhf and rejection.")
@click.option("--seed", default=42, show_default=True)
@click.option("--only-reward", is_flag=True, help="Stop after the reward model.")
def cli(
    data: Path,
    work: Path,
    policy: str,
    reward_model: str,
    reward_epochs: float,
    sft_rows: int,
    prompts: int,
    samples: int,
    held_out: int,
    epochs: float,
    seed: int,
    only_reward: bool,
) -> None:
    """Train a reward model and policies on real preferences, and compare them on held-out prompts."""
    work.mkdir(parents=True, exist_ok=True)
    chain = Chain(work, policy, reward_model, seed)
    train, held = _split(data, work)
    _reward(chain, reward_epochs)
    if only_reward:
        return
    _write(work / "sft.jsonl", [_chat(row) for row in _short(train)[:sft_rows]])
    _write(work / "prompts.jsonl", [_prompt(row) for row in _short(train)[-prompts:]])
    _write(work / "held-out.jsonl", [_prompt(row) for row in _short(held)[:held_out]])
    _train(chain, "sft", policy, "sft.jsonl", 1.0, "data.max_length=192")
    _sample(chain, samples)
    for method in METHODS:
        _train(chain, method, str(work / "sft"), "sampled.jsonl", epochs, "data.max_length=192")
    _compare(chain, "drawn", {number: _chance(seed + number) for number in range(DRAWN)})
    _compare(chain, "greedy", {"greedy": ()})


def _split(data: Path, work: Path) -> tuple[list[RankedRow], list[RankedRow]]:
    """(training, held-out) rows of all files, and files of them, in an order of their own."""
    parts: dict[bool, dict[str, RankedRow]] = {False: {}, True: {}}
    for path in sorted(path for path in data.iterdir() if path.is_file()) if data.is_dir() else [data]:
        report = Report()
        try:
            rows = [row for _, row in read_rows(Source(str(path)), (RankedRow,), report, strict=False)]
        except ValueError as error:  # no preferences: said, and left out
            click.echo(f"{path.name} is left out: {error}", err=True)
            continue
        for line in report.lines():
            click.echo(line, err=True)
        for row in rows:
            if isinstance(row, RankedRow) and row.prompt is not None and len(set(row.scores)) > 1:
                key = hashlib.sha256(" ".join(row.prompt.messages[0].content.split()).encode()).hexdigest()
                parts[int(key, 16) % 100 < HELD_OUT][key + row.responses[0]] = row
    ordered = {held: [row for _, row in sorted(rows.items())] for held, rows in parts.items()}
    for held, name in ((False, "train.jsonl"), (True, "held.jsonl")):
        _write(work / name, [_ranked(row) for row in ordered[held]])
    return ordered[False], ordered[True]


def _reward(chain: Chain, epochs: float) -> None:
    longest = "data.max_length=128"
    _train(chain, "reward", chain.reward_model, "train.jsonl", epochs, longest, "trainer.lr=1e-4", adapter=False)
    files = (chain.work / "held.jsonl", "--out", chain.work / "held-scores.jsonl")
    report = ("--bins", 5, "--bins", 10, "--report", chain.work / "reward-report")
    found = _evaluate("reward", chain.work / "reward", *files, *report)
    low, high = found["pair_accuracy_ci"]
    click.echo(
        f"reward: held-out pair accuracy {found['pair_accuracy']:.3f} (95 % {low:.3f} to {high:.3f}) over "
        f"{found['pairs']:,} pairs, calibration error {found['ece_10']:.3f}"
    )


def _train(chain: Chain, method: str, model: str, data: str, epochs: float, *more: str, adapter: bool = True) -> None:
    common = [f"method={method}", f"model={model}", f"data={chain.work / data}", f"data.cache={chain.work / 'cache'}"]
    common += [f"trainer.output={chain.work / method}", f"trainer.epochs={epochs}", f"trainer.seed={chain.seed}"]
    common += [
        "trainer.batch_size=8",
        "trainer.save_every=null",
        *(["peft=lora", "trainer.lr=1e-4"] if adapter else []),
    ]
    _run("training/main.py", *common, *more)


def _sample(chain: Chain, samples: int) -> None:
    """Several answers of the SFT model to each training prompt, scored: data for the methods."""
    files = [chain.work / f"sample-{number}.jsonl" for number in range(samples)]
    for number, file in enumerate(files):
        _answer(chain, "sft", "prompts.jsonl", file, *_chance(chain.seed + number))
    _evaluate("reward", chain.work / "reward", *files, "--out", chain.work / "sampled.jsonl")


def _chance(seed: int) -> tuple[object, ...]:
    """Flags for an answer drawn from what the model thinks likely, as it is."""
    return ("--sample", "--temperature", 1.0, "--top-k", 0, "--seed", seed)


def _answer(chain: Chain, policy: str, prompts: str, out: Path, *more: object) -> None:
    fixed = ("--engine", "transformers", "--max-tokens", _TOKENS, "--at-once", 16)
    _run("tools/evaluate.py", "generate", chain.work / policy, chain.work / prompts, "--out", out, *fixed, *more)


def _compare(chain: Chain, how: str, flags: Mapping[object, Sequence[object]]) -> None:
    """A table of the policies' answers to the held-out prompts, one for each entry of `flags`."""
    scores: dict[str, list[float]] = {}
    answers: dict[str, list[Path]] = {}
    for policy in ("sft", *METHODS):
        answers[policy] = [chain.work / f"answers-{policy}-{name}.jsonl" for name in flags]
        for file, more in zip(answers[policy], flags.values(), strict=True):
            _answer(chain, policy, "held-out.jsonl", file, *more)
        scored = chain.work / f"scores-{policy}-{how}.jsonl"
        _evaluate("reward", chain.work / "reward", *answers[policy], "--out", scored)
        scores[policy] = [sum(row["scores"]) / len(row["scores"]) for row in read_records(scored)]
    click.echo(f"{how:<12}{'reward':>9}{'over SFT':>10}{'95 % interval':>20}{'win rate':>10}{'characters':>12}")
    for policy, found in scores.items():
        lengths = [len(row["answer"]) for file in answers[policy] for row in read_records(file)]
        rest = "" if policy == "sft" else _difference(found, scores["sft"]) + _won(chain, answers, policy)
        click.echo(f"{policy:<12}{sum(found) / len(found):>9.3f}{rest:<40}{sum(lengths) / len(lengths):>12.0f}")


def _difference(found: Sequence[float], before: Sequence[float]) -> str:
    differences = [one - other for one, other in zip(found, before, strict=True)]
    low, high = bootstrap_ratio(differences, [1] * len(differences)) or (0.0, 0.0)
    between = f"{low:+.3f} to {high:+.3f}"
    return f"{sum(differences) / len(differences):>+10.3f}{between:>20}"


def _won(chain: Chain, answers: Mapping[str, Sequence[Path]], policy: str) -> str:
    """How often the first answer of `policy` has more reward than the first of SFT."""
    files, out = (answers[policy][0], answers["sft"][0]), chain.work / f"won-{answers[policy][0].name}"
    won = _evaluate("win_rate", *files, "--reward", chain.work / "reward", "--out", out)
    return f"{won['win_rate']:>10.3f}"


# Rows and commands ----------------------------------------------------------------------------------------------------


def _short(rows: Sequence[RankedRow]) -> list[RankedRow]:
    return [row for row in rows if sum(len(each.content) for each in row.prompt or ()) <= _PROMPT]


def _ranked(row: RankedRow) -> dict[str, Any]:
    return _prompt(row) | {"responses": list(row.responses), "scores": list(row.scores)}


def _prompt(row: RankedRow) -> dict[str, Any]:
    return {"prompt": row.prompt.to_dicts() if row.prompt else None}


def _chat(row: RankedRow) -> dict[str, Any]:
    known = [(score, text) for text, score in zip(row.responses, row.scores, strict=True) if score is not None]
    best = max(known, key=lambda each: each[0])[1]
    return {"messages": [*(row.prompt.to_dicts() if row.prompt else ()), {"role": "assistant", "content": best}]}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        raise ValueError(f"no row for {path.name}; the data has too few preferences with short prompts")
    with atomic_write(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _evaluate(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run("tools/evaluate.py", *arguments))
    return found


def _run(script: str, *arguments: object) -> str:
    """Its stdout; what it says on stderr is shown. Raises ValueError where it fails."""
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / script), *map(str, arguments)]
    click.echo(f"$ {script} {' '.join(command[2:])}", err=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{script} ended with exit code {done.returncode}; it said why above")
    return done.stdout


if __name__ == "__main__":
    cli()
