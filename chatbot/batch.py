"""The bot without a terminal: piped lines and files of prompts; plain text or JSON Lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TextIO

import click

from chatbot.core import Done, Notice, Reply, Text
from chatbot.records import reply_record
from chatbot.session import Session
from chatbot.shell import source_line, unsupported_line
from common.text import printable

RESET = "reset"  # in a file of prompts: a new conversation begins


class Batch:
    """Answers prompts one after the other onto `out`; remarks go to stderr, so that the output stays clean."""

    def __init__(
        self, session: Session, as_json: bool, stream: bool = True, complete: bool = False, out: TextIO | None = None
    ) -> None:
        self.session = session
        self.as_json = as_json
        self.stream = stream and not as_json
        self.complete = complete
        self.out = out or sys.stdout

    def run(self, prompts: Iterable[str], echo: bool = False) -> None:
        """Answer each prompt; `reset` alone begins a new conversation (in plain completion it is text as any other),
        empty lines are passed over. `echo` shows the prompt before its answer."""
        for prompt in prompts:
            # White space matters to a plain continuation (code, a trailing space), not to a message.
            text = prompt.rstrip("\r\n") if self.complete else prompt.strip()
            if text.strip() == RESET and not self.complete:
                self.session.reset()
            elif text.strip():
                if echo and not self.as_json:
                    self._write(f">>> {text}\n")
                self._answer(text)

    def _answer(self, text: str) -> None:
        events = self.session.complete(text) if self.complete else self.session.ask(text)
        notices: list[str] = []
        for event in events:
            if isinstance(event, Text) and self.stream:
                self._write(event.text)
            elif isinstance(event, Notice):
                notices.append(event.text)
            elif isinstance(event, Done):
                self._finish(text, event.reply, notices)

    def _finish(self, question: str, reply: Reply, notices: list[str]) -> None:
        if self.as_json:
            self._write(json.dumps(reply_record(question, reply, notices), ensure_ascii=False) + "\n")
            return
        self._write(("" if self.stream else reply.text) + "\n")
        if unsupported := unsupported_line(reply):
            click.echo(printable(unsupported), err=True)
        for number, hit in enumerate(reply.sources, start=1):
            self._write(source_line(number, hit.passage) + "\n")
        for hit in reply.withheld:
            self._write(f"withheld: {hit.passage.title or hit.passage.source} ({hit.passage.location})\n")
        for notice in notices:
            click.echo(printable(f"({notice})"), err=True)

    def _write(self, text: str) -> None:
        self.out.write(printable(text) if self.out.isatty() else text)
        self.out.flush()
