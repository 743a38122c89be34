"""Answers to prompts -> examples whose mask is true on the answer alone; and their batches.

The answers to one prompt are one row: a list of any length, or a pair. B: answers of a batch, T: positions, K: numbers
known of each answer. No row is filled up, so nothing has to be told apart by a special score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chatbot.conversation import Conversation
from training.data.converting import LeftOut
from training.examples.collate import Batch, causal_batch
from training.examples.making import CUT, SHORTENED, Example, last_run, without_oldest

if TYPE_CHECKING:
    from chatbot.rendering import Renderer

NO_ROOM = "answers left out: too long"
TOO_FEW = "its answers do not fit, or too few of them to compare"


class Answer(NamedTuple):
    """`values`: what the method knows of it, as its score."""

    prompt: Conversation | None
    text: str
    values: tuple[float, ...]
    weight: float = 1.0


Choose = Callable[[Any, Counter[str]], Iterable[Sequence[Answer]]]


@dataclass
class AnswerMaker:
    """Makes a row of the answers in each list that `choose(row, counts)` gives; of fewer than `at_least` none.

    What does not fit `max_length` loses the prompt's oldest turns first, in all answers of a row alike; then, with
    `cut`, the answer's end. `counts` says how often each thing happened.
    """

    renderer: Renderer
    max_length: int
    choose: Choose
    at_least: int = 1
    cut: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    def examples(self, row: Any) -> Iterator[Example]:
        """The answers of a row; those after the first of a list are joined to it. Raises LeftOut for a row of which
        nothing can be learned."""
        any_made = False
        for answers in self.choose(row, self.counts):
            made = list(self._of(answers))
            if len(made) < max(self.at_least, 1):
                continue
            any_made = True
            for number, (answer, ids, start) in enumerate(made):
                mask = np.arange(len(ids)) >= start
                yield Example(np.asarray(ids, np.int32), mask, answer.weight, answer.values, joined=number > 0)
        if not any_made:
            raise LeftOut(TOO_FEW)

    def _of(self, answers: Sequence[Answer]) -> Iterator[tuple[Answer, list[int], int]]:
        """(answer, ids of prompt and answer, where the answer starts)."""
        encoded = [self._encoded(answer, answer.prompt) for answer in answers]
        prompt = answers[0].prompt if answers else None
        while prompt is not None and max(len(ids) for ids, _ in encoded) > self.max_length:
            shorter = without_oldest(prompt)
            if shorter is None:
                break
            if prompt is answers[0].prompt:
                self.counts[SHORTENED] += 1
            prompt = shorter
            encoded = [self._encoded(answer, prompt) for answer in answers]
        for answer, (ids, start) in zip(answers, encoded, strict=True):
            if max(start, 1) >= self.max_length or (len(ids) > self.max_length and not self.cut):
                self.counts[NO_ROOM] += 1
                continue
            if len(ids) > self.max_length:
                self.counts[CUT] += 1
            yield answer, ids[: self.max_length], start

    def _encoded(self, answer: Answer, prompt: Conversation | None) -> tuple[list[int], int]:
        end = end_id(self.renderer.tokenizer)
        if prompt is None:
            ids, start = self.renderer.plain_ids(answer.text), 0
        else:
            rendered = self.renderer.encode(prompt.add("assistant", answer.text), add_generation_prompt=False)
            start, stop = last_run(rendered.loss_mask)
            ids = rendered.ids[:stop]  # without white space that the template puts after the end
        ends = self.renderer.special_ids | {end}
        return (ids if ids and ids[-1] in ends else [*ids, end]), start


def end_id(tokenizer: Any) -> int:
    """The token that ends a sequence. Raises ValueError where there is none."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has neither an end-of-sequence nor a separator token; set model.tokenizer")
    return int(end)


def answers_batch(rows: Sequence[Sequence[Example]], pad_id: int) -> Batch:
    """`input_ids` and `shift_labels` (B, T) of all answers of all rows; `values` (B, K) float32; `rows` (B), the row of
    each; `row_weights` (B).

    No rows make `input_ids` of a single position, and nothing of all else.
    """
    import torch

    answers = [answer for row in rows for answer in row]
    batch = causal_batch([[answer] for answer in answers], pad_id, packed=False)
    batch.pop("weights", None)
    values = np.array([answer.values for answer in answers], np.float32).reshape(len(answers), -1 if answers else 0)
    batch["values"] = torch.from_numpy(values)
    batch["rows"] = torch.tensor([number for number, row in enumerate(rows) for _ in row], dtype=torch.int64)
    batch["row_weights"] = torch.tensor([answer.weight for answer in answers], dtype=torch.float32)
    return batch
