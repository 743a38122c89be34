"""Follow-up questions and small talk: what is recognised, and how a model's rewriting is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from chatbot.conversation import Conversation
from chatbot.engines.base import Delta, Generation
from chatbot.followups import is_follow_up, is_small_talk, rewritten


@pytest.mark.parametrize(
    "text", ["Hello, where is Zürich?", "thanks to whom was it built?", "hi-fi", "Who are you going to cite?", "hellos"]
)
def test_a_question_is_no_small_talk(text: str) -> None:
    assert not is_small_talk(text)


@pytest.mark.parametrize(
    "text", ["When was he born?", "And the second?", "Why?", "What about Berne", "How old is it now"]
)
def test_a_follow_up_refers_back(text: str) -> None:
    assert is_follow_up(text)


@pytest.mark.parametrize("text", ["When was ETH Zurich founded?", "How tall are the towers of the Grossmünster?"])
def test_a_question_that_stands_alone_is_no_follow_up(text: str) -> None:
    assert not is_follow_up(text)


@dataclass
class Rewriter:
    """A chat model that answers with one text, and remembers what it was asked."""

    answer: str
    context_length: int = 2000
    name: str = "rewriter"
    asked: list[Conversation] = field(default_factory=list)

    def count_tokens(self, conversation: Conversation) -> int:
        return sum(len(message.content.split()) for message in conversation)

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        self.asked.append(conversation)
        assert not generation.sample
        yield from (Delta(part) for part in self.answer.partition(" "))

    def complete(self, text: str, generation: Generation) -> Iterator[Delta]:
        raise NotImplementedError


EARLIER = Conversation().add("user", "Who built the bridge?").add("assistant", "Ammann built it.")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Where was Ammann born?", "Where was Ammann born?"),
        ("  Where was Ammann born?\nHe was born in", "Where was Ammann born?"),
        ("", "Where was he born?"),
        ("?", "Where was he born?"),
        ("x" * 5000, "Where was he born?"),
    ],
)
def test_the_models_question_is_taken_where_it_can_be_one(answer: str, expected: str) -> None:
    model = Rewriter(answer)
    assert rewritten(model, EARLIER, "Where was he born?") == expected
    shown = model.asked[0].last.content
    assert "User: Who built the bridge?\nAssistant: Ammann built it.\nLast question: Where was he born?" in shown


def test_without_room_the_question_stays_as_it_is() -> None:
    model = Rewriter("Where was Ammann born?", context_length=60)
    assert rewritten(model, EARLIER, "Where was he born?") == "Where was he born?"
    assert model.asked == []
