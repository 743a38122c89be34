"""Which row comes when: by seed, epoch and position alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from training.examples.making import Example
from training.examples.order import Batches, Mixture


class Numbers:
    """A layout of `size` rows; row n of source s holds the one token 1000 * s + n."""

    def __init__(self, source: int, size: int) -> None:
        self._source, self._size = source, size

    def __len__(self) -> int:
        return self._size

    def row(self, epoch: int, number: int) -> list[Example]:
        assert 0 <= number < self._size
        return [Example(np.array([1000 * self._source + number], np.int32), np.ones(1, bool))]


def tokens(mixture: Mixture, epoch: int) -> list[int]:
    return [int(mixture.row(epoch, place)[0].ids[0]) for place in range(len(mixture))]


def test_without_weights_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    mixture = Mixture([Numbers(0, 30), Numbers(1, 7)], seed=1)
    first, second = tokens(mixture, 0), tokens(mixture, 1)
    assert sorted(first) == sorted(second) == [*range(30), *range(1000, 1007)]
    assert first != second
    assert first == tokens(Mixture([Numbers(0, 30), Numbers(1, 7)], seed=1), 0)
    assert first != tokens(Mixture([Numbers(0, 30), Numbers(1, 7)], seed=2), 0)


def test_weights_are_chances_and_a_source_is_used_up_before_it_begins_again() -> None:
    mixture = Mixture([Numbers(0, 900), Numbers(1, 100)], seed=5, weights=[1, 3])
    drawn = [token for epoch in range(4) for token in tokens(mixture, epoch)]
    small = [token for token in drawn if token >= 1000]
    assert len(small) / len(drawn) == pytest.approx(0.75, abs=0.03)  # 4,000 draws: four standard deviations
    for start in range(0, len(small) - 100, 100):
        assert sorted(small[start : start + 100]) == list(range(1000, 1100))  # a whole pass, across epochs too
    assert small[:100] != small[100:200]
    large = Counter(token for token in drawn if token < 1000)
    assert max(large.values()) - min(large[number] for number in range(900)) <= 1


def test_an_epoch_does_not_depend_on_which_was_asked_before() -> None:
    asked = Mixture([Numbers(0, 50), Numbers(1, 20)], seed=5, weights=[1, 3])
    for epoch in range(3):
        tokens(asked, epoch)
    fresh = Mixture([Numbers(0, 50), Numbers(1, 20)], seed=5, weights=[1, 3])
    assert tokens(fresh, 2) == tokens(asked, 2)


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 33])
def test_processes_share_the_batches_of_one(num_rows: int) -> None:
    alone = list(Batches(num_rows, 8))
    both = [list(Batches(num_rows, 4, rank, 2)) for rank in range(2)]
    assert len(both[0]) == len(both[1]) == len(alone)
    assert [first + second for first, second in zip(*both, strict=True)] == alone
    assert [row for batch in alone for _, row in batch] == list(range(num_rows))


def test_small_batches_accumulate_to_large_ones() -> None:
    small = list(Batches(32, 2))
    joined = [[row for batch in small[place : place + 4] for row in batch] for place in range(0, 16, 4)]
    assert joined == list(Batches(32, 8))


def test_the_epoch_is_in_the_places() -> None:
    batches = Batches(4, 2)
    batches.set_epoch(3)
    assert list(batches) == [[(3, 0), (3, 1)], [(3, 2), (3, 3)]]
