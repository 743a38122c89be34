"""Neighbours of what was found: which belong, how their texts are joined, and that nothing is shown twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.encoders import HashEncoder
from retrieval.index.manifest import IndexSettings
from retrieval.index.segment import Segment
from retrieval.index.store import Store
from retrieval.passages import SplitSettings
from retrieval.retriever import Retriever
from retrieval.search.expansion import NEIGHBOUR_SHARE, joined, neighbourhood
from retrieval.writing.building import build_index
from retrieval.writing.removal import delete_documents

SENTENCES = IndexSettings(split=SplitSettings(window=1, stride=1, min_chars=0))
GUIDE = """\
# Castles

The castle has a north tower. The castle has a south tower. The castle has a west tower.

## Gardens

The castle has a rose garden. The castle has a herb garden.

The castle has a kitchen garden, and beans.

Nobody knows why. The castle has a fish pond.
"""
OTHER = "The castle has a moat. The castle has a bridge.\n"


TEXTS = [
    "The castle has a north tower.",
    "The castle has a south tower.",
    "The castle has a west tower.",
    "The castle has a rose garden.",
    "The castle has a herb garden.",
    "The castle has a kitchen garden, and beans.",
    "Nobody knows why.",
    "The castle has a fish pond.",
    "The castle has a moat.",
    "The castle has a bridge.",
]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "guide.md").write_text(GUIDE)
    (folder / "other.txt").write_text(OTHER)
    return folder


@pytest.fixture
def segment(docs: Path, tmp_path: Path) -> Segment:
    """Passages of a sentence each, in the order of the files above."""
    build_index([docs], tmp_path / "index", "hash", SENTENCES, calibrate=False)
    (only,) = Store(tmp_path / "index").segments
    assert [only.own_text(i) for i in range(len(only))] == TEXTS
    return only


def encode(text: str) -> np.ndarray:
    return HashEncoder().encode([text])[0]


# Which passages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("i", "reach", "expected"),
    [
        (1, 0, [1]),
        (1, 1, [0, 1, 2]),
        (2, 1, [1, 2]),  # the next passage stands under another heading
        (2, 9, [0, 1, 2]),
        (3, 9, [3, 4, 5]),  # and after these comes one about something else
        (7, 9, [7]),
        (8, 9, [8, 9]),  # another document
        (9, 1, [8, 9]),
    ],
)
def test_neighbours_end_at_headings_documents_and_other_subjects(
    segment: Segment, i: int, reach: int, expected: list[int]
) -> None:
    assert list(neighbourhood(segment, i, encode("the castle has a"), reach)) == expected


@pytest.mark.parametrize("i", range(10))
@pytest.mark.parametrize("reach", [1, 2, 9])
def test_a_neighbour_is_as_near_to_the_query_as_the_share_says(segment: Segment, i: int, reach: int) -> None:
    query = encode("which garden has roses, herbs and a tower")
    found = neighbourhood(segment, i, query, reach)
    cosines = segment.vectors @ query
    assert i in found
    assert i - reach <= found.start
    assert found.stop <= i + reach + 1
    assert all(cosines[j] >= NEIGHBOUR_SHARE * cosines[i] - 1e-6 for j in found if j != i)


def test_what_is_shown_elsewhere_is_no_neighbour(segment: Segment) -> None:
    query = encode("the castle has a")
    assert list(neighbourhood(segment, 2, query, 2, {0})) == [1, 2]
    assert list(neighbourhood(segment, 2, query, 2, {1})) == [2]


# How they are joined ------------------------------------------------------------------------------------------------


def test_texts_are_joined_in_order_with_their_lines(segment: Segment) -> None:
    one = joined(segment, range(1, 2), False)
    assert one == segment.passage(1)
    garden = joined(segment, range(3, 7), False)
    assert garden.text == (
        "The castle has a rose garden. The castle has a herb garden.\nThe castle has a kitchen garden, and beans.\n"
        "Nobody knows why."
    )
    assert (garden.id, garden.start, garden.end, garden.title) == (
        segment.passage(3).id,
        7,
        11,
        "Castles > Gardens",
    )


def sentences(numbers: list[int]) -> list[list[str]]:
    """Paragraphs of so many sentences, all different."""
    count = iter(range(10**6))
    return [[f"Sentence {next(count)} speaks of towers." for _ in range(number)] for number in numbers]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 5), st.data())
def test_windows_that_overlap_are_joined_without_repeating_a_sentence(
    numbers: list[int], window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    paragraphs = sentences(numbers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.txt").write_text("\n\n".join(" ".join(paragraph) for paragraph in paragraphs))
        held = IndexSettings(split=SplitSettings(window=window, stride=stride, min_chars=0))
        build_index([folder / "a.txt"], folder / "index", "hash", held, calibrate=False)
        (segment,) = Store(folder / "index").segments
        whole = joined(segment, range(len(segment)), stride < window)
        assert whole.text == "\n".join(" ".join(paragraph) for paragraph in paragraphs)
        assert (whole.start, whole.end) == (1, 2 * len(paragraphs) - 1)


@pytest.mark.parametrize(
    "text",
    [
        "A list of the animals\n\nso far: a cat, and so on\n\non and on",  # 's' and 'on' end one and begin the next
        " ".join(f"s{i}as" for i in range(40)),  # one sentence, cut in pieces that follow each other in one line
    ],
)
def test_half_a_word_in_common_is_no_overlap(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(f"Title\n\n{text}")
    held = IndexSettings(split=SplitSettings(window=2, stride=1, min_chars=0, max_chars=50))
    build_index([tmp_path / "a.txt"], tmp_path / "index", "hash", held, calibrate=False)
    (segment,) = Store(tmp_path / "index").segments
    assert len(segment) >= 3
    assert joined(segment, range(len(segment)), True).text == text.replace("\n\n", "\n")


# In a search --------------------------------------------------------------------------------------------------------

QUERIES = ["the castle has a garden", "the castle has a tower", "a moat and a bridge", "castle", "nobody knows"]


@pytest.mark.parametrize("reach", [1, 2, 5])
@pytest.mark.parametrize("query", QUERIES)
def test_no_sentence_is_shown_twice(segment: Segment, reach: int, query: str) -> None:
    retriever = Retriever.open(segment.folder.parent, reach=reach)
    (hits,) = retriever.search([query], 10)
    shown = [sentence for hit in hits for sentence in hit.passage.text.replace("\n", " ").split(". ")]
    assert sorted(sentence.rstrip(".") for sentence in shown) == sorted(text.rstrip(".") for text in TEXTS)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_hit_brings_its_neighbours_and_they_do_not_come_again(segment: Segment) -> None:
    index = segment.folder.parent
    (alone,) = Retriever.open(index).search(["the castle has a south tower"], 1)
    (hits,) = Retriever.open(index, reach=1).search(["the castle has a south tower"], 3)
    assert alone[0].passage.text == "The castle has a south tower."
    assert hits[0].passage.text == (
        "The castle has a north tower. The castle has a south tower. The castle has a west tower."
    )
    assert hits[0].score == alone[0].score
    assert len(hits) == 3
    assert all("tower" not in hit.passage.text for hit in hits[1:])


def test_neighbours_do_not_cost_hits(tmp_path: Path) -> None:
    """Each hit takes its neighbours with it: there must be candidates enough for k of them."""
    for i in range(12):
        lines = " ".join(f"The castle {word}{i} has a tower." for word in "abcdefghijklmnopqrst")
        (tmp_path / f"{i}.txt").write_text(lines)
    build_index([tmp_path], tmp_path / "index", "hash", SENTENCES, calibrate=False)
    (hits,) = Retriever.open(tmp_path / "index", reach=4).search(["the castle has a tower"], 40)
    texts = [sentence for hit in hits for sentence in hit.passage.text.replace("tower. ", "tower.|").split("|")]
    assert len(texts) == len(set(texts))
    assert len(hits) == 40 or len(texts) == 240


def test_deleted_passages_do_not_come_back_as_neighbours(segment: Segment) -> None:
    index = segment.folder.parent
    delete_documents(index, ["*/guide.md"])
    (hits,) = Retriever.open(index, reach=9).search(["the castle has a"], 10)
    assert [hit.passage.text for hit in hits] == ["The castle has a moat. The castle has a bridge."]
