"""Seconds from the command to the end of a first answer and of an empty input, beside bare imports of the libraries.

Run: python -m tools.bench.startup [--index indexes/sample] [--repeat 5]

An empty input shows the start alone: interpreter, imports, model, index. The peer is the least that any program on
these libraries pays: importing torch and the transformers classes that are needed, and loading the same weights.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import click

from common.cli import OneLineCommand
from common.files import home
from common.models import resolve_model

_BARE = """
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
for place, kind in (({chat!r}, AutoModelForCausalLM), ({encoder!r}, AutoModel)):
    AutoTokenizer.from_pretrained(place)
    kind.from_pretrained(place)
import faiss
"""


def _seconds(command: list[str], text: str, repeat: int) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@click.command(cls=OneLineCommand)
@click.option("--index", default=str(home() / "indexes" / "sample"), show_default="indexes/sample")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
def cli(index: str, repeat: int) -> None:
    """Start-up time of the shell beside the libraries' own."""
    bare = _BARE.format(chat=resolve_model("smollm2-135m"), encoder=resolve_model("minilm"))
    bot = [sys.executable, "-m", "chatbot.bot", "--index", index]
    _seconds(bot, "", 1)
    libraries = _seconds([sys.executable, "-c", bare], "", repeat)
    start = _seconds(bot, "", repeat)
    answer = _seconds(bot, "What is Zurich?\n", repeat)
    click.echo(f"libraries and weights alone {libraries:6.2f} s")
    click.echo(f"Parley, ready for a prompt  {start:6.2f} s   {start / libraries:.2f} times the libraries")
    click.echo(f"Parley, first answer done   {answer:6.2f} s   {answer / libraries:.2f} times the libraries")


if __name__ == "__main__":
    cli()
