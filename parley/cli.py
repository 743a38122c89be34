"""`parley`: the same functions as the scripts, under one name.

A subcommand's module is imported only when that subcommand runs, so that `parley --help` is quick.
"""

from __future__ import annotations

import importlib

import click

from common.cli import OneLineGroup

# subcommand -> (module:command, one line of help). The script with the same options stands in the module's docstring.
COMMANDS = {
    "chat": ("chatbot.bot:cli", "Talk to a model, with your documents behind it."),
    "index": ("retrieval.build:cli", "Make your documents searchable, and search them."),
    "models": ("tools.prepare_model:cli", "Fetch models and prepare them; some need no hub."),
    "moderate": ("moderation.cli:cli", "Judge texts; look at the moderation policy."),
    "train": ("training.main:cli", "Train a model further: method=sft model=... data=..."),
    "evaluate": ("tools.evaluate:cli", "Perplexity, answers to prompts, rewards, win rates."),
    "serve": ("chatbot.server:cli", "Serve the bot over HTTP, as OpenAI's clients expect it."),
}


class LazyGroup(OneLineGroup):
    """A group that knows its subcommands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.command(cls=LazyGroup)
@click.version_option(package_name="parley")
def main() -> None:
    """A chatbot of your own over your own documents."""


if __name__ == "__main__":
    main()
