"""One sequence at a time with transformers' own cache: for architectures that ragged.py does not know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from chatbot.engines.decoding.running import Work, has_fixed_positions, num_shared

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

_CHUNK = 512


class PlainCache:
    """What the model returned as `past_key_values`, None before the first run."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.past: Any = None
        self.failure: Exception | None = None  # of a pass that may have left some layers longer than others

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        layers = getattr(self.past, "layers", ())
        return sum(each.nbytes for layer in layers for each in (layer.keys, layer.values) if each is not None)

    def num_shared(self, prompt: list[int]) -> int:
        """See KeyValues."""
        return num_shared(self.tokens, prompt)

    def truncate(self, length: int) -> None:
        """Crop to `length` tokens."""
        if length < len(self.tokens):
            self.past.crop(length - len(self.tokens))  # a negative number: so many fewer
            del self.tokens[length:]

    def copy(self, length: int) -> None:
        """transformers' caches have no copies."""
        del length


class PlainRunner:
    """Runs one sequence at a time, by the model's own forward pass. `virtual_tokens` gives what stands before every
    prompt: embeddings (1, V, d), or keys and values (see adapters.py)."""

    max_batch = 1

    def __init__(
        self, model: PreTrainedModel, virtual_tokens: Callable[[], torch.Tensor | Cache | None] = lambda: None
    ) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        self.model = model
        self._virtual_tokens = virtual_tokens
        accepted = inspect.signature(model.forward).parameters
        # Only the last positions' logits are needed; not every architecture can leave the others out.
        self._can_leave_out = "logits_to_keep" in accepted
        # State-space models have a name of their own for what they carry along.
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        layers = DynamicCache(config=model.config).layers
        # Sliding windows and recurrent states cannot go back, and not all of the latter can go on by more than a token.
        croppable = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
        self.truncates = croppable and has_fixed_positions(model.config)
        self.chunk: int | None = _CHUNK if self.truncates else None
        self._device: torch.device = next(model.get_input_embeddings().parameters()).device

    def new(self) -> PlainCache:
        """An empty cache."""
        return PlainCache()

    def forward(self, work: Sequence[Work]) -> list[torch.Tensor]:
        """See Runner."""
        import torch

        (each,) = work
        if each.cache.failure:
            raise each.cache.failure
        last_only = {"logits_to_keep": max(each.num_logits, 1)} if self._can_leave_out else {}
        model: Any = self.model
        try:
            with torch.inference_mode():
                out = model(use_cache=True, **self._inputs(each), **last_only)
        except Exception as error:
            each.cache.failure = error
            raise
        each.cache.past = out[self._cache_name]
        each.cache.tokens.extend(each.ids)
        logits_nV = out.logits[0].float()
        return [logits_nV[logits_nV.shape[0] - each.num_logits :]]

    def _inputs(self, work: Work) -> dict[str, Any]:
        """The new tokens, and what the model has seen before them: the cache, or the virtual tokens."""
        import torch

        ids = torch.tensor([work.ids], device=self._device)
        before = self._virtual_tokens() if work.cache.past is None else work.cache.past
        if isinstance(before, torch.Tensor):
            embeddings_1nd = self.model.get_input_embeddings()(ids)
            return {"inputs_embeds": torch.cat([before.to(embeddings_1nd), embeddings_1nd], dim=1)}
        return {"input_ids": ids, self._cache_name: before}
