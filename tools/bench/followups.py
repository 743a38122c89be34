"""Follow-up questions: searched for alone, with the conversation joined on, mixed with it, or rewritten by the model.

Run: python -m tools.bench.followups --index indexes/sample [--model smollm2-135m]

The questions are tests/data/sample_followups.jsonl, on the articles of docs/sample. A figure is the share whose answer
stands in the best passage (at 1) or in one of the best three (at 3), in the right article.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import click

from chatbot.assembly import load_model
from chatbot.conversation import Conversation
from chatbot.followups import rewritten
from common.cli import OneLineCommand
from common.files import home
from retrieval.retriever import Retriever

QUESTIONS = Path(__file__).parents[2] / "tests" / "data" / "sample_followups.jsonl"
_LOADING = {"device": None, "gpu_id": None, "gpu_vram": (), "cpu_ram": None, "dtype": "auto", "template": None}


@click.command(cls=OneLineCommand)
@click.option("--index", default=str(home() / "indexes" / "sample"), show_default=True, help="Index of docs/sample.")
@click.option("--model", default="smollm2-135m", show_default=True, help="Chat model that rewrites.")
def cli(index: str, model: str) -> None:
    """Print the four ways side by side."""
    retriever = Retriever.open(index)
    options = {**_LOADING, "load_in_8bit": False, "load_in_4bit": False, "engine": "transformers"}
    chat = load_model(model, options)
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]

    def as_model_says(row: dict[str, list[str]]) -> tuple[str, str]:
        earlier = Conversation()
        for turn in row["turns"][:-1]:
            earlier = earlier.add("user", turn)
        return rewritten(chat, earlier, row["turns"][-1]), ""

    ways: dict[str, Callable[[dict[str, list[str]]], tuple[str, str]]] = {
        "last turn alone": lambda row: (row["turns"][-1], ""),
        "all turns joined": lambda row: (" ".join(row["turns"]), ""),
        "mixed (default)": lambda row: (row["turns"][-1], "\n".join(row["turns"][:-1])),
        "rewritten (--rewrite)": as_model_says,
    }
    for name, way in ways.items():
        started = time.perf_counter()
        hits = [retriever.search([query], 3, [context])[0] for query, context in map(way, rows)]
        seconds = (time.perf_counter() - started) / len(rows)
        found = [
            [hit.passage.source.endswith(row["source"]) and row["answer"] in hit.passage.text for hit in each]
            for row, each in zip(rows, hits, strict=True)
        ]
        at_1, at_3 = (sum(any(each[:k]) for each in found) / len(rows) for k in (1, 3))
        click.echo(f"{name:<22} at 1: {at_1:.2f}   at 3: {at_3:.2f}   {seconds * 1e3:6.0f} ms a question")


if __name__ == "__main__":
    cli()
