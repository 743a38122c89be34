"""Many prompts: the answers of one at a time, in order; errors and closing end the work."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Delta, Generation, Usage
from chatbot.engines.echo import EchoModel
from chatbot.engines.many import Answer, generate_all


def asked(text: str) -> Conversation:
    return Conversation().add("user", text)


class Slow(EchoModel):
    """Echoes; the first words take longest, so that answers are done out of order. Counts who is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = self.most = 0
        self._lock = threading.Lock()

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        with self._lock:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        try:
            text = conversation.last.content
            if text == "bad":
                raise ValueError("bad is refused")
            time.sleep(0.02 if text.endswith("0") else 0.002)
            yield from super().stream(conversation, generation)
        finally:
            with self._lock:
                self.at_work -= 1


def test_answers_come_in_the_order_of_their_questions() -> None:
    model = Slow()
    answers = list(generate_all(model, [asked(f"number {n}") for n in range(40)], Generation(), 4))
    assert answers == [Answer(f"number {n}", "stop", Usage(4, 2)) for n in range(40)]
    assert 1 < model.most <= 4


def test_an_error_comes_at_its_place_and_ends_the_work() -> None:
    answers = generate_all(Slow(), [asked("one"), asked("bad"), asked("two")], Generation(), 2)
    assert next(answers).text == "one"
    with pytest.raises(ValueError, match="bad is refused"):
        next(answers)
    assert list(answers) == []


def test_endless_questions_are_read_only_a_little_ahead_and_closing_stops() -> None:
    read: list[int] = []

    def endless() -> Iterator[Conversation]:
        for n in itertools.count():
            read.append(n)
            yield asked(str(n))

    model = Slow()
    answers = generate_all(model, endless(), Generation(), 2)
    assert [next(answers).text for _ in range(5)] == ["0", "1", "2", "3", "4"]
    assert isinstance(answers, Iterator)
    answers.close()  # type: ignore[attr-defined]
    assert len(read) <= 5 + 2 * 2 + 1
    assert model.at_work == 0


def test_nothing_asked_is_nothing_answered() -> None:
    assert list(generate_all(EchoModel(), [], Generation())) == []


def test_no_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="num_threads=0 must be at least 1"):
        generate_all(EchoModel(), [], Generation(), 0)


def test_the_transformers_engine_answers_as_it_does_one_by_one(tiny_chat_model: Path) -> None:
    model = open_engine("transformers", str(tiny_chat_model), LoadOptions(device="cpu"))
    questions = [asked(f"Question {n}?") for n in range(10)]
    settings = Generation(max_tokens=15, logprobs=1)
    answers = list(generate_all(model, questions, settings, 4))
    for question, answer in zip(questions, answers, strict=True):
        deltas = list(model.stream(question, settings))
        assert answer.text == "".join(delta.text for delta in deltas)
        assert answer.finish_reason == deltas[-1].finish_reason
        assert [each.token for each in answer.logprobs] == [each.token for d in deltas for each in d.logprobs]
