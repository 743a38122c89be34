"""Make the bot's model better with what people said and with questions on the documents, and switch to the new model
only where it is measurably better.

Run: python tools/improve.py --index indexes/mine --feedback feedback/feedback.jsonl --questions questions --work runs/1
     python tools/improve.py --status
     python tools/improve.py --rollback

The same command goes on after a kill. Exit code 0: promoted; 3: the gate refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from chatbot.options import DEFAULT_MODEL, FILE, bot_options, check_options
from common.cli import OneLineCommand
from common.default_model import default_model
from common.files import expand
from tools.feedback_data.masking import CLASSES
from tools.improving.gate import DEFAULT, read_gate
from tools.improving.loop import Plan, improve, model_to_improve
from tools.improving.making import training_arguments
from tools.improving.promoting import rollback, status
from tools.improving.rows import KINDS
from tools.improving.steps import only_one

REFUSED = 3  # exit code
_FOLDER = click.Path(path_type=Path, file_okay=False)
_LOG = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command(cls=OneLineCommand, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--feedback", multiple=True, type=_LOG, help="Log of ratings and corrections; may be repeated.")
@click.option("--questions", type=_FOLDER, help="Folder that tools/make_qa.py wrote.  [default: made now]")
@click.option(
    "--method", type=click.Choice(list(KINDS)), default="sft", help="What is learned: answers, or preferences."
)
@click.option(
    "--gate", type=FILE, help="YAML file of what the new model must show.  [default: tools/improving/gate.yaml]"
)
@click.option("--work", type=_FOLDER, help="Where all steps are kept; the same folder goes on.")
@click.option(
    "--gguf/--no-gguf", default=None, help="A GGUF file beside it.  [default: where llama.cpp runs the old one]"
)
@click.option("--mask", default="", metavar="CLASSES", help=f"Personal data to mask, of: {','.join(CLASSES)}.")
@click.option("--reviewed-only", is_flag=True, help="Of the feedback only what `tools/feedback.py review` kept.")
@click.option("--promote/--no-promote", default=True, help="Switch where the gate lets it through, or only measure.")
@click.option("--status", "show", is_flag=True, help="Say which model is the default, and what was before; no more.")
@click.option("--rollback", "back", is_flag=True, help="Go back to the default model before this one; no more.")
@bot_options
def cli(show: bool, back: bool, **options: Any) -> int:
    """Improve the bot's model, and switch to the new one where the gate lets it through. KEY=VALUE are keys of training
    (docs/training-reference.md); the other flags are the bot's."""
    if back:
        click.echo("the default model was {}, and is {} now".format(*rollback()))
        return 0
    if show:
        for line in status(DEFAULT_MODEL):
            click.echo(line)
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return _improve(options)


def _improve(options: dict[str, Any]) -> int:
    own = {name: options.pop(name) for name in _OWN}
    named: str | None = options["model"]
    work = _checked(own, options)
    gate = read_gate(expand(own["gate"]) if own["gate"] else DEFAULT)
    with only_one(work):
        default = None if named else default_model()
        options["model"] = model_to_improve(work, named, default.model if default else DEFAULT_MODEL)
        check_options(options)
        plan = Plan(
            work=work,
            bot=options,
            named=named is not None,
            first=DEFAULT_MODEL,
            method=own["method"],
            feedback=own["feedback"],
            questions=expand(own["questions"]) if own["questions"] else None,
            gate=gate,
            gguf=own["gguf"],
            overrides=own["overrides"],
            mask=[each.strip() for each in own["mask"].split(",") if each.strip()],
            reviewed_only=own["reviewed_only"],
            promote=own["promote"],
        )
        outcome = improve(plan, lambda line: click.echo(line, err=True))
    click.echo(outcome.table)
    click.echo(f"\n{outcome.done}\nreport: {outcome.report}")
    return 0 if outcome.passed else REFUSED


_OWN = ("overrides", "feedback", "questions", "method", "gate", "work", "gguf", "mask", "reviewed_only", "promote")


def _checked(own: dict[str, Any], options: dict[str, Any]) -> Path:
    """The work folder. ValueError for what is missing, before anything is begun."""
    if not options["index"]:
        raise ValueError("--index is missing: the index that the bot answers from")
    if own["work"] is None:
        raise ValueError("--work is missing: a folder for this improvement, such as runs/improve-1")
    training_arguments(own["method"], Path(), Path(), Path(), own["overrides"])
    if own["method"] == "dpo" and not own["feedback"]:
        raise ValueError("--method dpo learns from --feedback, which is missing")
    return expand(own["work"]).absolute()


if __name__ == "__main__":
    raise SystemExit(cli())
