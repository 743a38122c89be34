"""The bot without a terminal: piped lines, files of prompts, few-shot pairs; plain text or JSON Lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import click

from chatbot.conversation import Message
from chatbot.core import Done, Notice, Reply, Text
from chatbot.session import Session
from chatbot.shell import source_line
from common.files import read_json
from common.text import printable

RESET = "reset"  # in a file of prompts: a new conversation begins


def load_examples(path: Path) -> tuple[Message, ...]:
    """Few-shot pairs `[[user, assistant], ...]` as alternating messages. ValueError names file and row."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must be a list of [user, assistant] pairs, not {type(rows).__name__}")
    messages: list[Message] = []
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, list) and len(row) == 2 and all(isinstance(text, str) and text for text in row)):
            raise ValueError(f"{path}: row {number} must be [user, assistant], two texts; it is {_short(row)}")
        messages += [Message("user", row[0]), Message("assistant", row[1])]
    return tuple(messages)


def load_prompts(path: Path) -> list[str]:
    """A JSON list of prompts; the text "reset" begins a new conversation. ValueError names file and row."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must be a list of prompts, not {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, str) or not row.strip():
            raise ValueError(f"{path}: row {number} must be a text; it is {_short(row)}")
    return rows


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
        """Answer each prompt; `reset` alone begins a new conversation, empty lines are passed over. `echo` shows
        the prompt before its answer."""
        for prompt in prompts:
            text = prompt.strip()
            if text == RESET:
                self.session.reset()
            elif text:
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
        for number, hit in enumerate(reply.sources, start=1):
            self._write(source_line(number, hit.passage) + "\n")
        for notice in notices:
            click.echo(f"({notice})", err=True)

    def _write(self, text: str) -> None:
        self.out.write(printable(text) if self.out.isatty() else text)
        self.out.flush()


def reply_record(question: str, reply: Reply, notices: list[str]) -> dict[str, Any]:
    """One answer as JSON values: what `--json` prints, a line each."""
    sources = [
        {"number": number, "location": hit.passage.location, "score": round(hit.score, 4), **asdict(hit.passage)}
        for number, hit in enumerate(reply.sources, start=1)
    ]
    return {
        "question": question,
        "answer": reply.text,
        "sources": sources,
        "finish_reason": reply.finish_reason,
        "blocked": reply.blocked,
        "verdicts": {direction: asdict(verdict) for direction, verdict in reply.verdicts.items()},
        "notices": notices,
        "usage": asdict(reply.usage),
    }


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
