"""What can run token ids through a model: the protocol of a runner, and of the keys and values it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class KeyValues(Protocol):
    """The keys and values of one sequence. `tokens` are the ids they belong to, in order from the first."""

    tokens: list[int]

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        ...

    def num_shared(self, prompt: list[int]) -> int:
        """How many tokens of `prompt`, from its first one, need not be run again. At least one is left to run."""
        ...

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        ...

    def copy(self, length: int) -> KeyValues | None:
        """The first `length` tokens as a sequence of its own; None where that cannot be done."""
        ...


@dataclass
class Work:
    """Run `ids` after what `cache` holds, and give the logits of the last `num_logits` of them."""

    cache: Any
    ids: list[int]
    num_logits: int = 1


class Runner(Protocol):
    """Runs a model. Used by one thread at a time."""

    max_batch: int
    truncates: bool  # whether a cache can be cut, so that another prompt may go on from a part of it
    chunk: int | None  # most tokens that should run at once; None: a prompt has to run whole

    def new(self) -> KeyValues:
        """An empty cache."""
        ...

    def forward(self, work: Sequence[Work]) -> list[torch.Tensor]:
        """One forward pass over all `work` (at most `max_batch`): float32 logits (num_logits, vocabulary) of each.

        Caches grow only where it succeeds, so that a failed one can be tried again (a runner that cannot cut its
        caches leaves them unusable instead).
        """
        ...


def run_in_chunks(runner: Runner, cache: KeyValues, ids: list[int]) -> torch.Tensor:
    """Logits (1, vocabulary) after all of `ids`, run in chunks."""
    size = runner.chunk or len(ids)
    while len(ids) > size:
        runner.forward([Work(cache, ids[:size], 0)])
        ids = ids[size:]
    return runner.forward([Work(cache, ids)])[0]


def num_shared(tokens: list[int], prompt: list[int]) -> int:
    """`KeyValues.num_shared` where every token's keys and values depend on those before it alone."""
    return min(common_prefix(tokens, prompt), len(prompt) - 1)


def common_prefix(a: list[int], b: list[int]) -> int:
    """Length of the longest common beginning."""
    known, limit = 0, min(len(a), len(b))  # the first `known` are equal
    while known < limit:
        middle = (known + limit + 1) // 2
        if a[known:middle] == b[known:middle]:
            known = middle
        else:
            limit = middle - 1
    return known


def has_fixed_positions(config: Any) -> bool:
    """Whether a position is encoded the same in texts of every length, so that keys may outlive a text.

    Some rotary encodings stretch with the text ("dynamic", "longrope").
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    return not any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)
