"""Answers sampled from the model in training: batched, with a KV cache, each from random numbers of its own.

An answer depends on its seed and prompt, not on what else is in its batch (but for rounding).

B: answers written together, T: their tokens, V: vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Sampled(NamedTuple):
    """`ids` of an answer, with its end if it `ended`; `kept`: for each token those it was chosen from, or None where
    that was the whole vocabulary."""

    ids: list[int]
    ended: bool
    kept: list[NDArray[np.int32]] | None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `ends` are the ids that end an answer."""

    new_tokens: int
    ends: frozenset[int]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def restricts(self) -> bool:
        """Whether some tokens cannot be chosen."""
        return self.top_k > 0 or self.top_p < 1


def kept_tokens(logits_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """(B, V) bool: the `top_k` likeliest tokens (0: all), and of these, as a distribution, the fewest that have `top_p`
    of it (Holtzman et al. 2020, section 3.1). Ties of the last one are kept."""
    import torch

    kept_BV = torch.ones_like(logits_BV, dtype=torch.bool)
    if 0 < top_k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(top_k, 1).values[:, -1:]
        kept_BV = logits_BV >= least_B1
    if top_p < 1:
        falling_BV, order_BV = logits_BV.masked_fill(~kept_BV, -torch.inf).sort(1, descending=True)
        p_BV = falling_BV.softmax(1)
        before_BV = p_BV.cumsum(1) - p_BV
        kept_BV = kept_BV & torch.zeros_like(kept_BV).scatter(1, order_BV, before_BV < top_p)
    return kept_BV


def chosen_tokens(logits_BV: torch.Tensor, kept_BV: torch.Tensor | None, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Ids (B), by inversion: the first token at which the cumulated probability exceeds a uniform number of [0, 1)."""
    import torch

    masked_BV = logits_BV if kept_BV is None else logits_BV.masked_fill(~kept_BV, -torch.inf)
    cumulated_BV = masked_BV.double().softmax(1).cumsum(1)
    reached_B1 = uniforms_B.to(cumulated_BV)[:, None] * cumulated_BV[:, -1:]
    return torch.searchsorted(cumulated_BV, reached_B1, right=True)[:, 0].clamp(max=logits_BV.shape[1] - 1)


class _Chooser:
    """A logits processor after which greedy decoding takes the token that was sampled here."""

    def __init__(self, sampling: Sampling, uniforms_BT: torch.Tensor) -> None:
        self._sampling, self._uniforms_BT, self._step = sampling, uniforms_BT, 0
        self.kept: list[list[NDArray[np.int32]]] = []  # [token][answer]

    def __call__(self, _: Any, scores_BV: torch.Tensor) -> torch.Tensor:
        import torch

        logits_BV = scores_BV.float() / self._sampling.temperature
        kept_BV = None
        if self._sampling.restricts:
            kept_BV = kept_tokens(logits_BV, self._sampling.top_k, self._sampling.top_p)
            self.kept.append([row.nonzero()[:, 0].to(torch.int32).numpy() for row in kept_BV.cpu()])
        ids_B = chosen_tokens(logits_BV, kept_BV, self._uniforms_BT[:, self._step])
        self._step += 1
        return torch.full_like(scores_BV, -torch.inf).scatter(1, ids_B[:, None], 0.0)


def sample(
    model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[tuple[int, int, int]], sampling: Sampling
) -> list[Sampled]:
    """An answer to each prompt. `seeds`: (seed, round, number), different for each."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    device = next(model.parameters()).device
    uniforms = [_uniforms(seed, sampling.new_tokens) for seed in seeds]
    chooser = _Chooser(sampling, torch.from_numpy(np.stack(uniforms)).to(device))
    encodes = bool(model.config.is_encoder_decoder)
    start = getattr(model.config, "decoder_start_token_id", None)
    ids_BT, mask_BT = _padded(prompts, sampling.pad_id, at_left=not encodes)
    settings = GenerationConfig(
        max_new_tokens=sampling.new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=sampling.pad_id,
        eos_token_id=sorted(sampling.ends),
        decoder_start_token_id=(sampling.pad_id if start is None else start) if encodes else None,
    )
    processors: Any = LogitsProcessorList([chooser])
    with _answering(model), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)  # of PEFT, by generate
        out = model.generate(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            generation_config=settings,
            logits_processor=processors,
        )
    made = out[:, 1 if encodes else ids_BT.shape[1] :]
    return [_cut(row, number, chooser.kept, sampling) for number, row in enumerate(made.tolist())]


def _padded(prompts: Sequence[Sequence[int]], pad_id: int, at_left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, 1 where they are a prompt's). A decoder goes on at the right, so that padding is at the left."""
    import torch

    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt) if at_left else 0
        ids_BT[row, start : start + len(prompt)] = torch.tensor(list(prompt))
        mask_BT[row, start : start + len(prompt)] = 1
    return ids_BT, mask_BT


def _uniforms(seed: tuple[int, int, int], num: int) -> NDArray[np.float64]:
    """`num` random numbers that follow from the seed alone."""
    key, round_, number = seed
    return np.random.Generator(np.random.Philox(key=[key, 1], counter=[0, number, round_, 0])).random(num)


def _cut(ids: list[int], number: int, kept: list[list[NDArray[np.int32]]], sampling: Sampling) -> Sampled:
    """Up to and with the first end; what comes after it is padding."""
    end = next((place for place, each in enumerate(ids) if each in sampling.ends), None)
    length = len(ids) if end is None else end + 1
    mine = [step[number] for step in kept[:length]] if sampling.restricts else None
    return Sampled(ids[:length], end is not None, mine)


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """As for inference; and without the model's own generation settings (a repetition penalty, for one), which would
    make the distribution another than the one that is trained."""
    from transformers import GenerationConfig

    from training.heads import inner_model

    inner, training = inner_model(model), model.training
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        inner.generation_config = own
        model.train(training)
