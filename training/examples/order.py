"""In which order rows are seen: a function of seed, epoch and position alone, so that a resumed run needs no state.

Without weights every row is seen once an epoch. With weights each row of an epoch is drawn from a source with a chance
in proportion to its weight, as OpenChatKit's `path:weight` meant it, and an epoch has as many rows as all sources
together; a source goes through all its rows before it begins again, across epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training.examples.layout import Layout
from training.examples.making import Example

_PICKS, _ROWS = 1, 2  # which of the two draws a random stream is for


class Mixture:
    """Rows of several sources. `weights` of None is every row once an epoch."""

    def __init__(self, layouts: Sequence[Layout], seed: int, weights: Sequence[float] | None = None) -> None:
        self.layouts = list(layouts)
        self._sizes = [len(layout) for layout in layouts]
        self._seed = seed
        self._shares = None if weights is None else np.asarray(weights) / np.sum(weights)

    def __len__(self) -> int:
        return sum(self._sizes)

    def row(self, epoch: int, position: int) -> list[Example]:
        """The examples of the row at `position` of an epoch."""
        sources, numbers = self._order(epoch)
        return self.layouts[int(sources[position])].row(epoch, int(numbers[position]))

    @lru_cache(maxsize=2)  # noqa: B019  # a mixture lives as long as the run
    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._shares is None:
            mixed = self._random(epoch, _ROWS, 0).permutation(len(self))
            starts = np.cumsum([0, *self._sizes[:-1]])
            sources = np.searchsorted(starts, mixed, side="right") - 1
            return sources, mixed - starts[sources]
        picks = self._picks(epoch)
        numbers = np.empty(len(self), np.int64)
        for source, size in enumerate(self._sizes):
            before = sum(int(np.sum(self._picks(earlier) == source)) for earlier in range(epoch))
            mine = np.flatnonzero(picks == source)
            numbers[mine] = self._passes(source, size, before, len(mine))
        return picks, numbers

    def _picks(self, epoch: int) -> NDArray[np.int64]:
        return self._random(epoch, _PICKS, 0).choice(len(self._sizes), len(self), p=self._shares)

    def _passes(self, source: int, size: int, start: int, num: int) -> NDArray[np.int64]:
        """Draws `start` to `start + num` of a source that is shuffled anew after each pass."""
        taken = [
            self._random(number, _ROWS, source + 1).permutation(size)
            for number in range(start // size, (start + num) // size + 1)
        ]
        first = start % size
        return np.concatenate(taken)[first : first + num]

    def _random(self, number: int, what: int, source: int) -> np.random.Generator:
        # The lowest word of the counter is what drawing counts up.
        return np.random.Generator(np.random.Philox(key=self._seed, counter=[0, number, what, source]))


class Batches:
    """The positions of each batch of one process: (epoch, position) pairs.

    Batch `j` of process `rank` is its share of rows j * B * W to (j + 1) * B * W, for B rows a process and W processes:
    the rows of a step do not depend on how they are spread. The last batch may be smaller, or empty.
    """

    def __init__(self, num_rows: int, batch_size: int, rank: int = 0, num_processes: int = 1) -> None:
        self._num_rows, self._batch_size = num_rows, batch_size
        self._rank, self._num_processes = rank, num_processes
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is of."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._num_rows // (self._batch_size * self._num_processes))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in range(len(self)):
            first = (number * self._num_processes + self._rank) * self._batch_size
            yield [(self._epoch, row) for row in range(first, min(first + self._batch_size, self._num_rows))]
