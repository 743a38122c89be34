"""From logits to the next token: one Chooser a request, so that what else runs cannot change what is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatbot.engines.base import Generation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Token:
    """A chosen token, its natural log-probability under the raw logits and the likeliest in its place, as
    (id, log-probability), best first. `logprob` is None where none were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Chooser:
    """Chooses the tokens of one answer. Token choice uses transformers' own logits processors."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._answer: list[int] = []
        self._processors: Any = None
        self._chance: torch.Generator | None = None

    def choose(self, logits_V: torch.Tensor) -> Token:
        """The next token. ValueError where the logits of a sampled answer are not finite."""
        import torch

        with torch.inference_mode():
            if self._processors is None:
                self._prepare(logits_V.device)
            scores_1V = logits_V[None]
            if self._processors:
                # The answer's own tokens alone: an answer may quote the prompt as often as it likes.
                said_1T = torch.tensor([self._answer], dtype=torch.long, device=logits_V.device)
                scores_1V = self._processors(said_1T, scores_1V)
            id_ = int(scores_1V.argmax()) if self._chance is None else self._draw(scores_1V)
            self._answer.append(id_)
            return self._with_logprobs(id_, logits_V)

    def _draw(self, scores_1V: torch.Tensor) -> int:
        import torch

        probs_1V = scores_1V.softmax(dim=-1)
        if not torch.isfinite(probs_1V).all():
            raise ValueError("the model's logits are not finite; try --dtype float32")
        return int(torch.multinomial(probs_1V, 1, generator=self._chance))

    def _with_logprobs(self, id_: int, logits_V: torch.Tensor) -> Token:
        num_top = self._generation.logprobs
        if num_top is None:
            return Token(id_)
        logprobs_V = logits_V.log_softmax(dim=-1)
        best = logprobs_V.topk(min(num_top, len(logprobs_V)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Token(id_, float(logprobs_V[id_]), tuple(top))

    def _prepare(self, device: torch.device) -> None:
        import torch
        from transformers import (
            LogitsProcessorList,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        wanted = self._generation
        processors: Any = LogitsProcessorList()
        self._processors = processors
        if wanted.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(wanted.repetition_penalty))
        if wanted.greedy:
            return
        if wanted.temperature != 1:
            processors.append(TemperatureLogitsWarper(wanted.temperature))
        if wanted.top_k:
            processors.append(TopKLogitsWarper(wanted.top_k))
        if wanted.top_p < 1:
            processors.append(TopPLogitsWarper(wanted.top_p))
        self._chance = torch.Generator(device)
        if wanted.seed is None:
            self._chance.seed()
        else:
            self._chance.manual_seed(wanted.seed)
