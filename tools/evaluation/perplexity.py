"""Perplexity: exp of the mean negative log-likelihood per token, over all tokens of all rows (not a mean of means).

    PPL = exp( - sum_t log p(x_t | x_<t) / T )        T: tokens that have something before them

A text longer than the context is read in windows that overlap; each token is scored once, in the first window that
holds it, so that all but the first window's have at least `context - stride` tokens before them. See
https://huggingface.co/docs/transformers/perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot.engines import LoadOptions
from chatbot.engines.decoding.adapters import Adapters, base_of, is_adapter
from chatbot.engines.decoding.loading import load_tokenizer, load_weights
from chatbot.rendering import Renderer
from common.models import resolve_model
from training.data.rows import ChatRow, PairRow, Row, TextRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS: tuple[type[Row], ...] = (ChatRow, PairRow, TextRow)  # rows that can be scored, the first preferred


@dataclass(frozen=True)
class Perplexity:
    """`nll`: the sum of negative log-likelihoods in nats, over `num_tokens` tokens of `num_rows` rows."""

    nll: float = 0.0
    num_tokens: int = 0
    num_rows: int = 0

    @property
    def value(self) -> float:
        """exp(nll / num_tokens); ValueError where there is no token."""
        if not self.num_tokens:
            raise ValueError("no token was scored: a row needs at least two, and with --replies-only a reply")
        return math.exp(self.nll / self.num_tokens)


def perplexity(
    model: PreTrainedModel,
    renderer: Renderer,
    rows: Iterable[tuple[str, Row]],
    context: int,
    stride: int,
    replies_only: bool = False,
) -> Iterator[Perplexity]:
    """The sums so far, after each (place, row). With `replies_only` just the assistant's turns and completions count,
    after all that stands before them.

    Raises ValueError where a row has no loss mask, and for a log-likelihood that is no finite number: it would spoil
    or hide in a mean.
    """
    if not 1 <= stride < context:
        raise ValueError(f"stride={stride} must be from 1 to {context - 1}, below the context of {context} tokens")
    so_far = Perplexity()
    for place, row in rows:
        ids, counts = tokens_of(row, renderer, replies_only, place)
        nll, num = score(model, ids, counts, context, stride)
        if not math.isfinite(nll):
            raise ValueError(
                f"{place}: the log-likelihood is {-nll}; the weights are damaged, or overflow in this dtype"
            )
        so_far = Perplexity(so_far.nll + nll, so_far.num_tokens + num, so_far.num_rows + 1)
        yield so_far


def tokens_of(row: Row, renderer: Renderer, replies_only: bool, place: str) -> tuple[list[int], list[bool]]:
    """The ids of a row, and which of them count."""
    if isinstance(row, ChatRow):
        rendered = renderer.encode(row.conversation, add_generation_prompt=False)
        ids, replies = rendered.ids, rendered.loss_mask
    elif isinstance(row, PairRow):
        prompt = renderer.plain_ids(row.prompt)
        ids = prompt + renderer.tokenizer(row.completion, add_special_tokens=False)["input_ids"]
        replies = [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    elif isinstance(row, TextRow) and not replies_only:
        ids, replies = renderer.plain_ids(row.text), []
    else:
        raise ValueError(f"{place}: plain text has no replies; leave out --replies-only")
    return ids, replies if replies_only else [True] * len(ids)


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end): tokens begin..end are read, of which first..end are scored. Every token but the very first
    is scored once."""
    first = 1
    for begin in range(0, length, stride):
        end = min(begin + context, length)
        yield begin, first, end
        if end == length:
            return
        first = end


def score(
    model: PreTrainedModel, ids: Sequence[int], counts: Sequence[bool], context: int, stride: int
) -> tuple[float, int]:
    """The negative log-likelihood of the tokens that count, in nats, and their number."""
    import torch

    nll, num = 0.0, 0
    for begin, first, end in windows(len(ids), context, stride):
        wanted = torch.tensor(counts[first:end], dtype=torch.bool)
        if not wanted.any():
            continue
        with torch.inference_mode():
            logits_TV = model(torch.tensor([ids[begin:end]], device=model.device), use_cache=False).logits[0]
        predicting_TV = logits_TV[first - begin - 1 : end - begin - 1].float().cpu()[wanted]
        targets_T = torch.tensor(ids[first:end])[wanted]
        nll += torch.nn.functional.cross_entropy(predicting_TV, targets_T, reduction="sum").item()
        num += len(targets_T)
    return nll, num


def open_model(name: str, adapter: str | None, options: LoadOptions) -> tuple[PreTrainedModel, Renderer]:
    """A model, or an adapter with the model that it names, and its renderer."""
    place, base = resolve_model(name), name
    if is_adapter(place):
        if adapter:
            raise ValueError(f"'{name}' is an adapter already; leave out --adapter")
        base, adapter = base_of(place), name
    model, tokenizer = load_weights(base, options)
    if model.config.is_encoder_decoder:
        raise ValueError(f"'{name}' has an encoder and a decoder; perplexity in windows is for decoders alone")
    if adapter:
        adapters = Adapters(model)
        adapters.use(adapters.load(adapter))
        if (Path(resolve_model(adapter)) / "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(adapter)
    return model.eval(), Renderer(tokenizer, options.template)
