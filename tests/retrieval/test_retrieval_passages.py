"""Splitting: nothing lost, sizes bounded, boundaries and lines respected."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.passages import SplitSettings, embedding_text, split
from retrieval.types import Block, Document, Passage


def document(*blocks: Block, title: str = "Title") -> Document:
    return Document("doc", blocks, title, "doc.md")


def sentences(*numbers: int, length: int = 10) -> str:
    """'Sentence 1 aaaaaaaaaa. Sentence 2 aaaaaaaaaa.'"""
    return " ".join(f"Sentence {number} {'a' * length}." for number in numbers)


def texts(passages: list[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def test_windows_of_three_sentences() -> None:
    block = Block(sentences(*range(7), length=80), 4, 9, "Head")
    passages = list(split(document(block)))
    assert texts(passages) == [sentences(*part, length=80) for part in ([0, 1, 2], [3, 4, 5, 6])]  # 6 would be short
    assert [passage.id for passage in passages] == ["doc#0", "doc#1"]
    assert {passage.title for passage in passages} == {"Title > Head"}
    assert {(passage.source, passage.start, passage.end) for passage in passages} == {("doc.md", 4, 9)}


def test_a_smaller_stride_makes_neighbours_overlap() -> None:
    block = Block(sentences(*range(5), length=100), 1, 1)
    passages = list(split(document(block), SplitSettings(window=3, stride=2)))
    assert texts(passages) == [sentences(*part, length=100) for part in ([0, 1, 2], [2, 3, 4])]


def test_short_blocks_are_joined_under_the_same_heading_only() -> None:
    blocks = [Block(f"- item {i}", i, i, "List" if i < 5 else "Other") for i in range(1, 8)]
    passages = list(split(document(*blocks)))
    assert [(p.text, p.start, p.end, p.title) for p in passages] == [
        ("- item 1\n- item 2\n- item 3\n- item 4", 1, 4, "Title > List"),
        ("- item 5\n- item 6\n- item 7", 5, 7, "Title > Other"),
    ]


def test_joining_stops_when_a_passage_is_long_enough() -> None:
    blocks = [Block("x" * 90, i, i) for i in range(1, 8)]
    passages = list(split(document(*blocks)))
    assert [(p.start, p.end) for p in passages] == [(1, 3), (4, 7)]  # 7 alone would be short
    assert list(split(document(*blocks), SplitSettings(min_chars=0)))[6].text == "x" * 90


def test_joining_overlapping_windows_repeats_nothing() -> None:
    block = Block(sentences(*range(8)), 1, 1)
    for passage in split(document(block), SplitSettings(window=3, stride=1)):
        assert len(set(passage.text.split(". "))) == len(passage.text.split(". "))


def test_code_keeps_its_lines_and_their_numbers() -> None:
    code = "\n".join(f"    line_{i} = {i}" if i % 5 else "" for i in range(1, 200)).rstrip()
    passages = list(split(document(Block(code, 11, 10 + code.count("\n") + 1))))
    assert len(passages) > 2
    lines = code.split("\n")
    for passage in passages:
        assert passage.text == "\n".join(lines[passage.start - 11 : passage.end - 10])
    assert all(200 <= len(passage.text) <= 600 for passage in passages)


def test_lines_that_are_not_source_lines_get_those_of_the_block() -> None:
    (passage,) = split(document(Block("a\nb\nc", 5, 6)))
    assert (passage.start, passage.end) == (5, 6)


def test_a_number_stays_with_its_sentence() -> None:
    block = Block("1. " + "Mix the flour. " * 2 + "2. Bake it. See Fig. 3. Then eat.", 1, 1)
    (first, *_) = split(document(block), SplitSettings(window=1, stride=1, min_chars=0))
    assert first.text == "1. Mix the flour."


def test_text_without_spaces_between_sentences_gets_none() -> None:
    block = Block("日本語です。次の文。最後。", 1, 1)
    assert texts(list(split(document(block)))) == ["日本語です。次の文。最後。"]


def test_an_over_long_sentence_is_cut_at_spaces() -> None:
    text = " ".join(f"word{i}" for i in range(500))
    passages = list(split(document(Block(text, 1, 1)), SplitSettings(max_chars=100)))
    assert all(len(passage.text) <= 100 for passage in passages)
    assert " ".join(texts(passages)) == text


@pytest.mark.parametrize("heading", ["", "Title"])
def test_a_heading_that_says_no_more_than_the_title_is_left_out(heading: str) -> None:
    (passage,) = split(document(Block("Text.", 1, 1, heading)))
    assert passage.title == "Title"
    assert embedding_text(passage) == "Title. Text."


def test_an_endless_title_is_cut() -> None:
    (passage,) = split(document(Block("Text.", 1, 1, "heading " * 100), title="Short"))
    assert len(passage.title) == 200
    assert passage.title.startswith("Short > heading heading")
    assert passage.title.endswith("…")


def test_a_document_without_text_has_no_passages() -> None:
    assert list(split(document())) == []
    assert list(split(document(Block(" ", 1, 1), Block("\n \n", 2, 4)))) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"stride": 0}, r"stride is 0; it must be from 1 to the window \(3\)"),
        ({"stride": 4}, "stride is 4"),
        ({"max_chars": 49}, "max_chars is 49; it must be at least 50"),
        ({"min_chars": -1}, "min_chars is -1"),
    ],
)
def test_settings_out_of_range(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitSettings(**values)


PROSE = st.text(st.sampled_from("ab .!?。'\"1-é\u200b😀"), max_size=300).map(lambda text: " ".join(text.split()))
CODE = st.text(st.sampled_from("ab \t\n(.)"), max_size=300).map(lambda text: "x\n" + text)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    blocks = []
    line = 1
    for text in draw(st.lists(st.one_of(PROSE, CODE, st.just("Two of. These sentences.")), max_size=8)):
        end = line + text.count("\n")
        blocks.append(Block(text, line, end, draw(st.sampled_from(["", "One", "Two"]))))
        line = end + 2
    return document(*blocks)


SETTINGS = st.builds(
    lambda window, overlap, short, long: SplitSettings(window, max(1, window - overlap), short, long),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 300),
    st.integers(50, 300),
)


@given(documents(), SETTINGS)
@settings(deadline=None, max_examples=300)
def test_nothing_is_lost_and_sizes_are_bounded(source: Document, chosen: SplitSettings) -> None:
    passages = list(split(source, chosen))
    assert [passage.id for passage in passages] == [f"doc#{n}" for n in range(len(passages))]
    assert all(0 < len(passage.text) <= chosen.max_chars and passage.text.strip() for passage in passages)
    if chosen.stride == chosen.window:
        assert "".join("".join(texts(passages)).split()) == "".join(source.text.split())


@given(documents(), SETTINGS)
@settings(deadline=None)
def test_passages_stay_within_headings_and_lines(source: Document, chosen: SplitSettings) -> None:
    for passage in split(source, chosen):
        blocks = [block for block in source.blocks if passage.start <= block.end and block.start <= passage.end]
        titles = {f"Title > {block.heading}" if block.heading else "Title" for block in blocks}
        assert titles == {passage.title}
        lines = "".join("".join(block.text.split()) for block in blocks)
        assert "".join(passage.text.split()) in lines


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), SETTINGS)
@settings(deadline=None)
def test_every_sentence_is_in_a_passage_whatever_the_overlap(counts: list[int], chosen: SplitSettings) -> None:
    numbers = iter(range(1000))
    blocks = [
        Block(" ".join(f"Item{next(numbers)} is here." for _ in range(count % 7 + 1)), i, i)
        for i, count in enumerate(counts, start=1)
    ]
    found = [word for passage in split(document(*blocks), chosen) for word in passage.text.split()]
    wanted = {word for block in blocks for word in block.text.split()}
    assert wanted == set(found)
