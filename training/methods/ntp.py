"""Next-token prediction on raw text, for pretraining and for getting used to a field's language.

Run: python training/main.py method=ntp model=smollm2-135m data=book.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from training.data.rows import ChatRow, PairRow, TextRow

if TYPE_CHECKING:
    from training.config.schema import Config

KINDS = (TextRow, ChatRow, PairRow)


class Sampling(str, Enum):
    """How examples are taken from the text.

    `packed`: every token once an epoch: documents, cut where they are too long, several in a row, each seeing only
    itself. `windows`: `length` windows an epoch from random places, over the borders of documents (Speaker's way).
    """

    packed = "packed"
    windows = "windows"


@dataclass
class Settings:
    """Where its examples come from."""

    name: str = "ntp"
    sampling: Sampling = Sampling.packed
    length: Optional[int] = None  # noqa: UP045  # windows an epoch; without it as many as the text has tokens for


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.language_model import train

    settings: Settings = config.method
    if settings.length is not None and settings.length < 1:
        raise ValueError(f"method.length={settings.length} must be at least 1")
    return train(config, KINDS)
