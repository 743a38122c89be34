"""Exchanges: what was answered lately, so that it can be rated."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from chatbot.core import Reply, Turn

NUM_EXCHANGES = 1000
NUM_CHARACTERS = 16_000_000


@dataclass
class Exchange:
    """A question as prepared, its answers by number of choice, and what gave them. `replaced`: the answer in
    whose place the first one was asked for, once that was said."""

    caller: str
    turn: Turn
    about: dict[str, Any]
    replies: dict[int, Reply] = field(default_factory=dict)
    replaced: str | None = None

    @property
    def num_characters(self) -> int:
        """About what it takes to remember."""
        prompt = self.turn.prompt.conversation if self.turn.prompt else ()
        said = [message.content for part in (self.turn.conversation, prompt) for message in part]
        found = [hit.passage.text for reply in self.replies.values() for hit in reply.sources]
        return sum(map(len, [*said, *found, *(reply.text for reply in self.replies.values())]))


class Exchanges:
    """The last exchanges by their id: at most so many, and of so many characters together; those unused for longest
    go first. Several threads may use it."""

    def __init__(self, num: int = NUM_EXCHANGES, num_characters: int = NUM_CHARACTERS) -> None:
        self._num, self._num_characters = num, num_characters
        self._known: OrderedDict[str, tuple[Exchange, int]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()
        self.writing = threading.Lock()  # held while a rating is written down

    def __len__(self) -> int:
        return len(self._known)

    def put(self, id_: str, exchange: Exchange) -> None:
        """Remember a finished exchange."""
        size = exchange.num_characters
        with self._lock:
            self._known[id_] = (exchange, size)
            self._total += size
            while self._known and (len(self._known) > self._num or self._total > self._num_characters):
                _, (_, dropped) = self._known.popitem(last=False)
                self._total -= dropped

    def get(self, id_: str, caller: str) -> Exchange | None:
        """The exchange, or None where it is unknown or another's."""
        with self._lock:
            exchange, _ = self._known.get(id_, (None, 0))
            if exchange is None or exchange.caller != caller:
                return None
            self._known.move_to_end(id_)
            return exchange
