"""Several sequences of any lengths in one forward pass, without padding.

All new tokens of all sequences stand in one row of N, each with its own position. Embeddings, projections and MLPs see
N tokens, which is what makes a batch cheap: the weights are read once. Only attention tells sequences apart. It is a
function of our own, registered with transformers, that writes each sequence's new keys and values into that sequence's
own buffers and attends over them. So nothing has to be padded, moved or masked when a sequence joins or leaves, a
chunk of a prompt can run beside the next tokens of others, and a sequence's cache is simply its buffers.

Shapes: N new tokens of all sequences, n of one, T all tokens of one, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chatbot.engines.decoding.running import Work, has_fixed_positions, num_shared

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "parley_ragged"
_GROWTH = 256  # tokens: buffers grow in such steps
# Checked in tests against transformers' generate. Others are checked when they are loaded, by running a few tokens.
KNOWN_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt_neox", "phi", "gemma", "olmo2", "granite"})
_HARMLESS = {"position_ids", "position_embeddings", "use_cache", "output_attentions"}


class RaggedCache:
    """Keys and values of one sequence: per layer two buffers (1, K, capacity, D) of which the first T are filled."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Memory held, the room left for growth included."""
        return sum(each.nbytes for pair in self.layers.values() for each in pair)

    def num_shared(self, prompt: list[int]) -> int:
        """See KeyValues."""
        return num_shared(self.tokens, prompt)

    def truncate(self, length: int) -> None:
        """What lies behind is simply overwritten later."""
        del self.tokens[length:]

    def copy(self, length: int) -> RaggedCache:
        """The first `length` tokens in buffers of their own."""
        twin = RaggedCache()
        twin.tokens = self.tokens[:length]
        for layer, pair in self.layers.items():
            keys, values = (each[:, :, :length].clone() for each in pair)
            twin.layers[layer] = keys, values
        return twin

    def append(self, layer: int, key_1KnD: torch.Tensor, value_1KnD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write behind the T tokens that count so far; gives keys and values (1, K, T + n, D)."""
        start = len(self.tokens)
        end = start + key_1KnD.shape[2]
        if layer not in self.layers or self.layers[layer][0].shape[2] < end:
            self._grow(layer, key_1KnD, value_1KnD, end)
        keys, values = self.layers[layer]
        keys[:, :, start:end] = key_1KnD
        values[:, :, start:end] = value_1KnD
        return keys[:, :, :end], values[:, :, :end]

    def _grow(self, layer: int, key_1KnD: torch.Tensor, value_1KnD: torch.Tensor, end: int) -> None:
        capacity = -(-end // _GROWTH) * _GROWTH
        fresh = [each.new_empty(1, each.shape[1], capacity, each.shape[3]) for each in (key_1KnD, value_1KnD)]
        for new, old in zip(fresh, self.layers.get(layer, ()), strict=False):
            new[:, :, : len(self.tokens)] = old[:, :, : len(self.tokens)]
        self.layers[layer] = fresh[0], fresh[1]


class _Span:
    """One sequence's place in the row, `start` to `stop`."""

    def __init__(self, cache: RaggedCache, start: int, stop: int) -> None:
        self.cache, self.start, self.stop = cache, start, stop
        self._masks: dict[torch.device, torch.Tensor] = {}

    def mask(self, device: torch.device) -> torch.Tensor | None:
        """(n, T + n): each new token sees the cache and itself and those before it. None: plainly causal."""
        import torch

        num_old, num_new = len(self.cache.tokens), self.stop - self.start
        if not num_old:
            return None
        if device not in self._masks:
            everything = torch.ones(num_new, num_old + num_new, dtype=torch.bool, device=device)
            self._masks[device] = everything.tril(num_old)
        return self._masks[device]


class _Step:
    """All spans of one forward pass. (An object, since accelerate rebuilds lists on their way to a device.)"""

    def __init__(self, work: Sequence[Work]) -> None:
        self.spans: list[_Span] = []
        place = 0
        for each in work:
            self.spans.append(_Span(each.cache, place, place + len(each.ids)))
            place += len(each.ids)


def attention(
    module: Any,
    query_1HND: torch.Tensor,
    key_1KND: torch.Tensor,
    value_1KND: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    ragged: _Step | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers. Without `ragged` it is its `sdpa`, so that all else works as ever."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if ragged is None:
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query_1HND, key_1KND, value_1KND, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return out
    if unknown := [name for name, value in others.items() if _matters(name, value)]:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    attend = torch.nn.functional.scaled_dot_product_attention
    num_heads, num_kv, size = query_1HND.shape[1], key_1KND.shape[1], query_1HND.shape[3]
    outs = []
    for span in ragged.spans:
        part = slice(span.start, span.stop)
        keys, values = span.cache.append(module.layer_idx, key_1KND[:, :, part], value_1KND[:, :, part])
        query = query_1HND[:, :, part]
        if span.stop - span.start == 1:
            # The query heads that share a key-value head stand as so many tokens: nothing has to be repeated.
            query = query.reshape(1, num_kv, num_heads // num_kv, size)
            out_1nHD = attend(query, keys, values, scale=scaling).reshape(1, 1, num_heads, -1)
        else:
            mask = span.mask(query.device)
            groups = num_heads // num_kv
            if mask is not None and groups > 1 and query.device.type != "cpu":
                # With a mask, GPU kernels that save memory want as many key-value heads as query heads.
                keys, values, groups = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), 1
            out_1nHD = attend(
                query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
            ).transpose(1, 2)
        outs.append(out_1nHD)
    return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)), None


def _matters(name: str, value: object) -> bool:
    """Whether what a model tells its attention function asks for more than plain causal attention."""
    if name == "is_causal":
        return value is False
    return name not in _HARMLESS and value is not None and value is not False


class RaggedRunner:
    """Runs up to `max_batch` sequences in one forward pass. `chunk` is the number of prompt tokens a pass may hold."""

    truncates = True

    def __init__(self, model: PreTrainedModel, max_batch: int = 16, chunk: int | None = None) -> None:
        import torch

        self.model = model
        self.max_batch = max_batch
        self._device: torch.device = next(model.get_input_embeddings().parameters()).device
        # What others wait at most while a newcomer's prompt runs: some tenths of a second.
        self.chunk: int | None = chunk or (128 if self._device.type == "cpu" else 1024)
        # transformers hands a mask of four dimensions on as it is; our attention does not look at it.
        self._no_mask = torch.zeros(1, 1, 1, 1, device=self._device)

    def new(self) -> RaggedCache:
        """An empty cache."""
        return RaggedCache()

    def forward(self, work: Sequence[Work]) -> list[torch.Tensor]:
        """See Runner."""
        import torch

        ids = [id_ for each in work for id_ in each.ids]
        positions = [len(each.cache.tokens) + i for each in work for i in range(len(each.ids))]
        wanted: list[int] = []
        place = 0
        for each in work:
            place += len(each.ids)
            wanted += range(place - each.num_logits, place)
        with torch.inference_mode():
            model: Any = self.model
            logits_MV = (
                model(
                    input_ids=torch.tensor([ids], device=self._device),
                    position_ids=torch.tensor([positions], device=self._device),
                    attention_mask=self._no_mask,
                    use_cache=False,
                    logits_to_keep=torch.tensor(wanted or [place - 1], device=self._device),
                    ragged=_Step(work),
                )
                .logits[0]
                .float()
            )
        for each in work:
            each.cache.tokens.extend(each.ids)
        return list(logits_MV[: len(wanted)].split([each.num_logits for each in work]))


def open_ragged(model: PreTrainedModel, max_batch: int) -> RaggedRunner | None:
    """A runner for `model`, whose attention function is set to ours; None where the architecture does not allow it."""
    from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
    from transformers.cache_utils import DynamicLayer
    from transformers.masking_utils import sdpa_mask

    before = model.config._attn_implementation
    layers = DynamicCache(config=model.config).layers
    if (
        before != "sdpa"
        or not model._supports_attention_backend
        or "logits_to_keep" not in inspect.signature(model.forward).parameters
        or any(type(layer) is not DynamicLayer for layer in layers)  # sliding windows, recurrent states
        or not has_fixed_positions(model.config)
    ):
        return None
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    runner = RaggedRunner(model, max_batch)
    if model.config.model_type in KNOWN_TYPES or _agrees(model, runner):
        return runner
    model.set_attn_implementation(before)
    return None


def _agrees(model: Any, runner: RaggedRunner) -> bool:
    """Whether two short sequences, run in pieces and together, give the logits that the model gives by itself."""
    import torch

    first, second = [1, 2, 3, 4, 5], [5, 4, 3]
    device = next(model.get_input_embeddings().parameters()).device
    try:
        one, two = runner.new(), runner.new()
        runner.forward([Work(one, first[:3]), Work(two, second[:2])])
        found = runner.forward([Work(two, second[2:]), Work(one, first[3:])])
        with torch.inference_mode():
            expected = [model(torch.tensor([ids], device=device)).logits[0, -1:].float() for ids in (second, first)]
    except (NotImplementedError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return False  # another architecture than this was written for: it runs one request at a time
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    return all(
        bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
        for ours, theirs in zip(found, expected, strict=True)
    )
