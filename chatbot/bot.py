"""The shell: talk to a model, with your documents behind it.

Run: python chatbot/bot.py --index indexes/sample
     echo "What is Zurich?" | python chatbot/bot.py --index indexes/sample

With a terminal it is interactive; piped input is answered line by line, as text or (--json) JSON Lines.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from chatbot.options import FILE, bot_options, check_options
from common.cli import OneLineCommand
from common.files import check_can_write, home

if TYPE_CHECKING:
    from chatbot.session import Session


@click.command(cls=OneLineCommand, context_settings={"show_default": True, "max_content_width": 110})
@bot_options
@click.option("--stream/--no-stream", default=True, help="Show the answer as it is made, or whole.")
@click.option("--load", type=FILE, help="Go on with the conversation saved there.")
@click.option("--save", type=FILE, help="Save the conversation there after each turn (JSON Lines).")
@click.option("--feedback", type=FILE, help="Where ratings go.  [default: feedback/feedback.jsonl]")
@click.option("--eval-data", type=FILE, help='JSON list of prompts to answer first; "reset" begins anew.')
@click.option("--save-pairs", type=FILE, help="Save [prompt, response] pairs there after each turn (JSON).")
@click.option("--complete", is_flag=True, help="Plain completion: no chat template, no documents.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each answer.")
def cli(**options: Any) -> None:
    """Talk to a model, with your documents behind it."""
    check_options(options)
    if options["complete"] and options["retrieval"]:
        raise ValueError("--complete continues plain text and cannot use documents; leave out one of the two")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # quiet, and no faster for single prompts
    run(options)


def run(options: dict[str, Any]) -> None:
    """What the command does, with its options as a dict."""
    from chatbot.batch import Batch
    from chatbot.prompt_files import load_prompts
    from chatbot.terminal import is_terminal
    from common.text import lines_of

    prompts = load_prompts(options["eval_data"]) if options["eval_data"] else []
    session = _open_session(options)
    batch = Batch(session, options["as_json"], options["stream"], options["complete"])
    if prompts:
        batch.run(prompts, echo=True)
        session.reset()
    if is_terminal() and not options["as_json"]:
        _open_shell(session, options)
    elif not prompts:
        batch.run(lines_of(sys.stdin))


def _open_session(options: dict[str, Any]) -> Session:
    from chatbot.assembly import open_bot
    from chatbot.session import Files, Session

    for flag in ("save", "save_pairs", "feedback"):
        if options[flag]:
            check_can_write(options[flag])  # better now than after the first answer
    feedback = options["feedback"] or home() / "feedback" / "feedback.jsonl"
    session = Session(open_bot(options), Files(options["save"], options["save_pairs"], feedback))
    if options["load"]:
        session.load(options["load"])
    return session


def _open_shell(session: Session, options: dict[str, Any]) -> None:
    from chatbot.assembly import load_model, open_index
    from chatbot.shell import Shell
    from chatbot.terminal import Screen

    shell = Shell(
        session,
        Screen(),
        load_model=lambda name: load_model(name, options),
        open_index=lambda: open_index(options),
        stream=options["stream"],
        complete=options["complete"],
    )
    shell.run()


if __name__ == "__main__":
    cli()
