"""Kahneman-Tversky optimisation: single answers that are good or bad, with none beside them to compare.

Ethayarajh et al. 2024, eq. 7 and 8. The reference point z, how far the model is from the untrained one, is estimated in
each batch from answers to other prompts (each row's prompt with the answer of the row before), so that batches need
two rows at least, and unlike elsewhere accumulating small batches is not the same as one large batch.

Run: python training/main.py method=kto model=runs/sft data=ratings.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.rows import RatedRow

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from training.config.schema import Config
    from training.examples.answers import Answer
    from training.examples.collate import Batch, Row
    from training.examples.preparing import Prepared
    from training.models import Loaded
    from training.objective import Objective, Outcome

KINDS = (RatedRow,)


@dataclass
class Settings:
    """How far the model may go from the untrained one, and what good and bad answers count."""

    name: str = "kto"
    beta: float = 0.1  # higher stays closer to the untrained model
    good_weight: float = 1.0  # of good answers; good_weight x good answers : bad_weight x bad ones is best 1:1 to 4:3
    bad_weight: float = 1.0


def kto_loss(
    ratios_B: torch.Tensor,
    good_B: torch.Tensor,
    kl: torch.Tensor,
    beta: float,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
) -> torch.Tensor:
    """Losses (B): good_weight (1 - sigma(beta (lr - z))) of good answers, bad_weight (1 - sigma(beta (z - lr))) of bad
    ones. `ratios_B` lr = log p - log p_ref; `kl` () z, without gradient and not below 0."""
    import torch

    sign_B = torch.where(good_B, 1.0, -1.0)
    weight_B = torch.where(good_B, good_weight, bad_weight)
    return weight_B * (1 - torch.sigmoid(sign_B * beta * (ratios_B - kl)))


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.methods.comparing import run_with_reference

    settings: Settings = config.method
    for key in ("beta", "good_weight", "bad_weight"):
        if not 0 < getattr(settings, key) < float("inf"):
            raise ValueError(f"method.{key}={getattr(settings, key)} must be more than 0")
    if config.trainer.batch_size < 2:
        raise ValueError("trainer.batch_size=1: KTO needs at least 2, to see answers to other prompts")
    return run_with_reference(
        config,
        KINDS,
        _rated,
        _objective,
        collate=lambda loaded: lambda rows: mismatched_batch(rows, loaded.pad_id, config.data.max_length),
    )


def _rated(row: RatedRow, _: Counter[str]) -> Iterator[list[Answer]]:
    from training.examples.answers import Answer

    yield [Answer(row.prompt, row.response, (float(row.good),))]


def mismatched_batch(rows: Sequence[Row], pad_id: int, max_length: int) -> Batch:
    """`answers_batch`, and as `kl_input_ids` and `kl_shift_labels` each prompt with the answer of the row before."""
    import numpy as np

    from training.examples.answers import answers_batch
    from training.examples.collate import causal_batch
    from training.examples.making import Example

    batch = answers_batch(rows, pad_id)
    answers = [answer for row in rows for answer in row]
    mixed = []
    for mine, other in zip(answers, [*answers[-1:], *answers[:-1]], strict=True):
        ids = np.concatenate([mine.ids[~mine.mask], other.ids[other.mask]])[:max_length]
        mixed.append([Example(ids, np.arange(len(ids)) >= int((~mine.mask).sum()))])
    others = causal_batch(mixed, pad_id, packed=False)
    return {**batch, "kl_input_ids": others["input_ids"], "kl_shift_labels": others["shift_labels"]}


def _objective(config: Config, loaded: Loaded, data: Prepared) -> Objective:
    import torch

    from training.methods.comparing import log_ratios
    from training.objective import Objective, Outcome

    settings: Settings = config.method
    ratios_of = log_ratios(config, loaded, data)

    def loss(model: Any, batch: Batch) -> Outcome:
        with torch.no_grad():
            kl = _mean_over_processes(ratios_of(model, batch, "kl_")).clamp(min=0)
        ratios_B = ratios_of(model, batch)
        good_B = batch["values"].reshape(-1)[: len(ratios_B)] > 0.5
        losses_B = kto_loss(ratios_B, good_B, kl, settings.beta, settings.good_weight, settings.bad_weight)
        records = torch.stack([settings.beta * ratios_B.detach(), good_B.to(ratios_B)], 1)
        return Outcome(losses_B.sum(), records)

    return Objective(loss, lambda batch: torch.tensor(len(batch["rows"])), rating_metrics)


def _mean_over_processes(values_B: torch.Tensor) -> torch.Tensor:
    """The mean () over the values of all processes; 0 of none."""
    import torch

    sums = torch.stack([values_B.sum(), values_B.new_tensor(float(len(values_B)))])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return sums[0] / sums[1].clamp(min=1)


def rating_metrics(_: float, __: list[float], records_B2: NDArray[np.float64]) -> dict[str, float]:
    """The mean reward, beta (log p - log p_ref), of good and of bad answers, where there are any."""
    if not len(records_B2):
        return {}
    rewards, good = records_B2.T
    kinds = (("good", good == 1), ("bad", good == 0))
    return {f"reward_{name}": float(rewards[mine].mean()) for name, mine in kinds if mine.any()}
