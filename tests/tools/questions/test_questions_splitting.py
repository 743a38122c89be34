"""Test and training questions share nothing; what is called unanswerable is, by a scan of the whole index."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qa_documents import TOWNS, asked, passages, question

from retrieval.hiding import without as hiding
from retrieval.types import Passage
from tools.evaluation.asked import Asked
from tools.questions.given import placed, round_trip
from tools.questions.library import Library
from tools.questions.splitting import split
from tools.questions.types import Question, document_of, stands_in
from tools.questions.unanswerable import DEPTH, answering, hidden, names_in, swapped


def passage(name: str, text: str = "Some text.") -> Passage:
    return Passage(name, text, "Title", "s.md", 1, 1)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=4, max_size=60),
    st.dictionaries(st.integers(0, 30), st.integers(0, 30), max_size=6),
    st.floats(0.1, 0.9),
    st.integers(0, 5),
)
def test_the_parts_share_no_passage_no_twin_and_no_whole_document(
    places: list[tuple[int, int]], alike: dict[int, int], share: float, seed: int
) -> None:
    questions = [
        question(f"Question {n}?", "text", passage(f"d{document}#{number}"))
        for n, (document, number) in enumerate(places)
    ]
    twins = {each.passage.id: {each.passage.id} for each in questions}
    for one, other in alike.items():
        pair = {f"d{one}#0", f"d{other}#0"}
        for each in pair & twins.keys():
            twins[each] |= pair
    frozen = {name: frozenset(each) for name, each in twins.items()}
    try:
        found = split(questions, frozen, share, seed)
    except ValueError as error:
        assert "make more" in str(error)  # noqa: PT017  # either is right: it depends on what belongs together
        return
    assert Counter(each.text for each in (*found.test, *found.train)) == Counter(each.text for each in questions)
    assert len(found.test) <= round(share * len(questions))
    assert found == split(questions, frozen, share, seed)
    for each in found.train:
        assert not found.is_held_out(each.passage.id)
        for other in found.test:
            assert not twins[each.passage.id] & twins[other.passage.id]
            assert found.by == "passage" or document_of(each.passage.id) != document_of(other.passage.id)


def test_a_split_without_a_part_says_what_to_do() -> None:
    only = [question("One?", "text", passage("a#0"))]
    with pytest.raises(ValueError, match=r"1 questions .* cannot be split .* make more \(--num\)"):
        split(only, {"a#0": frozenset({"a#0"})}, 0.5, 0)


def test_twins_are_found_by_their_vectors(library: Library) -> None:
    some = passages(library)[:3]
    twins = library.twins(some)
    vectors = {
        each.id: library.retriever.encoder.encode([f"{each.title}. {each.text}"])[0] for each in passages(library)
    }
    for each in some:
        expected = {name for name, vector in vectors.items() if float(vector @ vectors[each.id]) >= 0.85}
        assert twins[each.id] == expected >= {each.id}


def made(library: Library) -> list[Question]:
    rows = [Asked(row["question"], tuple(row.get("answers") or [row["answer"]])) for row in asked()]
    found = list(placed(rows, library, 10))
    assert all(isinstance(each, Question) for each in found)
    return [each for each in found if isinstance(each, Question)]


def test_given_questions_find_the_passage_that_holds_their_answer(library: Library) -> None:
    for each, row in zip(made(library), asked(), strict=True):
        assert next(town for town in TOWNS if town in row["question"]).lower() in each.passage.id
        assert stands_in(each.answers[0], each.passage.text)
    wrong = [
        Asked("When was the stone bridge of Avonlea opened?", ("1066",)),
        Asked("When was the stone bridge of Avonlea opened?", ("1801",), "elsewhere.md"),
    ]
    assert [isinstance(each, str) for each in placed(wrong, library, 10)] == [True, True]


def test_the_answer_that_stands_in_the_passage_comes_first(library: Library) -> None:
    (found,) = placed([Asked("When was the stone bridge of Avonlea opened?", ("the year 1801", "1801"))], library, 10)
    assert isinstance(found, Question)
    assert found.answers == ("1801", "the year 1801")


def test_a_round_trip_finds_the_same_text_or_says_so(library: Library) -> None:
    own = made(library)[0]
    assert round_trip(own, library, 3) == own
    lost = question("Where do penguins live?", "ice", passage("x#0", "Penguins live on the ice."))
    assert round_trip(lost, library, 3) == "questions that do not find their passage"


def test_a_hidden_question_finds_no_passage_that_holds_an_answer(library: Library) -> None:
    for each in made(library):
        hits = library.search([each.text], DEPTH)[0]
        without = answering(each, hits, library.twins([each.passage])[each.passage.id])
        assert {p.id for p in passages(library) if stands_in(each.answers[0], p.text)} <= without
        other = hidden(each, without)
        assert other.answers == ()
        for k in (1, 3, 5):
            shown = hiding(library.retriever, other.without).search([other.text], k)[0]
            assert len(shown) == min(k, len(library) - len(without))
            assert not any(stands_in(each.answers[0], hit.passage.text) for hit in shown)


def test_a_swapped_question_has_another_name_that_no_passage_joins_with_its_subject(library: Library) -> None:
    names = ["Zanzibar", "Quito", "Avonlea"]
    rng = random.Random(0)
    for each in made(library):
        found = swapped(each, names, library, rng)
        assert found is not None
        assert found.text != each.text
        new = next(name for name in names if name in found.text)
        assert new != "Avonlea", "whose passage answers the same question"
        assert not any(new in p.text for p in passages(library))
        assert swapped(each, ["Avonlea"], library, rng) is None
    assert names_in(made(library)) == list(TOWNS)


def test_a_number_is_swapped_too_and_nothing_else(library: Library) -> None:
    own = question("What was opened in 1801 by the river?", "bridge", passages(library)[0])
    found = swapped(own, [], library, random.Random(1))
    assert found is not None
    before, after = own.text.split(), found.text.split()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True] * 4 + [False] + [True] * 3
    assert not any(after[4] in p.text for p in passages(library))
    plain = question("what was opened there by the river?", "bridge", passages(library)[0])
    assert swapped(plain, ["Quito"], library, random.Random(1)) is None
