"""Direct preference optimisation: of two answers the better one becomes likelier, measured against the untrained model.

Rafailov et al. 2023, eq. 7; `ipo` is Azar et al. 2023, eq. 17, over the mean per token as its authors do; `hinge` is
Zhao et al. 2023 (SLiC), eq. 2, on the same log-ratios.

Run: python training/main.py method=dpo model=runs/sft data=preferences.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.rows import PreferenceRow, RankedRow
from training.methods.pairs import Pairs, pairs_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from training.config.schema import Config
    from training.examples.collate import Batch
    from training.examples.preparing import Prepared
    from training.models import Loaded
    from training.objective import Objective, Outcome

KINDS = (PreferenceRow, RankedRow)


class Variant(str, Enum):
    """The loss of a pair."""

    sigmoid = "sigmoid"
    ipo = "ipo"
    hinge = "hinge"


@dataclass
class Settings:
    """Which loss, and how far the model may go from the untrained one."""

    name: str = "dpo"
    loss: Variant = Variant.sigmoid
    beta: float = 0.1  # higher stays closer to the untrained model; of ipo, tau
    pairs: Pairs = Pairs.best_over_rest  # of ranked answers
    precompute_reference: bool = False  # log-probabilities of the untrained model before training, not beside it


def dpo_loss(ratios_P2: torch.Tensor, beta: float, variant: str = "sigmoid") -> torch.Tensor:
    """Losses (P) of pairs. `ratios_P2`: log p(answer) - log p_ref(answer) of the better and the worse; for `ipo` each
    divided by the answer's tokens.

    With d the difference: sigmoid -log sigma(beta d); ipo (d - 1 / (2 beta))^2; hinge max(0, 1 - beta d).
    """
    import torch
    from torch.nn.functional import logsigmoid

    difference_P = ratios_P2[:, 0] - ratios_P2[:, 1]
    if variant == "ipo":
        return (difference_P - 1 / (2 * beta)) ** 2
    if variant == "hinge":
        return torch.relu(1 - beta * difference_P)
    return -logsigmoid(beta * difference_P)


def run(config: Config) -> Path:
    """Train; return the run's directory."""
    from training.methods.comparing import run_with_reference

    settings: Settings = config.method
    if not 0 < settings.beta < float("inf"):
        raise ValueError(f"method.beta={settings.beta} must be more than 0")
    choose = partial(pairs_of, pairs=settings.pairs)
    return run_with_reference(config, KINDS, choose, _objective, at_least=2, made_from=[settings.pairs.value])


def _objective(config: Config, loaded: Loaded, data: Prepared) -> Objective:
    from training.log_probs import answer_lengths
    from training.methods.comparing import log_ratios
    from training.objective import Objective, Outcome

    settings: Settings = config.method
    ratios_of = log_ratios(config, loaded, data, settings.precompute_reference)

    def loss(model: Any, batch: Batch) -> Outcome:
        ratios_B = ratios_of(model, batch)
        scaled_B = ratios_B / answer_lengths(batch) if settings.loss == Variant.ipo else ratios_B
        losses_P = dpo_loss(scaled_B.view(-1, 2), settings.beta, settings.loss.value)
        return Outcome((batch["row_weights"][::2] * losses_P).sum(), settings.beta * ratios_B.detach().view(-1, 2))

    return Objective(loss, lambda batch: batch["rows"].new_tensor(len(batch["rows"]) // 2), preference_metrics)


def preference_metrics(_: float, __: list[float], rewards_P2: NDArray[np.float64]) -> dict[str, float]:
    """Of pairs (P, 2) of rewards: how often the better answer has the higher one, and by how much."""
    if not len(rewards_P2):
        return {}
    better, worse = rewards_P2.T
    return {
        "accuracy": float((better > worse).mean()),
        "margin": float((better - worse).mean()),
        "reward_chosen": float(better.mean()),
        "reward_rejected": float(worse.mean()),
    }
