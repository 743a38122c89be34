"""Questions made from passages, and questions read from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.confidence.questions import Labelled, is_held_out, make_questions, read_labelled
from retrieval.scoring.tokens import Tokenizer
from retrieval.types import Passage

SAMPLE_QUESTIONS = Path(__file__).parents[2] / "data" / "sample_questions.jsonl"
ASKING = {"what", "is", "who", "when", "did", "where", "how", "many", "which"}


def _passage(text: str, title: str = "", number: int = 0) -> Passage:
    return Passage(f"d{number}", text, title, f"d{number}.txt", 1, 1)


def _corpus(num: int = 60) -> list[Passage]:
    subjects = ("bridge", "tower", "river", "castle", "garden", "museum")
    return [
        _passage(
            f"The {subjects[i % 6]} of Town{i} was designed by Architect{i} in {1700 + i}. "
            f"Visitors{i} admire colour{i} and marble{i} near entrance{i} every summer.",
            f"{subjects[i % 6].title()} number{i}",
            i,
        )
        for i in range(num)
    ]


def test_the_same_seed_gives_the_same_questions() -> None:
    corpus = _corpus()
    assert make_questions(corpus, 20, seed=1) == make_questions(corpus, 20, seed=1)
    assert make_questions(corpus, 20, seed=1) != make_questions(corpus, 20, seed=2)


def test_each_question_comes_from_a_passage_of_its_own() -> None:
    corpus = _corpus()
    questions = make_questions(corpus, 1000)
    assert sorted(question.passage for question in questions) == list(range(len(corpus)))
    assert len(make_questions(corpus, 7)) == 7


def test_the_encoder_is_asked_in_words_of_the_passage() -> None:
    corpus = _corpus()
    for question in make_questions(corpus, 60):
        passage = corpus[question.passage]
        assert question.sentence in passage.text
        own = set(f"{passage.title} {passage.text}".lower().replace(".", " ").split())
        assert set(question.text.split()) <= own | ASKING
        assert f"number{question.passage}" in question.text  # people name their subject


def test_the_answer_is_left_out() -> None:
    passage = _passage("The famous golden bridge was painted orange by Irving Morrow.", "Bridge")
    for seed in range(20):
        assert "morrow" not in make_questions([passage], 1, seed)[0].text


def test_bm25_is_asked_with_part_of_the_words_exchanged() -> None:
    corpus = _corpus(300)
    kept = total = 0
    for question in make_questions(corpus, 300):
        pairs = [
            (asked, other)
            for asked, other in zip(question.text.split(), question.words.split(), strict=True)
            if any(character.isdigit() for character in asked)  # the other words are in too many passages here
        ]
        kept += sum(asked == other for asked, other in pairs)
        total += len(pairs)
    assert kept / total == pytest.approx(0.55, abs=0.05)


def test_a_passage_without_a_title_is_asked_for_by_its_rarest_words() -> None:
    corpus = _corpus()
    corpus[0] = _passage("Zyzzyva beetles gnaw palms. Each zyzzyva is tiny. The beetles of the palms fly by night.")
    made = [question for question in make_questions(corpus, 60, seed=3) if question.passage == 0]
    assert "zyzzyva" in made[0].text


def test_passages_that_say_nothing_give_no_question() -> None:
    assert make_questions([], 5) == []
    assert make_questions([_passage("It is. So they do."), _passage("..."), _passage("")], 5) == []


def test_text_without_spaces_between_words() -> None:
    passages = [_passage("東京は、日本の首都で、人口が多い、都市で、ある。" * 2, "東京", i) for i in range(30)]
    for question in make_questions(passages, 30, language="none"):
        assert question.text.strip()


@given(st.lists(st.text(max_size=80), max_size=6), st.text(max_size=20), st.integers(0, 99))
def test_any_text_is_taken(texts: list[str], title: str, seed: int) -> None:
    for question in make_questions([_passage(text, title) for text in texts], 10, seed):
        assert Tokenizer().tokens(question.text) or question.text


def test_what_is_held_out() -> None:
    corpus = _corpus()
    question = make_questions(corpus, 1)[0]
    assert is_held_out(question, corpus[question.passage].text, 0.1)
    assert is_held_out(question, f"An overlap. {question.sentence} And on.", 0.1)
    assert is_held_out(question, "a near duplicate", 0.9)
    assert not is_held_out(question, "something else", 0.5)


def test_a_number_below_1() -> None:
    with pytest.raises(ValueError, match="num is 0"):
        make_questions([], 0)


def test_reading_the_sample_questions() -> None:
    questions = read_labelled(SAMPLE_QUESTIONS)
    assert sum(question.answerable for question in questions) == 45
    assert sum(not question.answerable for question in questions) == 15
    assert questions[0] == Labelled("What is the biggest city in Switzerland?", True, ("cities/zurich.md",))


def test_the_forms_of_a_question(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "answerable": True},
        {"question": "b?", "answerable": False},
        {"question": "c?", "passages": ["x#1", "x#2"]},
        {"question": "d?", "documents": ["x"], "answerable": True},
        {"question": "e?", "passages": []},
        {"question": "f?", "source": "x", "answerable": False},
        {"question": "g?", "document": "x", "passage": "x#1", "split": "train"},
        {"question": "h?", "document": "x", "passage": "x#1", "split": "test"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert read_labelled(path) == [
        Labelled("a?", True),
        Labelled("b?", False),
        Labelled("c?", True, ("x#1", "x#2")),
        Labelled("d?", True, ("x",)),
        Labelled("e?", False),
        Labelled("f?", False),
        Labelled("g?", True, ("x#1", "x")),
        Labelled("h?", True, ("x#1", "x"), for_test=True),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no questions"),
        ("{", ":1: not a JSON object"),
        ("[]", ':1: needs "question"'),
        ('{"question": " ", "answerable": true}', ':1: needs "question"'),
        ('{"question": "a?"}', ':1: needs "answerable"'),
        ('{"question": "a?", "answerable": "yes"}', ':1: needs "answerable"'),
        ('{"question": "a?", "passages": [1]}', ':1: "passages" must be a text or a list of texts'),
        ('{"question": "a?", "source": 1}', ':1: "source" must be a text or a list of texts'),
    ],
)
def test_files_of_questions_that_are_broken(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labelled(path)


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the questions in .*: No such file"):
        read_labelled(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it is not UTF-8"):
        read_labelled(tmp_path / "binary.jsonl")
