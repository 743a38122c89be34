"""A run that learns from the model's own answers, on the seam of all methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.rows import PromptRow
from training.rl.meter import Meter

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from training.config.schema import Config
    from training.examples.collate import Batch
    from training.examples.preparing import Prepared
    from training.models import Loaded
    from training.objective import Objective
    from training.rl.rounds import Learn

Loss = Callable[[Any, "Batch", Meter], "torch.Tensor"]


def run_rounds(
    config: Config,
    learn: Learn,
    loss: Loss,
    count: Callable[[Batch], torch.Tensor],
    *,
    learned: int,
    numbers: dict[str, float] | None = None,
    with_values: bool = False,
) -> Path:
    """Run a method on rounds of `learned` answers each; return the run's directory.

    `learn` says what is learned of a round, `loss(model, batch, meter)` is summed over what `count` counts. `numbers`
    go with the rounds (training/rl/rounds.py). `with_values` gives the policy a value head.
    """
    from training.language_model import collate_of
    from training.rl.settings import check_rounds
    from training.running import Task, run_task

    check_rounds(config, learned)

    def opened(config: Config, checkpoint: Path | None) -> Loaded:
        from training.models import load
        from training.rl.policy import attach_value_head, without_dropout

        loaded = load(config, checkpoint)
        without_dropout(loaded.model)
        if with_values:
            attach_value_head(loaded.model, checkpoint)
        return loaded

    def collate(loaded: Loaded) -> Any:
        from training.rl.rounds import rollout_batch

        return partial(rollout_batch, collate=collate_of(config, loaded))

    meter = Meter()

    def trainer(*args: Any, **kwargs: Any) -> Any:
        from training.rl.trainer import RoundTrainer

        max_kl, num_samples = config.method.max_kl, config.trainer.samples
        return RoundTrainer(*args, meter=meter, max_kl=max_kl, num_samples=num_samples, **kwargs)

    task = Task(
        (PromptRow,),
        collate,
        lambda *_: _objective(lambda model, batch: loss(model, batch, meter), count),
        open=opened,
        generates=False,
        prepare=partial(_prepare, learn=learn, learned=learned, numbers=numbers or {}),
        trainer=trainer,
    )
    return run_task(config, task)


def _prepare(config: Config, loaded: Loaded, learn: Learn, learned: int, numbers: dict[str, float]) -> Prepared:
    """Prompts as rounds."""
    from common.devices import choose_device
    from training.language_model import collate_of
    from training.log_probs import reference_model
    from training.rl.prompts import read_prompts
    from training.rl.rewards import open_rewards
    from training.rl.rounds import EvaluationRows, Rounds, Writer
    from training.rl.sampling import Sampling

    settings, seed = config.method, config.trainer.seed
    device = str(choose_device(config.model.device))
    reward = open_rewards(settings.reward, settings.weights, device, settings.reward_length)
    data, train, evaluation = read_prompts(config, loaded)
    sampling = Sampling(
        settings.new_tokens, _ends(loaded), loaded.pad_id, settings.temperature, settings.top_k, settings.top_p
    )
    server = None
    if settings.server is not None:
        from training.rl.served import Server
        from training.run_directory import directory_of

        server = Server(settings.server, directory_of(config) / "served", settings.rollout_batch)
    collate, at_once = collate_of(config, loaded), settings.rollout_batch
    writer = Writer(loaded, reference_model(config), reward, collate, sampling, seed, at_once, server)
    rounds: Any = Rounds(
        writer,
        train,
        learn,
        num_prompts=settings.prompts,
        samples=settings.samples,
        learned=learned,
        passes=settings.passes,
        numbers=dict(numbers),
    )
    held: Any = EvaluationRows(writer, evaluation) if evaluation is not None else None
    data.train, data.eval = rounds, held
    return data


def _ends(loaded: Loaded) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those that the model's generation settings name."""
    named = loaded.model.generation_config.eos_token_id
    listed = named if isinstance(named, list) else [] if named is None else [named]
    return frozenset({int(loaded.tokenizer.eos_token_id), *listed})


def _objective(loss: Callable[..., torch.Tensor], count: Callable[[Batch], torch.Tensor]) -> Objective:
    """In training the method's; in an evaluation, where nothing is learned, what the answers are worth."""
    import torch

    from training.objective import Objective, Outcome

    def either(model: Any, batch: Batch) -> Outcome:
        if model.training:
            return Outcome(loss(model, batch))
        columns = [batch["rewards"], batch.get("kl", batch["rewards"]), batch["lengths"].to(batch["rewards"])]
        return Outcome(-batch["rewards"].sum(), torch.stack(columns, 1))

    def counted(batch: Batch) -> torch.Tensor:
        return count(batch) if "advantages" in batch else torch.tensor(len(batch["rewards"]))

    return Objective(either, counted, answer_metrics)


def answer_metrics(_: float, __: list[float], records_B3: NDArray[np.float64]) -> dict[str, float]:
    """Of answers (reward, KL to the reference, length): their means."""
    if not len(records_B3):
        return {}
    reward, kl, length = records_B3.mean(0).tolist()
    return {"reward": reward, "kl": kl, "length": length}
