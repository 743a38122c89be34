"""Weighted learning: answers with a positive score are learned, those with a negative one unlearned, each by its size.

Welleck et al. 2020 (unlikelihood), eq. 4 and 5, on whole answers. A preference counts as 1 and -1, a rating as 1 or -1,
a conversation as its weight.

Run: python training/main.py method=weighted model=runs/sft data=scored.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.conversation import Conversation
from training.data.rows import ChatRow, PreferenceRow, RankedRow, RatedRow
from training.methods.pairs import scored

if TYPE_CHECKING:
    import torch

    from training.config.schema import Config
    from training.examples.answers import Answer
    from training.examples.collate import Batch
    from training.examples.preparing import Prepared
    from training.models import Loaded
    from training.objective import Objective, Outcome

KINDS = (RankedRow, PreferenceRow, RatedRow, ChatRow)
ZERO = "answers left out: a score of 0 teaches nothing"


@dataclass
class Settings:
    """Nothing of its own: the scores are in the data."""

    name: str = "weighted"


def weighted_loss(logp_N: torch.Tensor, scores_N: torch.Tensor) -> torch.Tensor:
    """Losses (N) of tokens: -s log p where s > 0, -|s| log(1 - p) where s < 0. Divide the sum by N."""
    import torch

    unlikely_N = torch.log(-torch.expm1(logp_N.clamp(max=-1e-7)))  # finite, also where p is 1
    return -scores_N.abs() * torch.where(scores_N > 0, logp_N, unlikely_N)


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.methods.comparing import run_with_reference

    return run_with_reference(config, KINDS, _choose, _objective)


def _choose(row: RankedRow | PreferenceRow | RatedRow | ChatRow, counts: Counter[str]) -> Iterator[list[Answer]]:
    from training.examples.answers import Answer

    weight = 1.0
    found: list[tuple[Conversation | None, str, float]]
    if isinstance(row, RankedRow):
        weight = row.weight
        found = [(row.prompt, text, score) for text, score in scored(row, counts)]
    elif isinstance(row, PreferenceRow):
        weight = row.weight
        found = [(row.prompt, row.chosen, 1.0), (row.prompt, row.rejected, -1.0)]
    elif isinstance(row, RatedRow):
        found = [(row.prompt, row.response, 1.0 if row.good else -1.0)]
    else:
        conversation = row.conversation
        found = [(conversation.upto(len(conversation) - 1), conversation.last.content, row.weight)]
    for prompt, text, score in found:
        if score:
            yield [Answer(prompt, text, (score * weight,))]
        else:
            counts[ZERO] += 1


def _objective(_: Config, __: Loaded, ___: Prepared) -> Objective:
    from training.examples.collate import num_loss_tokens
    from training.log_probs import token_log_probs
    from training.objective import Objective, Outcome

    def loss(model: Any, batch: Batch) -> Outcome:
        logp_N, rows_N = token_log_probs(model, batch["input_ids"], batch["shift_labels"])
        return Outcome(weighted_loss(logp_N, batch["values"].reshape(-1)[rows_N]).sum())

    return Objective(loss, num_loss_tokens, lambda _, counts, __: {"tokens": counts[0]})
