"""Reward models: a number for an answer, higher is better, learned from ranked or scored answers.

Ouyang et al. 2022, eq. 1 (Bradley-Terry over ranked lists, the mean over all pairs of unequal score); or regression on
the scores themselves. The model is one of transformers' for sequence classification with one label.

Run: python training/main.py method=reward model=smollm2-135m data=preferences.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.rows import PreferenceRow, RankedRow
from training.methods.pairs import list_of, scored

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from training.config.schema import Config
    from training.examples.answers import Answer, Choose
    from training.examples.collate import Batch, Row
    from training.examples.preparing import Prepared
    from training.models import Loaded
    from training.objective import Objective, Outcome

KINDS = (RankedRow, PreferenceRow)


class RewardLoss(str, Enum):
    """`pairs`: which of two answers is better; `scores`: the scores themselves."""

    pairs = "pairs"
    scores = "scores"


class Pooling(str, Enum):
    """What of an answer's hidden states the reward is read from: the end token (transformers' own way for decoders),
    the token before it, the largest of each feature, their mean. Encoders (BERT) have a way of their own: leave `eos`.
    """

    eos = "eos"
    last = "last"
    max = "max"
    average = "average"


class Bins(str, Enum):
    """Bins of calibration errors: of equal width, or of equal numbers."""

    uniform = "uniform"
    quantile = "quantile"


@dataclass
class Settings:
    """What is learned, read from where, and what is told of it."""

    name: str = "reward"
    loss: RewardLoss = RewardLoss.pairs
    pooling: Pooling = Pooling.eos
    lm_coeff: float = 0.0  # weight of a language-model loss beside, on good answers; decoders only
    lm_threshold: float = 0.85  # good is a score above this
    calibration_bins: list[int] = field(default_factory=lambda: [5])  # a calibration error for each number of bins
    calibration_by: Bins = Bins.uniform


def bradley_terry_loss(
    rewards_B: torch.Tensor,
    scores_B: torch.Tensor,
    rows_B: torch.Tensor,
    margins_B: torch.Tensor | None = None,
    weights_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses (P), reward differences (P, 2)) of all pairs of one row with s_i > s_j:
    -w log sigma(r_i - r_j - margin); the second column is 1 where i and j are the first two of their row.

    Scores only say which is better, so negative ones do as well. Divide the sum by P.
    """
    import torch
    from torch.nn.functional import logsigmoid

    better_P, worse_P = ordered_pairs(scores_B, rows_B)
    difference_P = rewards_B[better_P] - rewards_B[worse_P]
    lowered_P = difference_P if margins_B is None else difference_P - margins_B[better_P]
    losses_P = -logsigmoid(lowered_P)
    if weights_B is not None:
        losses_P = weights_B[better_P] * losses_P
    places_B = torch.arange(len(rows_B), device=rows_B.device) - torch.searchsorted(rows_B, rows_B)
    first_two_P = (places_B[better_P] < 2) & (places_B[worse_P] < 2)
    return losses_P, torch.stack([difference_P.detach(), first_two_P.to(difference_P)], 1)


def ordered_pairs(scores_B: torch.Tensor, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(i, j) (P) for all pairs within a row with s_i > s_j."""
    above_BB = (rows_B[:, None] == rows_B) & (scores_B[:, None] > scores_B)
    better_P, worse_P = above_BB.nonzero(as_tuple=True)
    return better_P, worse_P


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.examples.answers import AnswerMaker
    from training.heads import attach_language_head, check_pooling
    from training.models import Head, base_of, load
    from training.running import Task, run_task
    from training.scoring import TRAINED_LENGTH

    settings: Settings = config.method
    if settings.lm_coeff < 0:
        raise ValueError(f"method.lm_coeff={settings.lm_coeff} must be 0 or more")
    if min(settings.calibration_bins, default=1) < 1:
        raise ValueError(f"method.calibration_bins={settings.calibration_bins} must all be at least 1")
    ranked = settings.loss == RewardLoss.pairs
    head = Head(("reward",), {"pooling": settings.pooling.value, TRAINED_LENGTH: config.data.max_length})

    def opened(config: Config, checkpoint: Path | None) -> Loaded:
        loaded = load(config, checkpoint, head)
        check_pooling(loaded.model, settings.pooling.value, bool(settings.lm_coeff))
        if settings.lm_coeff:
            whole = checkpoint is not None and not config.peft.name
            attach_language_head(loaded.model, str(checkpoint) if whole else base_of(config.model.name))
        return loaded

    def maker(loaded: Loaded) -> AnswerMaker:
        choose: Choose = list_of if ranked else _each_scored
        least, cut = 2 if ranked else 1, config.data.too_long.value == "cut"
        return AnswerMaker(loaded.renderer, config.data.max_length, choose, least, cut)

    task = Task(
        KINDS if ranked else (RankedRow,),
        lambda loaded: partial(_batch, pad_id=loaded.pad_id, settings=settings),
        partial(_objective, settings),
        maker,
        ("reward", settings.loss.value),
        opened,
        generates=False,
    )
    return run_task(config, task)


def _each_scored(row: RankedRow, counts: Counter[str]) -> Iterator[list[Answer]]:
    from training.examples.answers import Answer

    yield [Answer(row.prompt, text, (score, 0.0), row.weight) for text, score in scored(row, counts)]


def _batch(rows: Sequence[Row], pad_id: int, settings: Settings) -> Batch:
    """`answers_batch` with labels for a language model only in good answers, and only if those are learned."""
    from training.examples.answers import answers_batch
    from training.examples.collate import IGNORE
    from training.heads import attention_mask

    batch = answers_batch(rows, pad_id)
    batch["attention_mask"] = attention_mask([answer for row in rows for answer in row], batch["input_ids"])
    if settings.lm_coeff:
        good_B = batch["values"][:, 0] > settings.lm_threshold if len(batch["rows"]) else batch["rows"].bool()
        batch["shift_labels"][: len(good_B)][~good_B] = IGNORE
    else:
        del batch["shift_labels"]
    return batch


def _objective(settings: Settings, _: Loaded, __: Prepared) -> Objective:
    import torch

    from training.examples.collate import num_loss_tokens
    from training.heads import sequence_scores
    from training.objective import Objective, Outcome

    ranked = settings.loss == RewardLoss.pairs

    def loss(model: Any, batch: Batch) -> Outcome:
        scores_BL, language = sequence_scores(model, batch, settings.pooling.value)
        num = len(batch["rows"])
        rewards_B = scores_BL[:num, 0].float()
        scores_B, margins_B = batch["values"].reshape(num, 2).T
        losses, records = bradley_terry_loss(rewards_B, scores_B, batch["rows"], margins_B, batch["row_weights"])
        if not ranked:
            losses = batch["row_weights"] * (rewards_B - scores_B) ** 2
        total = losses.sum() + 0.0 * scores_BL.float().sum()  # every process must compute gradients, if only zeros
        if language is None:
            return Outcome(total, records)
        return Outcome(torch.stack([total, settings.lm_coeff * language]), records)

    def count(batch: Batch) -> torch.Tensor:
        num = len(batch["rows"])
        if ranked:
            num = len(ordered_pairs(batch["values"].reshape(num, 2)[:, 0], batch["rows"])[0])
        counted = torch.tensor(num)
        return torch.stack([counted, num_loss_tokens(batch)]) if settings.lm_coeff else counted

    return Objective(loss, count, partial(reward_metrics, settings))


def reward_metrics(settings: Settings, _: float, __: list[float], records_P2: NDArray[np.float64]) -> dict[str, float]:
    """Of pairs: `pair_accuracy`; `first_two_accuracy`, of the first two answers of each row alone; `margin`, the mean
    difference; and for each number of bins `ece_N`, the calibration error of sigma(|difference|)."""
    import numpy as np

    from common.calibration import expected_calibration_error

    if not len(records_P2):
        return {}
    difference, first_two = records_P2[:, 0], records_P2[:, 1] == 1
    right = difference > 0
    told = {"pair_accuracy": float(right.mean()), "margin": float(difference.mean()), "pairs": float(len(right))}
    if first_two.any():
        told["first_two_accuracy"] = float(right[first_two].mean())
    confidence = 1 / (1 + np.exp(-np.abs(difference)))
    for num in settings.calibration_bins:
        told[f"ece_{num}"] = expected_calibration_error(confidence, right, num, settings.calibration_by.value)
    return told
