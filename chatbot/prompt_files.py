"""Files that people write for the bot: few-shot pairs, and lists of prompts."""

from __future__ import annotations

import json
from pathlib import Path

from chatbot.conversation import Message
from common.files import read_json


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


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
