"""Speed of the transformers engine beside transformers' own `generate`, same model, same prompts, same run.

Run: python -m tools.bench.generation [--model smollm2-135m] [--repeat 5]

The two alternate, so that a change in the machine's load meets both; medians are shown.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import click

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions
from chatbot.engines.base import Generation
from chatbot.engines.transformers_engine import TransformersModel, load
from chatbot.prompting import with_passages
from common.cli import OneLineCommand
from retrieval.types import Passage

NUM_TOKENS = 48


def _prompts() -> dict[str, Conversation]:
    text = "Zurich is the largest city in Switzerland. It lies where the river Limmat leaves Lake Zurich. " * 4
    passages = [Passage(str(n), text, "Zurich", "zurich.md", 1, 2) for n in range(6)]
    question = "Write a long story about a river and a town."
    return {
        "short": Conversation().add("user", question),
        "with passages": Conversation().add("user", with_passages(question, passages)),
    }


def _ours(model: TransformersModel, conversation: Conversation, num_tokens: int) -> float:
    model.forget()  # `generate` reads the whole prompt each time
    started = time.perf_counter()
    for _ in model.stream(conversation, Generation(max_tokens=num_tokens)):
        pass
    return time.perf_counter() - started


def _theirs(model: TransformersModel, conversation: Conversation, num_tokens: int) -> float:
    import torch

    ids_BT = torch.tensor([model.renderer.ids(conversation)])
    arguments: dict[str, Any] = {"max_new_tokens": num_tokens, "do_sample": False}
    generate: Any = model.model.generate
    started = time.perf_counter()
    generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **arguments)
    return time.perf_counter() - started


@click.command(cls=OneLineCommand)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
def cli(model: str, repeat: int) -> None:
    """First token and tokens per second, Parley and generate side by side."""
    loaded = load(model, LoadOptions())
    _ours(loaded, _prompts()["short"], 2)
    click.echo(f"{'prompt':>14} {'tokens':>6} | {'first token, s':^24} | {'tokens/s':^24}")
    click.echo(
        f"{'':>14} {'':>6} | {'Parley':>8}{'generate':>9}{'ratio':>6} | {'Parley':>8}{'generate':>9}{'ratio':>6}"
    )
    for name, conversation in _prompts().items():
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(repeat):
            for num_tokens in (1, NUM_TOKENS):
                times.setdefault(("ours", num_tokens), []).append(_ours(loaded, conversation, num_tokens))
                times.setdefault(("theirs", num_tokens), []).append(_theirs(loaded, conversation, num_tokens))
        median = {key: statistics.median(values) for key, values in times.items()}
        first = [median[who, 1] for who in ("ours", "theirs")]
        rate = [(NUM_TOKENS - 1) / (median[who, NUM_TOKENS] - median[who, 1]) for who in ("ours", "theirs")]
        click.echo(
            f"{name:>14} {loaded.count_tokens(conversation):>6} "
            f"| {first[0]:>8.3f}{first[1]:>9.3f}{first[0] / first[1]:>6.2f} "
            f"| {rate[0]:>8.1f}{rate[1]:>9.1f}{rate[0] / rate[1]:>6.2f}"
        )


if __name__ == "__main__":
    cli()
