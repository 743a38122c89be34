"""The methods that learn to go on with a text (ntp, sft, prefix_lm): which parts of a run are theirs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from training.running import Task, run_task

if TYPE_CHECKING:
    from training.config.schema import Config
    from training.examples.collate import Collate
    from training.models import Loaded


def train(config: Config, kinds: tuple[type, ...]) -> Path:
    """Run `config` on rows of `kinds`; return the run's directory, which chat can load.

    Raises ValueError for whatever in configuration, model or data cannot be trained.
    """
    from training.objective import language_model_objective

    task = Task(kinds, partial(collate_of, config), lambda *_: language_model_objective(), packs=True, cuts=True)
    return run_task(config, task)


def collate_of(config: Config, loaded: Loaded) -> Collate:
    """What makes batches of rows of examples for this model."""
    from training.examples.collate import causal_batch, encoder_decoder_batch, with_bidirectional_prefix

    pad_id = loaded.pad_id
    if loaded.encoder_decoder:
        start_id = loaded.model.config.decoder_start_token_id
        return partial(encoder_decoder_batch, pad_id=pad_id, start_id=pad_id if start_id is None else start_id)
    if getattr(config.method, "bidirectional", False):
        return partial(with_bidirectional_prefix, pad_id=pad_id)
    return partial(causal_batch, pad_id=pad_id, packed=config.data.packing)
