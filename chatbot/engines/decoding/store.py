"""Caches of finished generations, found again by the longest prefix they share with a new prompt.

Bounded by memory; what was used least recently goes first. Caches of different adapters never meet.
"""

from __future__ import annotations

from collections.abc import Iterable

from chatbot.engines.decoding.running import KeyValues, Runner

DEFAULT_BYTES = 2 * 2**30
_SHARE = 8  # at most one eighth of the memory
_SMALL_LOSS = 4  # a cache that would lose at most a quarter is taken over, and otherwise copied


class PrefixStore:
    """Keeps at most `max_bytes` of caches. Used by one thread at a time."""

    def __init__(self, runner: Runner, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._runner = runner
        self._entries: list[tuple[str | None, KeyValues]] = []  # least recently used first

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(cache.num_bytes for _, cache in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def start(self, adapter: str | None, prompt: list[int], running: Iterable[KeyValues] = ()) -> KeyValues:
        """A cache to run the rest of `prompt` in: its `tokens` are a prefix of it, at least one token shorter.

        The best entry is taken over, or copied where much of it would be lost to another conversation that shares only
        the beginning. `running` caches are in use and can only be copied.
        """
        if not self._runner.truncates:
            return self._runner.new()
        candidates = [(cache, False) for each, cache in self._entries if each == adapter]
        candidates += [(cache, True) for cache in running]
        shared = [cache.num_shared(prompt) for cache, _ in candidates]
        if not shared or max(shared) == 0:
            return self._runner.new()
        length = max(shared)
        cache, in_use = candidates[len(shared) - 1 - shared[::-1].index(length)]
        lost = len(cache.tokens) - length
        if (in_use or lost * _SMALL_LOSS > len(cache.tokens)) and (copied := cache.copy(length)) is not None:
            return copied
        if in_use:
            return self._runner.new()
        self._entries = [entry for entry in self._entries if entry[1] is not cache]
        cache.truncate(length)
        return cache

    def keep(self, adapter: str | None, cache: KeyValues) -> None:
        """Keep `cache` as the most recently used; entries that it covers wholly go, then the oldest."""
        if not self._runner.truncates or not cache.tokens or cache.num_bytes > self.max_bytes:
            return
        kept = [each for each in self._entries if not (each[0] == adapter and _covers(cache, each[1]))]
        self._entries = [*kept, (adapter, cache)]
        excess = self.num_bytes - self.max_bytes
        while excess > 0:
            excess -= self._entries.pop(0)[1].num_bytes

    def clear(self) -> None:
        """Forget all."""
        self._entries = []


def _covers(longer: KeyValues, shorter: KeyValues) -> bool:
    return longer.tokens[: len(shorter.tokens)] == shorter.tokens


def default_bytes(device_type: str) -> int:
    """2 GiB, or an eighth of the memory of the device where that is less."""
    import os

    import torch

    if device_type == "cuda":
        total = torch.cuda.mem_get_info()[1]
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return DEFAULT_BYTES
    return min(DEFAULT_BYTES, int(total) // _SHARE)
