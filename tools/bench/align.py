"""Preference methods beside TRL: the time of a step and peak memory of `dpo` and `reward`, on the same rows in one run.

Run: python -m tools.bench.align [--model smollm2-135m] [--steps 4] [--data FILE] [--peft lora]

Both train on the same token ids in the same order, with the same settings and the same first weights, which the losses
show. The time of a step is from the end of one to the end of the next, the median; beside it stands CPU time (user and
system, all threads), which other work on the machine disturbs less. Each contender runs in a process of its own, so
that peak memory is its own.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from tools.bench.contenders import measured

LR, SEED = 1e-5, 42
_CHARACTERS = 900  # of a text of the documentation, when there is no other data


@click.command(cls=OneLineCommand)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--steps", type=click.IntRange(2), default=4, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Pairs of a step.")
@click.option("--length", type=click.IntRange(16), default=512, show_default=True, help="Tokens of an answer at most.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Preferences, in any known format.")
@click.option("--peft", help="Train an adapter of this method: lora.")
@click.option("--contender", hidden=True)
@click.argument("arguments", nargs=-1)
def cli(
    model: str,
    steps: int,
    batch_size: int,
    length: int,
    data: Path | None,
    peft: str | None,
    contender: str | None,
    arguments: Sequence[str],
) -> None:
    """Print time and memory of preference methods beside those of TRL."""
    if contender:
        click.echo(json.dumps(CONTENDERS[contender](Path(arguments[0]), arguments[1:])))
        return
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as folder:
        work = Path(folder)
        pairs = data or _pairs_of_docs(work / "pairs.jsonl")
        common = [f"model={model}", f"data={pairs}", f"data.cache={work / 'cache'}", f"data.max_length={length}"]
        common += [f"trainer.batch_size={batch_size}", f"trainer.max_steps={steps}", f"trainer.lr={LR}"]
        common += ["trainer.schedule=constant", "trainer.warmup=0", f"trainer.seed={SEED}", "data.on_bad_row=skip"]
        common += [f"peft={peft}"] if peft else []
        click.echo(f"{'':<18}{'s/step':>9}{'CPU s':>9}{'peak GiB':>10}  losses of the first steps")
        for method in ("dpo", "reward"):
            _compare(method, [*common, f"method={method}"], work / f"{method}.json")


def _compare(method: str, overrides: Sequence[str], rows: Path) -> None:
    dumped = measured("tools.bench.align", "rows", rows, overrides)
    ours, theirs = (measured("tools.bench.align", name, rows, overrides) for name in ("parley", "trl"))
    click.echo(f"{method}: {dumped['tokens']:,} tokens a step, {dumped['with_loss']:,} of them in answers")
    for name, found in (("  trl", theirs), ("  parley", ours)):
        losses = " ".join(f"{loss:.4f}" for loss in found["losses"][:3])
        click.echo(f"{name:<18}{found['wall']:>9.2f}{found['cpu']:>9.2f}{found['memory']:>10.2f}  {losses}")
    ratios = [ours[key] / theirs[key] for key in ("wall", "cpu", "memory")]
    click.echo(f"{'  parley / trl':<18}{ratios[0]:>9.2f}{ratios[1]:>9.2f}{ratios[2]:>10.2f}")


# Contenders -----------------------------------------------------------------------------------------------------------


def _dump_rows(rows: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Write the pairs that Parley will see, in their order, for TRL: [better, worse], each (prompt, answer)."""
    from functools import partial

    from training.config.door import compose
    from training.examples.answers import AnswerMaker
    from training.examples.preparing import prepare
    from training.methods import dpo, reward
    from training.methods.pairs import Pairs, list_of, pairs_of
    from training.models import load

    config = compose(overrides)
    loaded = load(config)
    ranked = config.method.name == "reward"
    choose: Any = list_of if ranked else partial(pairs_of, pairs=Pairs.best_over_rest)
    kinds = reward.KINDS if ranked else dpo.KINDS
    train = prepare(
        config,
        loaded,
        kinds,
        lambda: AnswerMaker(loaded.renderer, config.data.max_length, choose, 2),
        ["bench", ranked],
    ).train
    steps, size = config.trainer.max_steps or 0, config.trainer.batch_size
    if len(train) < steps * size:
        raise ValueError(f"the data has {len(train):,} pairs; {steps} steps of {size} need more")
    pairs = [train.row(0, number) for number in range(steps * size)]
    for pair in pairs:
        pair.sort(key=lambda each: -each.values[0] if ranked else 0)  # ranked answers stand as in the data
    split = [[(each.ids[~each.mask].tolist(), each.ids[each.mask].tolist()) for each in pair] for pair in pairs]
    rows.write_text(json.dumps(split))
    flat = [side for pair in split for side in pair]
    answers = sum(len(answer) for _, answer in flat)
    return {"tokens": (answers + sum(len(prompt) for prompt, _ in flat)) // steps, "with_loss": answers // steps}


def _parley(rows: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The real door, and what it wrote into metrics.jsonl."""
    from training.config.door import compose
    from training.methods import method_run

    run = rows.parent / f"run-{rows.stem}"
    config = compose([*overrides, f"trainer.output={run}", "trainer.log_every=1", "trainer.save_every=null"])
    found = _clocked(lambda: method_run(config.method.name)(config))
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return found | {"losses": [line["loss"] for line in logged if "loss" in line]}


def _trl(rows: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """TRL's trainer on the same ids, without what would only slow it down on a CPU."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from training.config.door import compose
    from training.models import Head, load

    config = compose(overrides)
    ranked = config.method.name == "reward"
    loaded = load(config, head=Head(("reward",)) if ranked else None)
    settings: dict[str, Any] = {
        "output_dir": str(rows.parent / f"trl-{rows.stem}"),
        "per_device_train_batch_size": config.trainer.batch_size,
        "max_steps": config.trainer.max_steps,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": config.trainer.optimizer,
        "max_length": config.data.max_length,
        "bf16": False,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": SEED,
    }
    pairs = json.loads(rows.read_text())
    some = Dataset.from_list([{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}])  # the real rows are tokens already
    trainer: Any
    if ranked:
        trainer = RewardTrainer(
            loaded.model, RewardConfig(**settings), train_dataset=some, processing_class=loaded.tokenizer
        )
        columns = [{"chosen_ids": b[0] + b[1], "rejected_ids": w[0] + w[1]} for b, w in pairs]
    else:
        reference = None if config.peft.name else load(config).model  # an adapter is switched off instead
        trainer = DPOTrainer(
            loaded.model, reference, DPOConfig(**settings), train_dataset=some, processing_class=loaded.tokenizer
        )
        columns = [{"prompt_ids": b[0], "chosen_ids": b[1], "rejected_ids": w[1]} for b, w in pairs]
    trainer.train_dataset = Dataset.from_list(columns)
    found = _clocked(trainer.train)
    return found | {"losses": [line["loss"] for line in trainer.state.log_history if "loss" in line]}


def _clocked(train: Callable[[], object]) -> dict[str, float]:
    """Seconds and CPU seconds from the end of a step to the end of the next, medians; peak memory in GiB up to the last
    step, without what is written afterwards."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from training.tracking.throughput import peak_memory

    ends: list[tuple[float, float, float]] = []

    def ended(*_: object) -> None:
        ends.append((time.perf_counter(), time.process_time(), peak_memory()["memory_gib"]))

    handle = register_optimizer_step_post_hook(ended)
    train()
    handle.remove()
    steps = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(ends)]
    wall, cpu = (statistics.median(column) for column in zip(*steps, strict=True))
    return {"wall": wall, "cpu": cpu, "memory": ends[-1][2]}


CONTENDERS = {"rows": _dump_rows, "parley": _parley, "trl": _trl}


def _pairs_of_docs(path: Path) -> Path:
    """Pairs of texts of Parley's own documentation, of which the one that goes on is better."""
    pages = sorted((Path(__file__).parents[2] / "docs").rglob("*.md"))
    with open(path, "w", encoding="utf-8") as file:
        for page in pages:
            text = page.read_text("utf-8")
            parts = [text[start : start + _CHARACTERS] for start in range(0, len(text) - _CHARACTERS, _CHARACTERS)]
            for before, after, other in zip(parts, parts[1:], parts[3:], strict=False):
                prompt = f"Go on: {before[-300:]}"
                file.write(json.dumps({"prompt": prompt, "chosen": after, "rejected": other}) + "\n")
    return path


if __name__ == "__main__":
    cli()
