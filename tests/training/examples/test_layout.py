"""Packing: every example once, nothing over the edge, and few rows; windows from everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.examples.layout import Packed, Singles, Windows, pack
from training.examples.making import Example
from training.examples.store import TokenStore, write_store


def store_of(folder: Path, lengths: list[int]) -> TokenStore:
    """Examples 0, 1, ... whose tokens are all their number."""
    examples = (Example(np.full(size, number, np.int32), np.ones(size, bool)) for number, size in enumerate(lengths))
    return write_store(folder, examples, {"source": "made"})


@given(st.lists(st.integers(1, 40), max_size=80))
@settings(max_examples=200, deadline=None)
def test_every_item_is_in_one_bin_and_fits(lengths: list[int]) -> None:
    bins = pack(lengths, 40)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in members) <= 40 for members in bins)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80))
@settings(max_examples=100, deadline=None)
def test_each_item_went_into_the_fullest_bin_with_room(lengths: list[int]) -> None:
    """Against best fit decreasing written the plain way."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [place for place, room in enumerate(rooms) if room >= length]
        if fitting:
            best = min(fitting, key=lambda place: rooms[place])
            rooms[best] -= length
        else:
            rooms.append(40 - length)
    made = sorted(40 - sum(lengths[item] for item in members) for members in pack(lengths, 40))
    assert made == sorted(rooms)


def test_what_fits_perfectly_is_packed_perfectly() -> None:
    assert len(pack([7, 3, 6, 4, 5, 5], 10)) == 3


def test_an_item_longer_than_a_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="11 tokens does not fit into a row of 10"):
        pack([11], 10)


def test_packed_rows_hold_whole_examples(tmp_path: Path) -> None:
    lengths = [5, 9, 3, 1, 7, 2]
    layout = Packed(store_of(tmp_path / "s", lengths), 10)
    seen = [example for number in range(len(layout)) for example in layout.row(0, number)]
    assert sorted((int(each.ids[0]), len(each.ids)) for each in seen) == sorted(enumerate(lengths))


def test_only_the_chosen_numbers_are_laid_out(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", [5, 9, 3, 1])
    chosen = np.array([3, 1])
    assert [int(Singles(store, chosen).row(0, number)[0].ids[0]) for number in range(2)] == [3, 1]
    packed = Packed(store, 10, chosen)
    assert sorted(int(each.ids[0]) for number in range(len(packed)) for each in packed.row(0, number)) == [1, 3]


def test_windows_come_from_all_places_and_differ_by_epoch(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", [1] * 50)  # token i at place i
    layout = Windows(store, 8, 2000, seed=3)
    starts = [int(layout.row(0, number)[0].ids[0]) for number in range(len(layout))]
    assert set(starts) == set(range(43))  # every place a whole window fits at, the last included
    counts = np.bincount(starts, minlength=43)
    assert counts.max() < 4 * counts.mean()  # uniform: of 46.5 expected none has 186
    again = [int(layout.row(0, number)[0].ids[0]) for number in range(len(layout))]
    other = [int(layout.row(1, number)[0].ids[0]) for number in range(len(layout))]
    assert again == starts
    assert other != starts
    # Not the same stream begun a little later.
    assert all(other[: -shift or None] != starts[shift:] for shift in range(20))
    assert list(layout.row(0, 5)[0].ids) == list(range(starts[5], starts[5] + 8))


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="7 tokens, not more than a window of 8"):
        Windows(store_of(tmp_path / "s", [7]), 8, None, 0)
