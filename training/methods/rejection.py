"""Rejection sampling, offline: of the answers to a prompt the one with the highest score is learned, the first of
several; nothing else differs from supervised finetuning.

Dong et al. 2023 (RAFT), algorithm 1, with answers that are given.

Run: python training/main.py method=rejection model=runs/sft data=scored.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.rows import ChatRow

if TYPE_CHECKING:
    from training.config.schema import Config

KINDS = (ChatRow,)  # ranked rows and preferences become chats with their best answer


@dataclass
class Settings:
    """Nothing of its own: the scores are in the data."""

    name: str = "rejection"


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.language_model import train

    return train(config, KINDS)
