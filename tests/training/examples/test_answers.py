"""Answers to one prompt: which tokens are theirs, that they stay together on disk, and what is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot.conversation import Conversation
from chatbot.rendering import Renderer
from training.data.converting import LeftOut
from training.examples.answers import NO_ROOM, Answer, AnswerMaker, answers_batch
from training.examples.layout import Singles
from training.examples.making import CUT, SHORTENED, Example
from training.examples.store import write_store

TALK = Conversation().add("user", "Hi").add("assistant", "Hello").add("user", "Who are you?")


@pytest.fixture(scope="module")
def tokenizer(tiny_chat_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_chat_model)


def made(tokenizer: Any, texts: list[str], prompt: Conversation | None = TALK, length: int = 512, **more: Any) -> Any:
    def choose(row: Any, _: Any) -> Any:
        yield [Answer(prompt, text, (float(number),)) for number, text in enumerate(row)]

    maker = AnswerMaker(Renderer(tokenizer), length, choose, **more)
    return list(maker.examples(texts)), maker.counts


def test_only_the_answer_and_its_end_is_learned(tokenizer: Any) -> None:
    examples, _ = made(tokenizer, ["A model.", "No."])
    assert [tokenizer.decode(each.ids[each.mask]) for each in examples] == ["A model.<|im_end|>", "No.<|im_end|>"]
    assert all(tokenizer.decode(each.ids).endswith("<|im_end|>") for each in examples)
    assert [each.joined for each in examples] == [False, True]
    assert [each.values for each in examples] == [(0.0,), (1.0,)]


def test_whole_texts_are_all_learned(tokenizer: Any) -> None:
    (example, _), _ = made(tokenizer, ["Human: Hi", "x"], prompt=None)
    assert tokenizer.decode(example.ids) == "Human: Hi<|im_end|>"
    assert example.mask.all()


def test_all_answers_lose_the_same_turns(tokenizer: Any) -> None:
    full, _ = made(tokenizer, ["No.", "A small model and no more than that."])
    limit = max(len(each.ids) for each in full) - 1
    examples, counts = made(tokenizer, ["No.", "A small model and no more than that."], length=limit)
    assert counts == {SHORTENED: 1}
    assert all("Hello" not in tokenizer.decode(each.ids) for each in examples)
    assert all("Who are you?" in tokenizer.decode(each.ids) for each in examples)


def test_what_does_not_fit_at_all(tokenizer: Any) -> None:
    long = "word " * 40
    examples, counts = made(tokenizer, ["No.", long], length=60)
    assert [len(each.ids) <= 60 for each in examples] == [True, True]
    assert counts[CUT] == 1
    examples, counts = made(tokenizer, ["No.", long], length=60, cut=False)
    assert len(examples) == counts[NO_ROOM] == 1
    with pytest.raises(LeftOut, match="do not fit"):
        made(tokenizer, ["No.", long], length=60, cut=False, at_least=2)
    with pytest.raises(LeftOut, match="do not fit"):
        made(tokenizer, ["No.", "Yes."], length=8)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lists_of_any_length_come_back_from_disk_as_they_were(sizes: list[int], tmp_path_factory: Any) -> None:
    import numpy as np

    rows = [
        [
            Example(
                np.arange(row + place + 1, dtype=np.int32),
                np.ones(row + place + 1, bool),
                1.0,
                (row, -place),
                place > 0,
            )
            for place in range(size)
        ]
        for row, size in enumerate(sizes)
    ]
    folder = tmp_path_factory.mktemp("stores") / "s"
    store = write_store(folder, (each for row in rows for each in row), {"source": "made"})
    assert len(store) == len(rows)
    assert store.lengths.tolist() == [sum(len(each.ids) for each in row) for row in rows]
    layout = Singles(store)
    for number, row in enumerate(rows):
        found = layout.row(0, number)
        assert [each.values for each in found] == [each.values for each in row]
        assert all((mine.ids == other.ids).all() for mine, other in zip(found, row, strict=True))


def test_a_batch_knows_the_row_of_each_answer(tokenizer: Any) -> None:
    first, _ = made(tokenizer, ["A.", "B.", "C."])
    second, _ = made(tokenizer, ["D.", "E."])
    batch = answers_batch([first, second], 0)
    assert batch["rows"].tolist() == [0, 0, 0, 1, 1]
    assert batch["values"].tolist() == [[0], [1], [2], [0], [1]]
    assert batch["input_ids"].shape[0] == 5
    empty = answers_batch([], 0)
    assert empty["input_ids"].shape == (1, 1)
    assert len(empty["rows"]) == len(empty["values"]) == 0
