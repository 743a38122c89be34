"""Whether PPO learns what it is paid for: a rule as the reward, held-out prompts, several seeds, and one run without
the KL penalty, which leaves the untrained model.

Run: python -m tools.bench.rl [--model smollm2-135m --rounds 12 --lr 3e-4 --lora]

Without --model it is a small model with random weights: minutes on one core. The rule is the share of an answer's
characters that are the letter e.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import click

from common.cli import OneLineCommand
from tools.torture.resumes import tiny_model

NUM_PROMPTS, NUM_HELD_OUT = 64, 64
# Of the tiny model only the tokenizer is used, and what is not said here.
_SMALL = (
    "model.from_scratch=true",
    "model.config={hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 4, head_dim: 16, tie_word_embeddings: false, initializer_range: 0.1}",
)
_THINGS = ("river", "bridge", "garden", "engine", "letter", "market", "planet", "violin")


def letter_e(_: list[dict[str, str]], answers: list[str]) -> list[float]:
    """The share of each answer's characters that are an e, times ten."""
    return [10 * answer.lower().count("e") / max(len(answer), 8) for answer in answers]


@click.command(cls=OneLineCommand)
@click.option("--model", help="A model to train; without it a small one with random weights.")
@click.option("--seeds", default=3, show_default=True, help="Runs, each with a seed of its own.")
@click.option("--rounds", default=30, show_default=True, help="Rounds of a run.")
@click.option("--lr", default=1e-3, show_default=True, help="Learning rate.")
@click.option("--kl-coeff", default=0.2, show_default=True, help="Of the KL penalty.")
@click.option("--target", default=10.0, show_default=True, help="Nats an answer that are aimed at.")
@click.option("--lora", is_flag=True, help="Train an adapter.")
@click.option("--free/--no-free", default=True, show_default=True, help="One more run without the penalty.")
def cli(
    model: str | None, seeds: int, rounds: int, lr: float, kl_coeff: float, target: float, lora: bool, free: bool
) -> None:
    """Print reward and KL of held-out prompts, before and after."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        common = [
            *([f"model={model}"] if model else [f"model={tiny_model(place / 'model')}", *_SMALL]),
            f"data={_prompts(place / 'train.jsonl', 0, NUM_PROMPTS)}",
            f"data.eval={_prompts(place / 'eval.jsonl', NUM_PROMPTS, NUM_HELD_OUT)}",
            f"trainer.epochs={rounds}",
            f"trainer.lr={lr}",
            *(["peft=lora"] if lora else []),
        ]
        for seed in range(seeds):
            more = [f"trainer.seed={seed}", f"method.kl_coeff={kl_coeff}", f"method.kl_target={target}"]
            _show(f"seed {seed}", _run(place / f"seed-{seed}", [*common, *more]), target)
        if free:
            lines = _run(place / "free", [*common, "trainer.seed=0", "method.kl_coeff=0", "method.max_kl=null"])
            _show("no KL penalty", lines, target)


def _run(output: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """The lines of the metrics of a run."""
    from training.config.door import compose
    from training.methods.ppo import run
    from training.tracking.metrics import METRICS

    config = compose(
        [
            "method=ppo",
            f"method.reward={__spec__.name if __spec__ else __name__}:letter_e",
            "method.prompts=32",
            "method.new_tokens=24",
            "method.rollout_batch=32",
            "data.max_length=128",
            "trainer.batch_size=16",
            "trainer.schedule=constant",
            "trainer.eval_every=1000000",
            "trainer.save_epochs=false",
            "trainer.log_every=1000000",
            f"trainer.output={output}",
            *overrides,
        ]
    )
    run(config)
    return [json.loads(line) for line in (output / METRICS).read_text("utf-8").splitlines()]


def _show(name: str, lines: list[dict[str, Any]], target: float) -> None:
    evaluations = [line for line in lines if "eval_reward" in line]
    rounds = [line for line in lines if "round" in line]
    before, after = evaluations[0]["eval_reward"], evaluations[-1]["eval_reward"]
    error = math.sqrt((rounds[0]["reward_std"] ** 2 + rounds[-1]["reward_std"] ** 2) / NUM_HELD_OUT)
    kls = [*(line["kl"] for line in rounds), evaluations[-1]["eval_kl"]]
    click.echo(
        f"{name:<14} reward {before:6.3f} -> {after:6.3f}  ({(after - before) / error:5.1f} standard errors)  "
        f"KL at the end {evaluations[-1]['eval_kl']:6.2f}, at most {max(kls):6.2f} (target {target:g})  "
        f"coefficient {rounds[-1]['kl_coeff']:.3f}"
    )


def _prompts(path: Path, first: int, num: int) -> Path:
    """Questions; no two are the same."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(first, first + num):
            text = f"Say something about {number} and a {_THINGS[number % len(_THINGS)]}."
            file.write(json.dumps({"prompt": text}) + "\n")
    return path


if __name__ == "__main__":
    cli()
