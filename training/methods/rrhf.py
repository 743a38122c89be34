"""Rank responses to align with human feedback: a better answer must be likelier than a worse one, token for token, and
the best one is learned as in supervised finetuning.

Yuan et al. 2023, eq. 1 to 4.

Run: python training/main.py method=rrhf model=runs/sft data=ranked.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.rows import PreferenceRow, RankedRow
from training.methods.pairs import list_of

if TYPE_CHECKING:
    import torch

    from training.config.schema import Config
    from training.examples.collate import Batch
    from training.examples.preparing import Prepared
    from training.models import Loaded
    from training.objective import Objective, Outcome

KINDS = (RankedRow, PreferenceRow)


@dataclass
class Settings:
    """What ranking counts beside learning the best answer."""

    name: str = "rrhf"
    length_penalty: float = 1.0  # log-probabilities are divided by tokens to this power
    rank_weight: float = 1.0


def rank_loss(p_B: torch.Tensor, scores_B: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
    """Losses (P) of all pairs of one row with s_i < s_j: max(0, p_i - p_j), eq. 2. `p_B`: log p / tokens^penalty."""
    import torch

    from training.methods.reward import ordered_pairs

    better_P, worse_P = ordered_pairs(scores_B, rows_B)
    return torch.relu(p_B[worse_P] - p_B[better_P])


def best_of_rows(scores_B: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
    """(B) bool: the answer with the highest score of each row, the first of several."""
    import torch

    number_B = torch.arange(len(rows_B), device=rows_B.device)
    beaten_BB = (scores_B > scores_B[:, None]) | ((scores_B == scores_B[:, None]) & (number_B < number_B[:, None]))
    best_B: torch.Tensor = ~(beaten_BB & (rows_B[:, None] == rows_B)).any(1)
    return best_B


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.methods.comparing import run_with_reference

    settings: Settings = config.method
    if not 0 <= settings.rank_weight < float("inf"):
        raise ValueError(f"method.rank_weight={settings.rank_weight} must be 0 or more")
    return run_with_reference(config, KINDS, list_of, _objective, at_least=2)


def _objective(config: Config, _: Loaded, __: Prepared) -> Objective:
    import torch

    from training.log_probs import answer_lengths, answer_log_probs
    from training.methods.reward import ordered_pairs
    from training.objective import Objective, Outcome

    settings: Settings = config.method

    def loss(model: Any, batch: Batch) -> Outcome:
        rows_B, weights_B = batch["rows"], batch["row_weights"]
        scores_B = batch["values"].reshape(len(rows_B), 2)[:, 0]
        logp_B = answer_log_probs(model, batch)
        p_B = logp_B / answer_lengths(batch) ** settings.length_penalty
        better_P, worse_P = ordered_pairs(scores_B, rows_B)
        ranked = (weights_B[better_P] * rank_loss(p_B, scores_B, rows_B)).sum()
        best_B = best_of_rows(scores_B, rows_B)
        learned = -(weights_B * logp_B)[best_B].sum()
        right_P1 = (p_B.detach()[better_P] > p_B.detach()[worse_P]).float()[:, None]
        return Outcome(settings.rank_weight * ranked + learned, right_P1)

    return Objective(
        loss,
        lambda batch: torch.tensor(len(batch["rows"].unique())),
        lambda _, __, right: {"pair_accuracy": float(right.mean())} if len(right) else {},
    )
