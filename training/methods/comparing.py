"""What methods share that make answers likelier or not: their task, and how far the model is from the untrained one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from training.config.schema import Config
    from training.examples.answers import Choose
    from training.examples.collate import Batch, Collate
    from training.examples.preparing import Prepared
    from training.models import Loaded
    from training.objective import Objective

MakeObjective = Callable[["Config", "Loaded", "Prepared"], "Objective"]


def run_with_reference(
    config: Config,
    kinds: tuple[type, ...],
    choose: Choose,
    objective: MakeObjective,
    at_least: int = 1,
    made_from: Sequence[Any] = (),
    collate: Callable[[Loaded], Collate] | None = None,
) -> Path:
    """Run a decoder on lists of answers; return the run's directory."""
    from training.examples.answers import AnswerMaker, answers_batch
    from training.running import Task, run_task

    def maker(loaded: Loaded) -> AnswerMaker:
        if loaded.encoder_decoder:
            raise ValueError(f"method={config.method.name} is for decoders; this model has an encoder too")
        data = config.data
        return AnswerMaker(loaded.renderer, data.max_length, choose, at_least, data.too_long.value == "cut")

    task = Task(
        kinds,
        collate or (lambda loaded: partial(answers_batch, pad_id=loaded.pad_id)),
        partial(objective, config),
        maker,
        (config.method.name, *made_from),
    )
    return run_task(config, task)


def log_ratios(
    config: Config, loaded: Loaded, data: Prepared, precomputed: bool = False
) -> Callable[..., torch.Tensor]:
    """(model, batch, prefix of the inputs) -> log p(answer) - log p_ref(answer) (B), the reference without gradient."""
    import torch

    from training.log_probs import answer_log_probs, precompute, reference_model

    if precomputed:
        precompute(config, data, loaded.pad_id)
        return lambda model, batch: answer_log_probs(model, batch) - batch["values"][:, -1]
    reference = reference_model(config)

    def ratios(model: Any, batch: Batch, prefix: str = "") -> torch.Tensor:
        with torch.no_grad(), reference(model) as before:
            base_B = answer_log_probs(before, batch, prefix)
        return answer_log_probs(model, batch, prefix) - base_B

    return ratios
