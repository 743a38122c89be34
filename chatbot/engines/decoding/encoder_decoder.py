"""One sequence at a time with an encoder-decoder model (T5, BART and their like).

A prompt here is what the encoder reads, and after it the one token that the decoder begins with. Since every token that
the encoder reads changes what it makes of the others, its output serves a later prompt only where that is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chatbot.engines.decoding.running import Work

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class EncoderDecoderCache:
    """What the encoder made of the source, the first tokens of `tokens`, and the decoder's `past_key_values`."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.encoded_1Sd: torch.Tensor | None = None
        self.past: Any = None
        self.failure: Exception | None = None  # of a pass that may have left some layers longer than others

    @property
    def num_bytes(self) -> int:
        """Memory of the encoder's output, and of the decoder's keys and values."""
        parts = (self.past.self_attention_cache, self.past.cross_attention_cache) if self.past else ()
        pairs = [(layer.keys, layer.values) for part in parts for layer in part.layers]
        held = [self.encoded_1Sd, *(each for pair in pairs for each in pair)]
        return sum(each.nbytes for each in held if each is not None)

    @property
    def num_source(self) -> int:
        """Tokens that the encoder has read."""
        return 0 if self.encoded_1Sd is None else self.encoded_1Sd.shape[1]

    def num_shared(self, prompt: list[int]) -> int:
        """All but the decoder's first token, or nothing."""
        return self.num_source if prompt[:-1] == self.tokens[: self.num_source] else 0

    def truncate(self, length: int) -> None:
        """Keep the source alone, or source and answer as they are; nothing between is asked for."""
        if length < len(self.tokens):
            self.past = None
            del self.tokens[self.num_source :]

    def copy(self, length: int) -> EncoderDecoderCache:
        """The source alone. It is never changed, so both can use it."""
        del length
        twin = EncoderDecoderCache()
        twin.tokens, twin.encoded_1Sd = self.tokens[: self.num_source], self.encoded_1Sd
        return twin


class EncoderDecoderRunner:
    """Runs one sequence at a time, by the model's own forward pass."""

    max_batch = 1
    truncates = True
    chunk: int | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._device: torch.device = next(model.get_input_embeddings().parameters()).device

    def new(self) -> EncoderDecoderCache:
        """An empty cache."""
        return EncoderDecoderCache()

    def forward(self, work: Sequence[Work]) -> list[torch.Tensor]:
        """See Runner."""
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        (each,) = work
        cache, ids = each.cache, each.ids
        if cache.failure:
            raise cache.failure
        model: Any = self.model
        with torch.inference_mode():
            if cache.encoded_1Sd is None:
                source = torch.tensor([ids[:-1]], device=self._device)
                cache.encoded_1Sd = model.get_encoder()(input_ids=source).last_hidden_state
                cache.tokens = ids[:-1]
                ids = ids[-1:]
            try:
                out = model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=cache.encoded_1Sd),
                    decoder_input_ids=torch.tensor([ids], device=self._device),
                    past_key_values=cache.past,
                    use_cache=True,
                )
            except Exception as error:
                cache.failure = error
                raise
        cache.past = out.past_key_values
        cache.tokens.extend(ids)
        logits_nV = out.logits[0].float()
        return [logits_nV[logits_nV.shape[0] - each.num_logits :]]


def decoder_start(model: PreTrainedModel) -> int:
    """The token that the decoder begins with. ValueError where the configuration names none."""
    configs = (model.config, model.generation_config)
    named = [getattr(config, "decoder_start_token_id", None) for config in configs]
    named.append(getattr(model.config, "pad_token_id", None))  # as T5 has it
    found = next((id_ for id_ in named if id_ is not None), None)
    if found is None:
        raise ValueError(
            "the model does not say what its decoder begins with; set decoder_start_token_id in config.json"
        )
    return int(found)
