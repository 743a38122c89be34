"""Scores of answers from a reward model: one that `method=reward` made, whole or an adapter, or any of transformers'
for sequence classification with one label.

    rewards = open_reward_model("runs/reward")
    rewards.scores(Conversation().add("user", "Hi"), ["Hello!", "What?"])
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from chatbot.conversation import Conversation
from common.devices import choose_device
from common.models import loading_errors, resolve_model

if TYPE_CHECKING:
    from training.examples.making import Example

DEFAULT_LENGTH = 1024
# What config.json calls the most tokens of prompt and answer that a reward model was trained with.
TRAINED_LENGTH = "trained_max_length"


class RewardModel:
    """`scores(prompt, responses)`: higher is better.

    What has more than `max_length` tokens is shortened as in training: a prompt loses its oldest turns, for all its
    responses alike, then a response its end. The first time that happens it is told.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int, batch_size: int = 16) -> None:
        from chatbot.rendering import Renderer

        self.model, self.tokenizer = model, tokenizer
        self.max_length, self._renderer, self._batch_size = max_length, Renderer(tokenizer), batch_size
        self._pooling = getattr(model.config, "pooling", "eos")
        self._told = False

    def scores(self, prompt: Conversation | None, responses: Sequence[str]) -> list[float]:
        """A score for each response; without `prompt` the responses are whole texts. Raises ValueError as `examples`
        does."""
        return self.scores_of(self.examples(prompt, responses))

    def examples(self, prompt: Conversation | None, responses: Sequence[str]) -> list[Example]:
        """What is scored for each response. Raises ValueError where the user's last turn leaves no room for any."""
        from training.data.converting import LeftOut
        from training.examples.answers import Answer, AnswerMaker

        def choose(_: Any, __: Any) -> list[list[Answer]]:
            return [[Answer(prompt, text, ()) for text in responses]]

        maker, made = AnswerMaker(self._renderer, self.max_length, choose), []
        with contextlib.suppress(LeftOut):  # none, or none that fits
            made = list(maker.examples(None))
        if len(made) < len(responses):
            raise ValueError(
                f"the prompt leaves no room for an answer; the model's limit is {self.max_length:,} tokens"
            )
        if maker.counts and not self._told:
            self._told = True
            logger.warning(
                "prompts and answers of more than {:,} tokens lose their oldest turns, then their end, before they are "
                "scored, as in training",
                self.max_length,
            )
        return made

    def scores_of(self, examples: Sequence[Example]) -> list[float]:
        """A score for each example, which may be of different prompts; `batch_size` of them run at once."""
        import torch

        from training.examples.answers import answers_batch
        from training.heads import attention_mask, sequence_scores

        found: list[float] = []
        for start in range(0, len(examples), self._batch_size):
            some = examples[start : start + self._batch_size]
            batch = answers_batch([[each] for each in some], int(self.tokenizer.pad_token_id))
            inputs = {
                "input_ids": batch["input_ids"].to(self.model.device),
                "attention_mask": attention_mask(some, batch["input_ids"]).to(self.model.device),
            }
            with torch.no_grad():
                scores_BL, _ = sequence_scores(self.model, inputs, self._pooling)
            found += scores_BL[:, 0].float().tolist()
        return found


def open_reward_model(name: str, device: str | None = None, max_length: int | None = None) -> RewardModel:
    """The reward model at a directory or of a Hugging Face id. `max_length`: tokens of prompt and answer; without it
    those that it was trained with, or, where its config.json does not say, its context.

    Raises ValueError where it cannot be loaded, has more than one label, or a smaller context than `max_length`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from training.adapters import open_adapter
    from training.models import base_of, ensure_own_padding, is_adapter, quiet_about_head

    folder = resolve_model(name)
    with loading_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ensure_own_padding(tokenizer, grows=False)
        config = AutoConfig.from_pretrained(folder)
        if config.num_labels != 1:
            raise ValueError(f"it has {config.num_labels} labels; a reward model has one")
        config.pad_token_id = tokenizer.pad_token_id
        with quiet_about_head():
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                base_of(name), config=config, dtype=torch.float32, use_safetensors=True
            )
        if is_adapter(name):
            model = open_adapter(model, Path(folder))
    model = model.to(choose_device(device)).eval()
    context = getattr(config, "max_position_embeddings", None)
    if max_length is not None and not 1 < max_length <= (context or max_length):
        raise ValueError(f"'{name}' cannot score {max_length:,} tokens; its context is {context or 'unknown'}")
    trained = getattr(config, TRAINED_LENGTH, None)
    return RewardModel(model, tokenizer, max_length or trained or context or DEFAULT_LENGTH)
