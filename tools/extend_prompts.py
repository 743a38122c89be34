"""Make many prompts from a few: new ones like 10 or more examples, each different from all others.

Run: python tools/extend_prompts.py rlhf_training_data.json prompts.jsonl --num 1000 --engine openai --model NAME

The examples stand first in the new file. A prompt too like another (ROUGE-L) is left out, and counted.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from chatbot.options import FILE
from common.cli import OneLineCommand
from tools.generating.new_prompts import Making, new_prompts
from tools.generating.options import generating_options, open_generator, settings, show_plan, show_tally
from tools.generating.prompting import load_templates
from tools.generating.writing import only_writer, write_rows
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import PromptRow

MIN_EXAMPLES = 10


def read_examples(data: str, report: Report, at_least: int = MIN_EXAMPLES) -> list[str]:
    """The user's last words in each row, each once. ValueError where there are too few."""
    rows = read_rows(Source(data), (PromptRow,), report)
    texts = list(dict.fromkeys(row.prompt.last.content for _, row in rows if isinstance(row, PromptRow)))
    if len(texts) < at_least:
        raise ValueError(f"{data} holds {len(texts)} different prompts; give at least {at_least} as examples")
    return texts


@click.command(cls=OneLineCommand, context_settings=settings(sample=True, temperature=0.8, max_tokens=512, seed=0))
@click.argument("data")
@click.argument("out", type=FILE)
@click.option("--num", "--num-prompts", type=click.IntRange(min=1), default=1000, help="New prompts.")
@click.option("--most", type=click.FloatRange(0, 1), default=0.7, help="ROUGE-L from which on two are too alike.")
@click.option("--per-request", type=click.IntRange(min=1), default=8, help="Prompts that a request asks for.")
@generating_options
def cli(data: str, out: Path, num: int, most: float, per_request: int, **options: Any) -> None:
    """Write the prompts of DATA and --num new ones like them into OUT (.jsonl, .json, .csv)."""
    extra = load_templates(options["templates"]).get("rlhf", "")
    given = read_examples(data, Report())
    making = Making(most, extra, per_request, options["seed"] or 0)
    if options["dry_run"]:
        show_plan(options, -(-num // per_request), making.request(given, [], 0), at_least=True)
        return
    generator, counts = open_generator(options), Counter[str]()
    with only_writer(out) as target:
        made = list(new_prompts(generator, given, num, making, counts))
        write_rows(target, ({"prompt": text} for text in [*given, *made]))
    for reason, count in counts.most_common():
        click.echo(f"  {count:,} {reason}" * bool(count), err=True, nl=bool(count))
    show_tally(generator, options)
    click.echo(f"{target}: {len(given):,} examples and {len(made):,} new prompts", err=True)
    if not made:
        raise ValueError(f"{options['model']} wrote no new prompt; try another model, or more examples")


if __name__ == "__main__":
    cli()
