"""Supervised finetuning: conversations, and the loss of the assistant's tokens.

Run: python training/main.py method=sft model=smollm2-135m data=chats.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.rows import ChatRow, PairRow

if TYPE_CHECKING:
    from training.config.schema import Config

KINDS = (ChatRow, PairRow)


@dataclass
class Settings:
    """Nothing of its own: `data.train_on` says which tokens have a loss."""

    name: str = "sft"


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.language_model import train

    return train(config, KINDS)
