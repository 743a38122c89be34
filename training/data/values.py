"""Values of a raw row, checked: each function raises ValueError with the reason where one is not what it must be."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from training.data.decoding import is_text
from training.data.rows import Label

Fields = Mapping[str, Any]

_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(?:role|content)"\s*:')


def fields_of(raw: Any, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A raw row as columns: a bare text is its `text`, a list of two texts `prompt` and `response`, a list of objects
    `messages`. `columns` renames (theirs -> ours), and replaces a column that has the new name. Raises ValueError for
    anything else."""
    if isinstance(raw, Mapping):
        columns = columns or {}
        taken = {columns[key] for key in raw if key in columns}
        return {columns.get(key, key): value for key, value in raw.items() if key in columns or key not in taken}
    if isinstance(raw, str):
        return {"text": raw}
    if isinstance(raw, list) and len(raw) == 2 and all(isinstance(each, str) for each in raw):
        return {"prompt": raw[0], "response": raw[1]}
    if isinstance(raw, list) and raw and all(isinstance(each, Mapping) for each in raw):
        return {"messages": raw}
    raise ValueError("neither an object, a text, a list of two texts, nor a list of messages")


def text_of(row: Fields, key: str, may_be_empty: bool = False) -> str:
    """The text of a column."""
    value = row.get(key)
    if value is None:
        if may_be_empty and key in row:  # an empty cell of a table
            return ""
        raise ValueError(f"'{key}' is missing")
    return checked_text(value, f"'{key}'", may_be_empty)


def checked_text(value: Any, what: str, may_be_empty: bool = False) -> str:
    """The value, which must be text; `what` is what messages call it."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, not {type(value).__name__}")
    if not is_text(value):
        raise ValueError(f"{what} holds half a character (a lone surrogate), which is no text")
    if not may_be_empty and not value.strip():
        raise ValueError(f"{what} is empty")
    return value


def list_of(row: Fields, key: str) -> list[Any]:
    """The list of a column; in a CSV file it is written as JSON."""
    value = row.get(key)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_cell(value, key)
    if value is None:
        raise ValueError(f"'{key}' is missing")
    if not isinstance(value, list):
        raise ValueError(f"'{key}' must be a list, not {type(value).__name__}")
    return value


def parse_cell(value: str, key: str) -> Any:
    """The value of a cell that holds JSON."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"'{key}' looks like JSON and is not") from None


def checked_number(value: Any, what: str) -> float:
    """The value, which must be a finite number, maybe written as text as in a CSV file."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{what} must be a number, not '{value[:40]}'") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} must be a number, not {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be a number, not {value}")
    return float(value)


def optional_number(row: Fields, key: str) -> float | None:
    """The number of a column, None where there is none."""
    return None if row.get(key) is None else checked_number(row[key], f"'{key}'")


def weight_of(row: Fields) -> float:
    """The column `weight`, 1 where there is none."""
    weight = optional_number(row, "weight")
    return 1.0 if weight is None else weight


def is_list(value: Any) -> bool:
    """Whether a value is a list, or messages as JSON (other JSON is text: an answer can be that)."""
    return isinstance(value, list) or (isinstance(value, str) and _MESSAGES.match(value) is not None)


def label_of(value: Any, what: str) -> Label:
    """The value as a label, or as a tuple of labels; true and false are 1 and 0."""
    if isinstance(value, list):
        return tuple(_one_label(each, f"{what} item") for each in value)
    return _one_label(value, what)


def _one_label(value: Any, what: str) -> str | int | float:
    if value is None:
        raise ValueError(f"{what} is missing")
    if isinstance(value, bool | int):
        return int(value)
    return checked_number(value, what) if isinstance(value, float) else checked_text(value, what)
