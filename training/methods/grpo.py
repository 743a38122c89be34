"""Group relative policy optimisation: of several answers to a prompt those become likelier that score above their mean.

Shao et al. 2024 (DeepSeekMath), eq. 3 and 4; no value head. `method.loss=tokens` is the mean over all tokens of a step
(Yu et al. 2025, DAPO, eq. 8), `answers` the paper's mean of means.

Run: python training/main.py method=grpo model=runs/sft data=prompts.jsonl method.reward=my.rules:correct
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.rl.settings import RoundSettings

if TYPE_CHECKING:
    import torch

    from training.config.schema import Config
    from training.examples.collate import Batch
    from training.rl.meter import Meter
    from training.rl.rounds import Groups, Rollout


class Mean(str, Enum):
    """What a step's loss is a mean of: all its tokens, or the means of its answers."""

    tokens = "tokens"
    answers = "answers"


@dataclass
class Settings(RoundSettings):
    """What a round is, and how far a step goes."""

    name: str = "grpo"
    prompts: int = 4  # of a round
    samples: int = 8  # answers to each prompt
    loss: Mean = Mean.tokens
    kl_coeff: float = 0.04
    clip_range: float = 0.2  # of the ratio of the new to the old probability, around 1
    scaled: bool = True  # advantages are divided by the standard deviation of the scores of their prompt


def grpo_loss(
    logp_N: torch.Tensor,
    old_N: torch.Tensor,
    ref_N: torch.Tensor,
    advantages_N: torch.Tensor,
    clip: float,
    kl_coeff: float,
) -> torch.Tensor:
    """Losses (N) of tokens: the clipped loss of PPO, and kl_coeff rho (x - log x - 1) with x = p_ref / p.

    rho = p / p_old makes value and gradient those of the KL of the new policy, of which the answers are no samples any
    more (DeepSeek-V3.2, section 3.1).
    """
    import torch

    from training.methods.ppo import policy_loss

    below_N, rho_N = ref_N - logp_N, torch.exp(logp_N - old_N)
    penalty_N = rho_N * (torch.exp(below_N) - below_N - 1)
    return policy_loss(logp_N, old_N, advantages_N, clip) + kl_coeff * penalty_N


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    import torch

    from training.examples.collate import num_loss_tokens
    from training.rl.running import run_rounds

    settings: Settings = config.method
    if settings.samples < 2:
        raise ValueError(f"method.samples={settings.samples} must be at least 2: answers are compared")
    if not 0 <= settings.kl_coeff < float("inf"):
        raise ValueError(f"method.kl_coeff={settings.kl_coeff} must be 0 or more")
    if not settings.clip_range > 0:
        raise ValueError(f"method.clip_range={settings.clip_range} must be more than 0")
    by_token = settings.loss == Mean.tokens
    return run_rounds(
        config,
        partial(learn, settings),
        partial(_loss, settings),
        num_loss_tokens if by_token else lambda batch: torch.tensor(len(batch["rewards"])),
        learned=settings.prompts * settings.samples,
    )


def learn(settings: Settings, groups: Groups, _: dict[str, float]) -> tuple[list[Rollout], dict[str, float]]:
    """All answers, with the `advantages` within their group for each token."""
    import numpy as np

    from training.rl.advantages import group_advantages

    flat = 0
    for group in groups:
        advantages_G = group_advantages(np.array([rollout.reward for rollout in group]), settings.scaled)
        flat += not advantages_G.any()
        for rollout, advantage in zip(group, advantages_G.tolist(), strict=True):
            rollout.tokens["advantages"] = np.full(rollout.length, advantage, np.float32)
    return [rollout for group in groups for rollout in group], {"all_equal": flat / len(groups)}


def _loss(settings: Settings, model: Any, batch: Batch, meter: Meter) -> torch.Tensor:
    from training.rl.policy import token_numbers

    logp_N, entropy_N, _ = token_numbers(model, batch, settings.temperature)
    old_N = batch["logp"]
    losses_N = grpo_loss(logp_N, old_N, batch["ref_logp"], batch["advantages"], settings.clip_range, settings.kl_coeff)
    meter.add(
        entropy=entropy_N,
        clipped=((logp_N - old_N).exp() - 1).abs() > settings.clip_range,
        moved=old_N - logp_N,  # KL(old || new), a token
    )
    if settings.loss == Mean.answers:
        losses_N = losses_N / batch["lengths"].repeat_interleave(batch["lengths"])
    return losses_N.sum()
