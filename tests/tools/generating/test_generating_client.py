"""Requests to a model: answered once, kept, counted, asked again where that helps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_service import BREAK, serving

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Generation
from chatbot.engines.echo import EchoModel
from tools.generating.client import Generator, Reply


def hello(text: str = "Hi there") -> Conversation:
    return Conversation().add("user", text)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Generator]:
    def make_(model: Any = None, identity: Any = None, **generation: Any) -> Generator:
        opened = model or EchoModel()
        return Generator(lambda: opened, identity or {"model": "m"}, Generation(**generation), tmp_path / "cache", 4)

    return make_


class Counting(EchoModel):
    """Counts how often it is opened, and what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Generation] = []

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Any]:
        self.asked.append(generation)
        return super().stream(conversation, generation)


def test_an_answer_is_asked_for_once(make: Callable[..., Generator]) -> None:
    model = Counting()
    assert make(model).ask(hello()) == make(model).ask(hello()) == Reply("Hi there")
    assert len(model.asked) == 1
    for other in (
        lambda: make(model).ask(hello("Hi, there")),
        lambda: make(model).ask(hello().add("assistant", "x").add("user", "y")),
        lambda: make(model, identity={"model": "other"}).ask(hello()),
        lambda: make(model, max_tokens=99).ask(hello()),
    ):
        before = len(model.asked)
        other()
        assert len(model.asked) == before + 1


def test_the_model_is_opened_only_when_an_answer_is_missing(tmp_path: Path) -> None:
    opened = []

    def open_model() -> EchoModel:
        opened.append(1)
        return EchoModel()

    def generator() -> Generator:
        return Generator(open_model, {}, Generation(), tmp_path)

    first = generator()
    assert opened == []
    list(first.in_order(lambda n: first.ask(hello(str(n)), n), range(20)))
    assert opened == [1], "once, by whichever thread"
    assert generator().ask(hello("3"), 3).text == "3"
    assert opened == [1]


def test_draws_have_seeds_of_their_own_and_greedy_ones_none(make: Callable[..., Generator]) -> None:
    model = Counting()
    generator = make(model, sample=True, seed=5)
    for number in (0, 1, 0, 1, 2):
        generator.ask(hello(), number)
    assert len({each.seed for each in model.asked}) == len(model.asked) == 3
    assert all(each.sample for each in model.asked)
    generator.ask(hello(), 7, greedy=True)
    generator.ask(hello(), 8, greedy=True)
    assert (len(model.asked), model.asked[-1].sample) == (4, False)


def test_what_is_too_long_is_this_requests_problem(make: Callable[..., Generator]) -> None:
    generator = make(EchoModel(context_length=20), max_tokens=10)
    reply = generator.ask(hello("word " * 30))
    assert (reply.text, reply.problem is not None and "context of 20" in reply.problem) == ("", True)
    assert generator.ask(hello()).problem is None
    assert make(EchoModel(), max_tokens=2).ask(hello("a b c")) == Reply("a b", cut=True)


def test_tokens_and_cost_are_counted_and_kept_answers_cost_nothing(make: Callable[..., Generator]) -> None:
    generator = make()
    for text in ("one two", "three", "three"):
        generator.ask(hello(text))
    tally = generator.tally
    assert (tally.asked, tally.kept, tally.prompt_tokens, tally.completion_tokens) == (2, 1, 7, 3)  # user:, assistant:
    assert tally.line(1e6, 1e5).endswith("7 tokens read, 3 written; cost 7.3000")
    assert "cost" not in tally.line(0, 0)


def test_a_service_is_asked_again_after_a_break_and_a_refusal_is_told(
    make: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.generating.client.FIRST_WAIT", 0.001)
    answers = iter(["Hal" + BREAK, "Hal" + BREAK, "Hallo!"])

    def answer(messages: list[dict[str, str]]) -> Any:
        return (400, "content policy") if "bad" in messages[-1]["content"] else next(answers)

    with serving(answer) as service:
        model = open_engine("openai", "judge", LoadOptions(base_url=service.url))
        generator = make(model)
        assert generator.ask(hello()) == Reply("Hallo!")
        assert (generator.tally.asked, generator.tally.prompt_tokens) == (1, 7)
        refused = generator.ask(hello("bad"))
        assert refused.problem is not None
        assert "content policy" in refused.problem
        assert len(service.bodies) == 4


@pytest.mark.parametrize(("said", "reason"), [(BREAK, "ask again"), ((401, "who?"), "refuses the API key")])
def test_a_service_that_always_breaks_or_refuses_the_key_ends_the_work(
    said: Any, reason: str, make: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.generating.client.FIRST_WAIT", 0.001)
    with serving(lambda _: said) as service:
        generator = make(open_engine("openai", "judge", LoadOptions(base_url=service.url)))
        with pytest.raises(ValueError, match=reason):
            list(generator.in_order(lambda n: generator.ask(hello(str(n))), range(5)))


def test_several_at_once_in_order_and_closing_stops_them(make: Callable[..., Generator]) -> None:
    with serving(lambda messages: messages[-1]["content"], pause=0.05) as service:
        generator = make(open_engine("openai", "judge", LoadOptions(base_url=service.url)))
        work = generator.in_order(lambda n: generator.ask(hello(f"n{n}")).text, range(1000))
        assert [next(work) for _ in range(12)] == [f"n{n}" for n in range(12)]
        work.close()  # type: ignore[attr-defined]  # a generator
        assert 2 <= service.most <= 4
        assert len(service.bodies) < 40


def test_a_damaged_kept_answer_is_told(make: Callable[..., Generator], tmp_path: Path) -> None:
    make().ask(hello())
    (kept,) = (tmp_path / "cache").rglob("*.json")
    for damage in ("", "{}", "[1]", '{"text": 3, "cut": false, "prompt_tokens": 1, "completion_tokens": 1}'):
        kept.write_text(damage)
        with pytest.raises(ValueError, match=kept.name):
            make().ask(hello())


def test_many_threads_count_right() -> None:
    from tools.generating.client import Tally

    tally = Tally()
    threads = [threading.Thread(target=lambda: [tally.add(asked=1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.asked == 8000
