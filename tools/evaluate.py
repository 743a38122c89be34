"""Measure a model: perplexity on held-out rows, answers to many prompts, their rewards, and how often they are better
than others.

Run: python tools/evaluate.py ppl smollm2-135m held-out.jsonl --replies-only
     python tools/evaluate.py generate smollm2-135m prompts.jsonl --out answers.jsonl
     python tools/evaluate.py reward runs/reward answers.jsonl --out scores.jsonl
     python tools/evaluate.py win_rate ours.jsonl theirs.jsonl --judge MODEL --out judgements.jsonl
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatbot.assembly import load_model
from chatbot.engines import LoadOptions
from chatbot.engines.base import Generation
from chatbot.options import FILE, answer_options, loading_options
from common.cli import OneLineGroup
from common.files import check_can_write, expand, json_text, write_json
from tools.evaluation.commands import FOLDER, ece, reward, win_rate
from tools.evaluation.generation import generate, read_prompts
from tools.evaluation.perplexity import KINDS, Perplexity, open_model, perplexity
from tools.evaluation.rag import rag
from tools.evaluation.report import write_report
from tools.evaluation.resuming import NOT_IN_SETTINGS, done_rows
from tools.evaluation.sharing import generate_shared
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import ChatRow, PairRow

if TYPE_CHECKING:
    from collections.abc import Iterable

_CONTEXT = 2048  # tokens, or the model's own where that is less
_SECONDS = 5.0  # between two lines of progress


@click.group(cls=OneLineGroup, context_settings={"show_default": True})
def cli() -> None:
    """Measure a model."""


@cli.command("ppl")
@click.argument("model")
@click.argument("data")
@click.option("--adapter", metavar="PATH", help="LoRA adapter for the model.")
@click.option("--context", type=click.IntRange(min=2), help="Tokens of a window.  [default: the model's, at most 2048]")
@click.option("--stride", type=click.IntRange(min=1), help="Tokens between windows.  [default: half the context]")
@click.option("--replies-only", is_flag=True, help="Score only the assistant's turns and completions.")
@click.option("--skip-bad-rows", is_flag=True, help="Count rows that cannot be used, instead of stopping at one.")
@click.option("--template", help="Chat template instead of the model's own.")
@click.option("--device", help="cpu, cuda:1 ...  [default: the first GPU, else the CPU]")
@click.option("--dtype", default="auto", help="auto, float32, float16 or bfloat16.")
@click.option("--out", type=FILE, help="Write the report there too.")
@click.option("--report", "folder", type=FOLDER, metavar="DIR", help="Write it there as JSON and Markdown.")
def ppl(
    model: str,
    data: str,
    adapter: str | None,
    context: int | None,
    stride: int | None,
    replies_only: bool,
    skip_bad_rows: bool,
    template: str | None,
    device: str | None,
    dtype: str,
    out: Path | None,
    folder: Path | None,
) -> None:
    """Perplexity of MODEL (a directory, an adapter, a known name, a Hugging Face id) on DATA: any data that training
    reads. A JSON report goes to stdout."""
    target = expand(out) if out else None
    if target:
        check_can_write(target)
    read = Report()
    kinds = (ChatRow, PairRow) if replies_only else KINDS
    rows = read_rows(Source(data), kinds, read, strict=not skip_bad_rows)
    loaded, renderer = open_model(model, adapter, LoadOptions(device=device, dtype=dtype, template=template))
    own = getattr(loaded.config.get_text_config(), "max_position_embeddings", None) or _CONTEXT
    if context and context > own:
        raise ValueError(f"--context {context} exceeds the {own} tokens that the model knows")
    context = context or min(own, _CONTEXT)
    stride = stride or max(1, context // 2)
    found = _last(perplexity(loaded, renderer, rows, context, stride, replies_only))
    report = {
        "perplexity": found.value,
        "nll_per_token": found.nll / found.num_tokens,
        "tokens": found.num_tokens,
        "rows": found.num_rows,
        "skipped": read.skipped(),
        "model": model,
        "adapter": adapter,
        "data": data,
        "data_sha256": read.fingerprint(Source(data)),
        "context": context,
        "stride": stride,
        "replies_only": replies_only,
    }
    for line in read.lines():
        click.echo(line, err=True)
    if target:
        write_json(target, report)
    if folder:
        write_report(expand(folder), "Perplexity", report, {})
    click.echo(json_text(report), nl=False)


def _last(found: Iterable[Perplexity]) -> Perplexity:
    """The whole sum; where it takes long a line now and then says how far it is."""
    last, told = Perplexity(), time.monotonic()
    begun = told
    for last in found:
        if (now := time.monotonic()) - told > _SECONDS:
            told = now
            rate = last.num_tokens / (now - begun)
            click.echo(f"{last.num_rows:,} rows, {last.num_tokens:,} tokens, {rate:,.0f} tokens/s", err=True)
    return last


@cli.command("generate", context_settings={"default_map": {"repetition_penalty": 1.0}})
@click.argument("model")
@click.argument("data")
@click.option("--out", type=FILE, required=True, help="JSON Lines to write, or to go on with.")
@click.option("--at-once", type=click.IntRange(min=1), default=8, help="Answers in the making at a time, a process.")
@click.option("--processes", type=click.IntRange(min=1), default=1, help="Models side by side, one for each GPU.")
@click.option("--skip-bad-rows", is_flag=True, help="Count rows that cannot be used, instead of stopping at one.")
@loading_options
@answer_options
def generate_(
    model: str, data: str, out: Path, at_once: int, processes: int, skip_bad_rows: bool, **options: Any
) -> None:
    """Answers of MODEL to the prompts of DATA: conversations (up to their last answer), prompts, or a line each of a
    .txt file. Run again after a kill it goes on."""
    generation = Generation(**{name: options[name] for name in asdict(Generation()) if name in options})
    target, read = expand(out), Report()
    settings = {
        "model": model,
        "data": data,
        "data_sha256": read.fingerprint(Source(data)),
        "skip_bad_rows": skip_bad_rows,
        **{name: value for name, value in options.items() if name not in NOT_IN_SETTINGS},
    }
    num_done = done_rows(target, settings)
    if num_done:
        click.echo(f"{target}: going on after {num_done:,} answers", err=True)
    prompts = read_prompts(data, read, strict=not skip_bad_rows)
    if processes > 1:
        num_prompts = sum(1 for _ in prompts)
        counts = generate_shared(target, settings, options, num_done, num_prompts, processes, at_once)
    else:
        counts = generate(load_model(model, options), prompts, generation, target, num_done, at_once)
    total, told = num_done, time.monotonic()
    begun = told
    for total in counts:
        if (now := time.monotonic()) - told > _SECONDS:
            told = now
            click.echo(f"{total:,} answers, {(total - num_done) / (now - begun):.2f} a second", err=True)
    for line in read.lines() if read.num_read else ():
        click.echo(line, err=True)
    click.echo(f"{target}: {total:,} answers", err=True)


for each in (reward, ece, win_rate, rag):
    cli.add_command(each)

if __name__ == "__main__":
    cli()
