"""Rejection sampling: of the answers to a prompt the one with the highest score is learned, the first of several, as in
supervised finetuning. The answers are given, or, with `method.reward`, the model's own, anew in each round.

Dong et al. 2023 (RAFT), algorithm 1.

Run: python training/main.py method=rejection model=runs/sft data=scored.jsonl
     python training/main.py method=rejection model=runs/sft data=prompts.jsonl method.reward=runs/reward
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.rows import ChatRow
from training.rl.settings import RoundSettings

if TYPE_CHECKING:
    import torch

    from training.config.schema import Config
    from training.examples.collate import Batch
    from training.rl.meter import Meter
    from training.rl.rounds import Groups, Rollout

KINDS = (ChatRow,)  # ranked rows and preferences become chats with their best answer


@dataclass
class Settings(RoundSettings):
    """Without `method.reward` nothing: the scores are in the data. With it, what a round is."""

    name: str = "rejection"
    samples: int = 4  # answers to each prompt, of which one is learned


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    settings: Settings = config.method
    if not settings.reward:
        from training.language_model import train

        return train(config, KINDS)
    from training.examples.collate import num_loss_tokens
    from training.rl.running import run_rounds

    return run_rounds(config, learn, _loss, num_loss_tokens, learned=settings.prompts)


def learn(groups: Groups, _: dict[str, float]) -> tuple[list[Rollout], dict[str, float]]:
    """The best answer to each prompt, whose `advantages` are 1: it is learned, the others are not."""
    import numpy as np

    chosen = [max(group, key=lambda rollout: rollout.reward) for group in groups]
    for rollout in chosen:
        rollout.tokens["advantages"] = np.ones(rollout.length, np.float32)
    return chosen, {"reward_best": float(np.mean([rollout.reward for rollout in chosen]))}


def _loss(model: Any, batch: Batch, meter: Meter) -> torch.Tensor:  # noqa: ARG001  # the loss is all there is to tell
    from training.objective import language_model_loss
    from training.rl.policy import INPUTS

    return language_model_loss(model, {key: batch[key] for key in (*INPUTS, "shift_labels") if key in batch})
