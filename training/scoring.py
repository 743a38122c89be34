"""Scores of answers from a reward model: one that `method=reward` made, whole or an adapter, or any of transformers'
for sequence classification with one label.

    rewards = open_reward_model("runs/reward")
    rewards.scores(Conversation().add("user", "Hi"), ["Hello!", "What?"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.conversation import Conversation
from common.devices import choose_device
from common.models import loading_errors, resolve_model

if TYPE_CHECKING:
    from training.examples.making import Example

DEFAULT_LENGTH = 1024
_NO_LIMIT = 1 << 31


class RewardModel:
    """`scores(prompt, responses)`: higher is better. `max_length` in tokens: a prompt loses its oldest turns first."""

    def __init__(self, model: Any, tokenizer: Any, max_length: int, batch_size: int = 16) -> None:
        from chatbot.rendering import Renderer

        self.model, self.tokenizer = model, tokenizer
        self.max_length, self._renderer, self._batch_size = max_length, Renderer(tokenizer), batch_size
        self._pooling = getattr(model.config, "pooling", "eos")

    def scores(self, prompt: Conversation | None, responses: Sequence[str]) -> list[float]:
        """A score for each response; without `prompt` the responses are whole texts.

        Raises ValueError for a response that does not fit beside the user's last turn.
        """
        examples = self._examples(prompt, responses, self.max_length)
        if len(examples) < len(responses):
            raise ValueError(f"a prompt leaves no room for its answer within {self.max_length} tokens; shorten it")
        return self.scores_of(examples)

    def example(self, prompt: Conversation | None, response: str) -> Example:
        """What is scored for a response, whole. Raises ValueError where it has more than `max_length` tokens."""
        (example,) = self._examples(prompt, [response], _NO_LIMIT)
        if len(example.ids) > self.max_length:
            raise ValueError(
                f"prompt and response have {len(example.ids):,} tokens; the model's limit is {self.max_length:,}"
            )
        return example

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

    def _examples(self, prompt: Conversation | None, responses: Sequence[str], max_length: int) -> list[Example]:
        from training.data.converting import LeftOut
        from training.examples.answers import Answer, AnswerMaker

        def choose(_: Any, __: Any) -> list[list[Answer]]:
            return [[Answer(prompt, text, ()) for text in responses]]

        try:
            return list(AnswerMaker(self._renderer, max_length, choose).examples(None))
        except LeftOut:  # none, or none that fits
            return []


def open_reward_model(name: str, device: str | None = None) -> RewardModel:
    """The reward model at a directory or of a Hugging Face id. Raises ValueError where it cannot be loaded, or has more
    than one label."""
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
    longest = getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH
    return RewardModel(model, tokenizer, longest)
