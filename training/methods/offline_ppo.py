"""Offline policy gradient with a clipped ratio: answers and their rewards are given, nothing is generated.

Baheti et al. 2023 (A-LoL), eq. 5, with the clipping of Schulman et al. 2017, eq. 7; the ratio is to the untrained
model. Answers without a score are learned as in supervised finetuning.

Run: python training/main.py method=offline_ppo model=runs/sft data=scored.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.rows import PreferenceRow, RankedRow

if TYPE_CHECKING:
    import torch

    from training.config.schema import Config
    from training.examples.answers import Answer
    from training.examples.collate import Batch
    from training.examples.preparing import Prepared
    from training.models import Loaded
    from training.objective import Objective, Outcome

KINDS = (RankedRow, PreferenceRow)


class Penalty(str, Enum):
    """What is taken from a reward for a log-ratio x = log p - log p_ref: x, |x| or x^2 / 2."""

    kl = "kl"
    abs = "abs"
    mse = "mse"


@dataclass
class Settings:
    """How far the model may go from the untrained one, and what answers without a score count."""

    name: str = "offline_ppo"
    kl_coeff: float = 0.1  # rewards are lowered by this times the penalty
    kl_penalty: Penalty = Penalty.kl
    clip_range: float = 0.2
    token_level: bool = False  # a ratio for each token, not for the answer
    lm_coeff: float = 0.5  # of answers without a score


def offline_ppo_loss(
    ratios_M: torch.Tensor, rewards_M: torch.Tensor, clip_range: float, kl_coeff: float, kl_penalty: str = "kl"
) -> torch.Tensor:
    """Losses (M) of answers, or of tokens: -min(rho A, clip(rho, 1 - eps, 1 + eps) A), with rho = exp(x), x `ratios_M`,
    and A = reward - kl_coeff penalty(x), without gradient."""
    import torch

    x_M = ratios_M.detach()
    penalty_M = {"kl": x_M, "abs": x_M.abs(), "mse": 0.5 * x_M**2}[kl_penalty]
    advantage_M = rewards_M - kl_coeff * penalty_M
    rho_M = torch.exp(ratios_M)
    return -torch.minimum(rho_M * advantage_M, rho_M.clamp(1 - clip_range, 1 + clip_range) * advantage_M)


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.methods.comparing import run_with_reference

    settings: Settings = config.method
    if not 0 < settings.clip_range < 1:
        raise ValueError(f"method.clip_range={settings.clip_range} must be more than 0 and less than 1")
    for key in ("kl_coeff", "lm_coeff"):
        if not 0 <= getattr(settings, key) < float("inf"):
            raise ValueError(f"method.{key}={getattr(settings, key)} must be 0 or more")
    return run_with_reference(config, KINDS, _choose, _objective)


def _choose(row: RankedRow | PreferenceRow, _: Counter[str]) -> Iterator[list[Answer]]:
    """Each answer alone, with (reward, 1), or (0, 0) where nobody has scored it."""
    from training.examples.answers import Answer

    if isinstance(row, PreferenceRow):
        given: list[tuple[str, float | None]] = [(row.chosen, 1.0), (row.rejected, 0.0)]
    else:
        given = list(zip(row.responses, row.scores, strict=True))
    for text, score in given:
        values = (0.0, 0.0) if score is None else (score, 1.0)
        yield [Answer(row.prompt, text, values, row.weight)]


def _objective(config: Config, _: Loaded, __: Prepared) -> Objective:
    import torch

    from training.examples.collate import IGNORE
    from training.log_probs import reference_model, summed, token_log_probs
    from training.objective import Objective, Outcome

    settings: Settings = config.method
    reference = reference_model(config)

    def loss(model: Any, batch: Batch) -> Outcome:
        ids_BT, labels_BT, weights_B = batch["input_ids"], batch["shift_labels"], batch["row_weights"]
        reward_B, has_one_B = batch["values"].reshape(-1, 2).T
        with torch.no_grad(), reference(model) as before:
            base_N = token_log_probs(before, ids_BT, labels_BT)[0]
        logp_N, rows_N = token_log_probs(model, ids_BT, labels_BT)
        ratios_M, rows_M = logp_N - base_N, rows_N
        if not settings.token_level:
            rows_M = torch.arange(len(weights_B), device=rows_N.device)
            ratios_M = summed(ratios_M, rows_N, len(weights_B))
        losses_M = offline_ppo_loss(
            ratios_M, reward_B[rows_M], settings.clip_range, settings.kl_coeff, settings.kl_penalty.value
        )
        policy = (weights_B * has_one_B)[rows_M] * losses_M
        language = (weights_B * (1 - has_one_B))[rows_N] * -logp_N
        clipped_M = (ratios_M.detach().exp() - 1).abs() > settings.clip_range
        records = torch.stack([ratios_M.detach(), clipped_M.to(ratios_M)], 1)[has_one_B[rows_M] > 0]
        return Outcome(torch.stack([policy.sum(), settings.lm_coeff * language.sum()]), records)

    def count(batch: Batch) -> torch.Tensor:
        lengths_B = batch["shift_labels"].ne(IGNORE).sum(1)[: len(batch["rows"])]
        has_one_B = batch["values"].reshape(-1, 2)[:, 1] > 0
        rewarded = lengths_B[has_one_B].sum() if settings.token_level else has_one_B.sum()
        return torch.stack([rewarded, lengths_B[~has_one_B].sum()])

    return Objective(
        loss,
        count,
        lambda _, __, records: (
            {"kl": float(records[:, 0].mean()), "clipped": float(records[:, 1].mean())} if len(records) else {}
        ),
    )
