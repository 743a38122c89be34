"""The command-line flags that say which bot to open: shared by the shell (bot.py) and the server (server/),
and in part by tools/evaluate.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from common.default_model import default_model, num_passages
from common.files import home
from common.models import KNOWN_MODELS

DEFAULT_MODEL = "smollm2-135m"
NUM_PASSAGES = 3  # which a model of a billion parameters or more makes something of

FILE = click.Path(path_type=Path, dir_okay=False)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _gpu_vram(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[int, float], ...]:
    """`0:10,1:8` -> ((0, 10.0), (1, 8.0))."""
    pairs = []
    for each in ",".join(values).split(",") if values else []:
        gpu, colon, gib = each.strip().partition(":")
        if not (colon and gpu.isdigit() and gib.replace(".", "", 1).isdigit() and float(gib) > 0):
            raise click.BadParameter(f"'{each}' is not ID:GiB, such as 0:10")
        pairs.append((int(gpu), float(gib)))
    return tuple(pairs)


_LOADING = (
    click.option("--engine", default="auto", help="auto, transformers, llamacpp, openai or echo."),
    click.option("--template", help="Chat template instead of the model's own: human-bot, human-assistant, vicuna ..."),
    click.option("--device", help="cpu, cuda:1, mps ...  [default: the first GPU, else the CPU]"),
    click.option("--gpu-id", type=click.IntRange(min=0), help="The CUDA GPU to use."),
    click.option(
        "-g", "--gpu-vram", multiple=True, callback=_gpu_vram, metavar="ID:GiB", help="Spread over GPUs: 0:10,1:8."
    ),
    click.option("-r", "--cpu-ram", type=click.FloatRange(min=0), metavar="GiB", help="With -g: room on the CPU."),
    click.option("--load-in-8bit", is_flag=True, help="Quantise to 8 bits (CUDA, bitsandbytes)."),
    click.option("--load-in-4bit", is_flag=True, help="Quantise to 4 bits (CUDA, bitsandbytes)."),
    click.option("--dtype", default="auto", help="auto, float32, float16 or bfloat16."),
    click.option("--adapter", "adapters", multiple=True, metavar="PATH", help="LoRA adapter; the first is in use."),
    click.option("--draft-model", metavar="NAME", help="Smaller model that proposes tokens (assisted decoding)."),
    click.option("--threads", type=click.IntRange(min=1), help="llama.cpp: CPU threads.  [default: all cores]"),
    click.option("--gpu-layers", type=click.IntRange(min=0), help="llama.cpp: layers on the GPU.  [default: all fit]"),
    click.option("--context-length", type=click.IntRange(min=1), help="llamacpp, openai: tokens of prompt and answer."),
    click.option("--base-url", metavar="URL", help="openai engine: the service.  [default: $OPENAI_BASE_URL]"),
    click.option("--api-key", metavar="KEY", help="openai engine: its key; better in $OPENAI_API_KEY."),
)
_DOCUMENTS = (
    click.option("--retrieval/--no-retrieval", default=None, help="Answer from documents.  [default: with --index]"),
    click.option("--index", multiple=True, help="Index directory, or qdrant+URL/COLLECTION; may be repeated."),
    click.option("--encoder", help="Encoder for the index.  [default: the one it was built with]"),
    click.option("--k", type=click.IntRange(min=1), help="Passages to look for.  [default: 3; 1 for smollm2-135m]"),
    click.option("--floor", type=float, help="Less confidence counts as no answer; 0: never.  [default: the index's]"),
    click.option("--where", multiple=True, metavar="COND", help="Only such documents: source=docs/*, year>=1990."),
    click.option("--expand", type=click.IntRange(min=0), default=0, help="Neighbours shown with a passage, each side."),
    click.option("--rerank", metavar="MODEL", help="Cross-encoder that orders the best hits anew."),
    click.option("--rewrite/--no-rewrite", default=False, help="Search for follow-ups as the model rewrites them."),
    click.option("--attribution/--no-attribution", default=True, help="Compare each sentence with the passages."),
    click.option("--layout", default="latest", help="Passages in the latest turn only, or kept in all."),
)
_PROMPT = (
    click.option("--system", default="", help="System prompt."),
    click.option("--few-shot", type=FILE, help="JSON file of [[user, assistant], ...] that opens every conversation."),
)
_ANSWER = (
    click.option("--max-tokens", type=int, default=256, help="Longest answer."),
    click.option("--sample/--no-sample", default=False, help="Draw tokens by chance, or take the most likely."),
    click.option("--temperature", type=float, default=0.6, help="When sampling: below 1 is more predictable."),
    click.option("--top-k", type=int, default=40, help="When sampling: from so many tokens; 0 for all."),
    click.option("--top-p", type=float, default=1.0, help="When sampling: from the likeliest with this total."),
    click.option("--repetition-penalty", type=float, default=1.1, help="Above 1: an answer repeats itself less."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
)
_MODERATION = (
    click.option("--moderation/--no-moderation", default=None, help="Judge what is said and found.  [default: on]"),
    click.option("--moderation-model", metavar="NAME", help="Classifier, see docs/moderation.md.  [default: Parley's]"),
    click.option("--moderation-policy", type=FILE, help="YAML policy.  [default: warn]"),
    click.option("--label-map", type=FILE, help="Our names for the labels of a Hugging Face classifier."),
)


def bot_options(command: _Command) -> _Command:
    """Give a click command all of these flags."""
    about = f"Known name, model directory, or Hugging Face id.  [default: the promoted one, else {DEFAULT_MODEL}]"
    model = click.option("--model", help=about)
    return _with((model, *_LOADING, *_DOCUMENTS, *_PROMPT, *_ANSWER, *_MODERATION), command)


def loading_options(command: _Command) -> _Command:
    """Give it those that say how a model is loaded."""
    return _with(_LOADING, command)


def answer_options(command: _Command) -> _Command:
    """Give it those that say how an answer is generated."""
    return _with(_ANSWER, command)


def _with(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def check_options(options: dict[str, Any]) -> None:
    """Fill in what follows from other flags, in place; ValueError where two contradict each other."""
    if options["retrieval"] is None:
        options["retrieval"] = bool(options["index"])
    if not options["index"]:
        options["index"] = (str(home() / "indexes" / "sample"),)
    if options["model"] is None:
        promoted = default_model()
        options["model"] = promoted.model if promoted else DEFAULT_MODEL
        if promoted:
            click.echo(f"running {promoted.model}, the default model since {promoted.since}", err=True)
    if options["k"] is None:
        known = KNOWN_MODELS.get(options["model"])
        options["k"] = (known.num_passages if known else num_passages(options["model"])) or NUM_PASSAGES
    if options["moderation"] is None and (options["moderation_model"] or options["moderation_policy"]):
        options["moderation"] = True  # asked for: it is an error where it cannot be had
