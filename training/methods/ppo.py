"""Proximal policy optimisation from a reward: the model answers prompts, and answers become likelier that score better
than its value head expected, without going far from the untrained model.

Schulman et al. 2017, with a KL penalty for each token (Ziegler et al. 2019). The value head is one linear layer on the
policy's own states, as in Ziegler et al.: it costs no second model, and under an adapter the reference costs none
either.

Run: python training/main.py method=ppo model=runs/sft data=prompts.jsonl method.reward=runs/reward
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from training.rl.settings import RoundSettings

if TYPE_CHECKING:
    import torch

    from training.config.schema import Config
    from training.examples.collate import Batch
    from training.rl.meter import Meter
    from training.rl.rounds import Groups, Rollout

# OmegaConf reads these annotations at run time, and on Python 3.10 only knows `Optional[X]`.
# ruff: noqa: UP045


@dataclass
class Settings(RoundSettings):
    """What a round is, and how far a step goes."""

    name: str = "ppo"
    passes: int = 4  # how often the answers of a round are learned
    kl_coeff: float = 0.05  # taken from a token's reward for each nat that it is likelier than to the untrained model
    kl_target: Optional[float] = None  # nats an answer: the coefficient is adapted to reach it; null keeps it
    clip_range: float = 0.2  # of the ratio of the new to the old probability, around 1
    value_clip: Optional[float] = 0.2  # of a value's change in a round; null is none
    value_coeff: float = 0.5
    entropy_coeff: float = 0.0  # a bonus for choosing less surely
    gamma: float = 1.0  # what comes a token later counts so much
    gae_lambda: float = 0.95


def policy_loss(logp_N: torch.Tensor, old_N: torch.Tensor, advantages_N: torch.Tensor, clip: float) -> torch.Tensor:
    """Losses (N) of tokens: -min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = p / p_old (Schulman 2017, eq. 7)."""
    import torch

    rho_N = torch.exp(logp_N - old_N)
    return -torch.minimum(rho_N * advantages_N, rho_N.clamp(1 - clip, 1 + clip) * advantages_N)


def value_loss(
    values_N: torch.Tensor, old_N: torch.Tensor, returns_N: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """Losses (N) of states: 1/2 max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2)."""
    import torch

    losses_N = (values_N - returns_N) ** 2
    if clip is not None:
        near_N = old_N + (values_N - old_N).clamp(-clip, clip)
        losses_N = torch.maximum(losses_N, (near_N - returns_N) ** 2)
    return 0.5 * losses_N


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.examples.collate import num_loss_tokens
    from training.rl.running import run_rounds

    settings: Settings = config.method
    for key in ("kl_coeff", "value_coeff", "entropy_coeff"):
        if not 0 <= getattr(settings, key) < float("inf"):
            raise ValueError(f"method.{key}={getattr(settings, key)} must be 0 or more")
    for key in ("clip_range", "value_clip", "kl_target"):
        value = getattr(settings, key)
        if value is not None and not value > 0:
            raise ValueError(f"method.{key}={value} must be more than 0")
    for key in ("gamma", "gae_lambda"):
        if not 0 <= getattr(settings, key) <= 1:
            raise ValueError(f"method.{key}={getattr(settings, key)} must be at least 0 and at most 1")
    return run_rounds(
        config,
        partial(learn, settings),
        partial(_loss, settings),
        num_loss_tokens,
        learned=settings.prompts * settings.samples,
        numbers={"kl_coeff": settings.kl_coeff},
        with_values=True,
    )


def learn(settings: Settings, groups: Groups, numbers: dict[str, float]) -> tuple[list[Rollout], dict[str, float]]:
    """All answers, with `advantages`, whitened over the round, and `returns` for each token."""
    import numpy as np

    from training.rl.advantages import explained_variance, gae, next_kl_coeff, token_rewards, whitened

    rollouts = [rollout for group in groups for rollout in group]
    coeff, advantages = numbers["kl_coeff"], []
    for rollout in rollouts:
        tokens = rollout.tokens
        rewards_T = token_rewards(rollout.reward, tokens["logp"], tokens["ref_logp"], coeff)
        values_T = tokens["values"].astype(np.float64)
        advantages.append(gae(rewards_T, values_T, settings.gamma, settings.gae_lambda))
        tokens["returns"] = (advantages[-1] + values_T).astype(np.float32)
    white_N = whitened(np.concatenate(advantages))
    edges = np.cumsum([rollout.length for rollout in rollouts])[:-1]
    for rollout, white_T in zip(rollouts, np.split(white_N, edges), strict=True):
        rollout.tokens["advantages"] = white_T.astype(np.float32)
    values_N = np.concatenate([rollout.tokens["values"] for rollout in rollouts])
    returns_N = np.concatenate([rollout.tokens["returns"] for rollout in rollouts])
    numbers["kl_coeff"] = next_kl_coeff(coeff, float(np.mean([each.kl for each in rollouts])), settings.kl_target)
    told = {"kl_coeff": coeff, "value": float(values_N.mean())}
    explained = explained_variance(values_N, returns_N)
    return rollouts, told | ({"explained_variance": explained} if np.isfinite(explained) else {})


def _loss(settings: Settings, model: Any, batch: Batch, meter: Meter) -> torch.Tensor:
    from training.rl.policy import token_numbers

    logp_N, entropy_N, values_N = token_numbers(model, batch, settings.temperature)
    old_N = batch["logp"]
    policy_N = policy_loss(logp_N, old_N, batch["advantages"], settings.clip_range)
    value_N = value_loss(values_N, batch["values"], batch["returns"], settings.value_clip)
    meter.add(
        policy_loss=policy_N,
        value_loss=value_N,
        entropy=entropy_N,
        clipped=((logp_N - old_N).exp() - 1).abs() > settings.clip_range,
        moved=old_N - logp_N,  # KL(old || new), a token
    )
    return (policy_N + settings.value_coeff * value_N - settings.entropy_coeff * entropy_N).sum()
