"""What a row of a batch is made of: one example, several packed ones, or a window of running text.

A `Layout` has a length and gives, for an epoch and a number, the examples of that row. Layouts depend on nothing but
their data and a seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.examples.making import Example
from training.examples.store import TokenStore


class Layout(Protocol):
    """Rows of an epoch."""

    def __len__(self) -> int: ...

    def row(self, epoch: int, number: int) -> list[Example]:
        """The examples of a row, in order."""
        ...


class Singles:
    """A row is one of the store's. `numbers` restricts it to some of them."""

    def __init__(self, store: TokenStore, numbers: NDArray[np.int64] | None = None) -> None:
        self._store = store
        self._numbers = np.arange(len(store)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def row(self, epoch: int, number: int) -> list[Example]:  # noqa: ARG002  # the same in every epoch
        return self._store[int(self._numbers[number])]


class Packed:
    """A row is as many whole examples as fit into `max_length`."""

    def __init__(self, store: TokenStore, max_length: int, numbers: NDArray[np.int64] | None = None) -> None:
        self._store = store
        numbers = np.arange(len(store)) if numbers is None else numbers
        self._bins = [numbers[members] for members in pack(store.lengths[numbers], max_length)]

    def __len__(self) -> int:
        return len(self._bins)

    def row(self, epoch: int, number: int) -> list[Example]:  # noqa: ARG002  # the same in every epoch
        return [example for each in self._bins[number] for example in self._store[int(each)]]


class Windows:
    """A row is `length` tokens from a random place of the running text; each epoch has its own places."""

    def __init__(self, store: TokenStore, length: int, num: int | None, seed: int) -> None:
        if len(store.ids) <= length:
            raise ValueError(
                f"the text has {len(store.ids)} tokens, not more than a window of {length}; lower data.max_length"
            )
        self._ids, self._length, self._seed = store.ids, length, seed
        self._num = num or max(1, len(store.ids) // length)
        self._places: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self._num

    def row(self, epoch: int, number: int) -> list[Example]:
        if self._places is None or self._places[0] != epoch:
            draw = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, epoch, 0, 0]))
            self._places = epoch, draw.integers(0, len(self._ids) - self._length + 1, self._num)
        start = int(self._places[1][number])
        ids = self._ids[start : start + self._length]
        return [Example(ids, np.ones(len(ids), np.bool_))]


def pack(lengths: Sequence[int] | NDArray[np.int64], max_length: int) -> list[list[int]]:
    """Which items go into which bin of `max_length`: the longest first, each into the fullest bin with room (best fit
    decreasing; Johnson 1973), found by the room that is left. Deterministic.

    Raises ValueError for an item longer than a bin.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    with_room: list[list[int]] = [[] for _ in range(max_length + 1)]  # room -> bins that have just so much
    bins: list[list[int]] = []
    rooms = _Rooms(max_length)
    for item in order.tolist():
        length = int(lengths[item])
        if length > max_length:
            raise ValueError(f"an example of {length} tokens does not fit into a row of {max_length}")
        room = rooms.at_least(length)
        if room is None:
            bins.append([item])
            number, left = len(bins) - 1, max_length - length
        else:
            number = heapq.heappop(with_room[room])
            if not with_room[room]:
                rooms.remove(room)
            bins[number].append(item)
            left = room - length
        if left:
            if not with_room[left]:
                rooms.add(left)
            heapq.heappush(with_room[left], number)
    return bins


class _Rooms:
    """A set of whole numbers up to `limit` that finds its smallest member of at least n: a tree of bits."""

    def __init__(self, limit: int) -> None:
        self._size = 1 << (limit + 1).bit_length()
        self._tree = bytearray(2 * self._size)

    def add(self, number: int) -> None:
        place = number + self._size
        while place and not self._tree[place]:
            self._tree[place] = 1
            place //= 2

    def remove(self, number: int) -> None:
        place = number + self._size
        self._tree[place] = 0
        while (place := place // 2) and not (self._tree[2 * place] or self._tree[2 * place + 1]):
            self._tree[place] = 0

    def at_least(self, number: int) -> int | None:
        place = number + self._size
        if self._tree[place]:
            return number
        while place > 1:
            if place % 2 == 0 and self._tree[place + 1]:
                place += 1
                while place < self._size:
                    place = 2 * place if self._tree[2 * place] else 2 * place + 1
                return place - self._size
            place //= 2
        return None
