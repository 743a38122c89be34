"""Prefix language modelling: of each text a random beginning is given, and the rest has the loss.

Raffel et al. 2020 (T5), section 3.2.1: with `bidirectional` the tokens of the prefix see one another in both
directions. Chat engines read prompts causally, so that is off unless asked for. In an encoder-decoder model the prefix
is what the encoder reads.

Run: python training/main.py method=prefix_lm model=smollm2-135m data=book.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.rows import ChatRow, PairRow, TextRow

if TYPE_CHECKING:
    from training.config.schema import Config

KINDS = (TextRow, ChatRow, PairRow)


@dataclass
class Settings:
    """Where the prefix ends, and who sees it."""

    name: str = "prefix_lm"
    min_prefix: float = 0.1  # share of an example's tokens
    max_prefix: float = 0.9
    bidirectional: bool = False


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.language_model import train

    settings: Settings = config.method
    if not 0 <= settings.min_prefix <= settings.max_prefix < 1:
        raise ValueError(
            f"method.min_prefix={settings.min_prefix} and max_prefix={settings.max_prefix} must be shares from 0 up to"
            " (not including) 1, the smaller first"
        )
    if config.data.packing and settings.bidirectional:
        raise ValueError("method.bidirectional and data.packing exclude each other; set one of them to false")
    return train(config, KINDS)
