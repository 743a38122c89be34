"""Prompts: always within the room, what was dropped is told exactly, and the prefix stays put."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.conversation import Conversation, Message
from chatbot.core import Bot
from chatbot.engines.base import Generation
from chatbot.prompting import LAYOUTS, Dropped, Prompt, PromptAssembler, with_passages
from retrieval.types import Hit, Passage

GAP = re.compile(r"\n\[\.\.\. (\d+) characters left out \.\.\.\]\n")


def count_words(conversation: Conversation) -> int:
    """Words, three more for each message, two for the prompt."""
    return 2 + sum(3 + len(message.content.split()) for message in conversation)


@dataclass(frozen=True)
class Case:
    """Everything an assembler is given. Each content begins with a word of its own, so that it can be found again."""

    conversation: Conversation
    hits: list[Hit]
    system: str
    examples: tuple[Message, ...]
    context_length: int
    max_tokens: int
    layout: Any

    @property
    def room(self) -> int:
        return self.context_length - self.max_tokens

    @property
    def newest(self) -> str:
        return self.conversation.last.content

    def assemble(self, count: Callable[[Conversation], int]) -> Prompt:
        assembler = PromptAssembler(count, self.context_length, self.system, self.examples, self.layout)
        return assembler.assemble(self.conversation, self.hits, self.max_tokens)

    @property
    def older(self) -> tuple[Message, ...]:
        """What was said before, without the conversation's own system message."""
        older = self.conversation.messages[:-1]
        return older[1:] if older and older[0].role == "system" else older

    def minimal(self) -> Conversation:
        """The smallest prompt there could be: an empty question. A conversation's own system message goes first."""
        first = self.conversation.messages[0]
        system = first.content if first.role == "system" else self.system
        return (Conversation().add("system", system) if system else Conversation()).add("user", "")

    def groups(self) -> list[list[Message]]:
        """Older messages by turn: a new one begins with each user's message."""
        groups: list[list[Message]] = []
        for message in self.older:
            if message.role == "user" or not groups:
                groups.append([])
            groups[-1].append(message)
        return groups


def hit(name: str, num_words: int) -> Hit:
    return Hit(Passage(name, f"<{name}>" + " word" * num_words, "A title", f"{name}.txt", 1, 2), 0.5)


@st.composite
def cases(draw: Any, sizes: int = 30) -> Case:
    def text(name: str) -> str:
        return f"<{name}>" + " word" * draw(st.integers(0, sizes))

    def found(name: str) -> list[Hit]:
        return [hit(f"{name}{i}", draw(st.integers(0, sizes))) for i in range(draw(st.integers(0, 3)))]

    messages = [Message("system", text("own-system"))] if draw(st.integers(0, 3)) == 0 else []
    for i in range(draw(st.integers(0, 8))):
        role = draw(st.sampled_from(["user", "assistant"]))
        passages = tuple(each.passage for each in found(f"p{i}-")) if role == "user" else ()
        messages.append(Message(role, text(f"m{i}"), passages))
    examples = [
        Message(role, text(f"e{i}{role}")) for i in range(draw(st.integers(0, 2))) for role in ("user", "assistant")
    ]
    return Case(
        conversation=Conversation((*messages, Message("user", text("newest")))),
        hits=found("h"),
        system=draw(st.one_of(st.just(""), st.just(text("system")))),
        examples=tuple(examples),
        context_length=draw(st.integers(1, 12 * sizes)),
        max_tokens=draw(st.integers(1, 2 * sizes)),
        layout=draw(st.sampled_from(LAYOUTS)),
    )


fitting = cases().filter(lambda case: count_words(case.minimal()) <= case.room)
MANY = settings(max_examples=200, deadline=None)


@MANY
@given(cases())
def test_a_prompt_fits_or_even_an_empty_question_would_not(case: Case) -> None:
    if count_words(case.minimal()) <= case.room:
        assert count_words(case.assemble(count_words).conversation) <= case.room
    else:
        with pytest.raises(ValueError, match=r"max_tokens=\d+ and a system prompt .* leave no room"):
            case.assemble(count_words)


@settings(max_examples=60, deadline=None)
@given(case=cases(sizes=60))
def test_a_prompt_fits_a_real_tokenizer(case: Case, renderer: Any) -> None:
    if renderer.count(case.minimal()) > case.room:
        return
    prompt = case.assemble(renderer.count)
    assert len(renderer.ids(prompt.conversation)) <= case.room


@MANY
@given(fitting)
def test_dropped_turns_are_the_oldest_and_counted(case: Case) -> None:
    prompt = case.assemble(count_words)
    text = "\n".join(message.content for message in prompt.conversation)
    there = [[f"{message.content.split()[0]}" in text for message in group] for group in case.groups()]
    assert all(len(set(group)) == 1 for group in there), "a turn is there as a whole or not at all"
    flags = [group[0] for group in there]
    assert flags == sorted(flags), "the oldest go first"
    assert prompt.dropped.turns == flags.count(False)


@MANY
@given(fitting)
def test_used_passages_are_the_strongest_and_the_others_counted(case: Case) -> None:
    prompt = case.assemble(count_words)
    numbered = re.findall(r"\[(\d+)\] A title\n<(h\d+)>", prompt.conversation.last.content)
    assert list(prompt.used) == case.hits[: len(prompt.used)]
    assert numbered == [(str(n), each.passage.id) for n, each in enumerate(prompt.used, start=1)]
    assert prompt.dropped.passages == len(case.hits) - len(prompt.used)


@MANY
@given(fitting)
def test_dropped_examples_are_counted(case: Case) -> None:
    prompt = case.assemble(count_words)
    kept = [example for example in case.examples if example in prompt.conversation.messages]
    assert prompt.dropped.examples == len(case.examples) - len(kept)
    assert tuple(kept) == case.examples[len(case.examples) - len(kept) :]


@MANY
@given(fitting)
def test_the_newest_message_comes_last_whole_or_cut_in_its_middle(case: Case) -> None:
    prompt = case.assemble(count_words)
    last, cut = prompt.conversation.last.content, prompt.dropped.characters
    if cut == 0:
        assert case.newest in last.rpartition("A title")[2] if prompt.used else last == case.newest
    elif cut == len(case.newest):
        assert last == ""
    else:
        head, told, tail = GAP.split(last)
        assert int(told) == cut == len(case.newest) - len(head) - len(tail)
        assert case.newest == head + case.newest[len(head) : len(head) + cut] + tail
        assert abs(len(head) - len(tail)) <= 1


@MANY
@given(fitting)
def test_things_go_in_the_stated_order(case: Case) -> None:
    dropped = case.assemble(count_words).dropped
    no_turns_left = dropped.turns == len(case.groups())
    no_examples_left = dropped.examples == len(case.examples)
    no_passages_left = dropped.passages == len(case.hits)
    assert not dropped.examples or no_turns_left
    assert not dropped.characters or (no_turns_left and no_examples_left and no_passages_left)


@MANY
@given(fitting)
def test_nothing_is_dropped_without_need(case: Case) -> None:
    prompt = case.assemble(count_words)
    head = case.minimal().messages[:-1]
    question = [
        Conversation((*head, Message("user", with_passages(case.newest, tuple(h.passage for h in case.hits[:n])))))
        for n in range(len(case.hits) + 1)
    ]
    held = [n for n in range(1, len(question)) if count_words(question[n]) <= case.room // (2 if n > 1 else 1)]
    assert len(prompt.used) == max(held, default=0), "as many passages as half of the room holds, one as all of it"
    if prompt.dropped == Dropped(passages=prompt.dropped.passages):
        return
    older = [
        m.content if case.layout == "latest" else with_passages(m.content, m.passages)
        for group in case.groups()
        for m in group
    ]
    everything = [*head, *case.examples, *(Message("user", text) for text in older), question[len(prompt.used)].last]
    assert count_words(Conversation(tuple(everything))) > case.room


@given(fitting)
@MANY
def test_old_turns_carry_passages_only_where_they_are_kept(case: Case) -> None:
    old = {message.content.split()[0]: message for message in case.older}
    for message in case.assemble(count_words).conversation.messages[:-1]:
        words = set(message.content.split()) & set(old)
        if words:
            (word,) = words
            passages = old[word].passages if case.layout == "kept" else ()
            assert message.content == with_passages(old[word].content, passages)


@MANY
@given(fitting)
def test_what_goes_in_is_left_as_it_was(case: Case) -> None:
    hits, conversation = list(case.hits), Conversation(case.conversation.messages)
    case.assemble(count_words)
    assert (case.hits, case.conversation) == (hits, conversation)


# The prefix that a model's cache can keep ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def renderer(tiny_2048_model: Path) -> Any:
    from transformers import AutoTokenizer

    from chatbot.rendering import Renderer

    return Renderer(AutoTokenizer.from_pretrained(tiny_2048_model))


def talk(assembler: PromptAssembler, num_turns: int, answer: str = "It is so, since the sky is wide.") -> list[Prompt]:
    """The prompts of a conversation in which each question finds two passages."""
    conversation, prompts = Conversation(), []
    for n in range(num_turns):
        conversation = conversation.add("user", f"Question number {n}, if you please?")
        hits = [hit(f"h{n}a", 10), hit(f"h{n}b", 10)]
        prompts.append(assembler.assemble(conversation, hits, max_tokens=64))
        passages = tuple(each.passage for each in prompts[-1].used)
        conversation = conversation.with_last(passages=passages).add("assistant", answer)
    return prompts


@pytest.mark.parametrize("context_length", [2048, 3000])
def test_kept_prompts_extend_each_other_with_rare_drops(context_length: int) -> None:
    prompts = talk(PromptAssembler(count_words, context_length, layout="kept"), 120)
    first = next(n for n, prompt in enumerate(prompts) if prompt.dropped.turns)
    breaks = [
        n
        for n in range(1, len(prompts))
        if prompts[n].conversation.messages[: len(prompts[n - 1].conversation)] != prompts[n - 1].conversation.messages
    ]
    assert breaks, "the conversation outgrows the context"
    assert breaks[0] == first
    assert len(breaks) < (120 - first) / 5
    assert all(prompt.dropped.passages == 0 for prompt in prompts)


def test_kept_prompts_extend_each_other_token_by_token(renderer: Any) -> None:
    prompts = talk(PromptAssembler(renderer.count, 2048, "Be brief.", layout="kept"), 25)
    ids = [renderer.ids(prompt.conversation) for prompt in prompts]
    same = [now[: len(before)] == before for before, now in itertools.pairwise(ids)]
    drops = [a.dropped.turns != b.dropped.turns for a, b in itertools.pairwise(prompts)]
    assert same == [not dropped for dropped in drops]
    assert 1 <= sum(drops) < 25 / 4


def test_latest_prompts_carry_passages_in_the_newest_turn_alone() -> None:
    for prompt in talk(PromptAssembler(count_words, 2048), 30):
        *older, newest = prompt.conversation.messages
        assert "[1] A title" in newest.content
        assert not any("A title" in message.content for message in older)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forty_turns_in_a_context_of_2048(layout: Any, tiny_2048_model: Path, make_hit: Callable[..., Hit]) -> None:
    from chatbot.engines import open_engine

    class Documents:
        floor = 0.0

        def search(self, queries: Any, k: int, contexts: Any = None) -> list[list[Hit]]:
            return [[make_hit("The bridge was opened in 1932. " * 3, number=n) for n in range(k)] for _ in queries]

    model = open_engine("transformers", str(tiny_2048_model))
    assembler = PromptAssembler(model.count_tokens, model.context_length, "Be brief.", layout=layout)
    bot = Bot(model, assembler, Documents(), generation=Generation(max_tokens=8))
    conversation, dropped = Conversation(), []
    for n in range(40):
        conversation = conversation.add("user", f"When was bridge number {n} opened, and who was there to see it?")
        turn = bot.prepare(conversation)
        *_, done = bot.stream(turn)
        assert done.reply.usage.prompt_tokens + 8 <= 2048
        assert turn.sources
        dropped.append(turn.prompt.dropped.turns)
        conversation = turn.conversation.add("assistant", done.reply.text)
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0


# Small things -------------------------------------------------------------------------------------------------------


def test_the_newest_message_must_be_the_users() -> None:
    conversation = Conversation().add("user", "hi").add("assistant", "ho")
    with pytest.raises(ValueError, match="newest message must be the user's"):
        PromptAssembler(count_words, 100).assemble(conversation, [], 10)


def test_a_long_message_keeps_as_much_as_fits() -> None:
    message = " ".join(f"w{n}" for n in range(500))
    prompt = PromptAssembler(count_words, 120).assemble(Conversation().add("user", message), [], 20)
    assert count_words(prompt.conversation) in (99, 100)


def test_passages_are_numbered_before_the_question() -> None:
    text = with_passages("Why?", [hit("h1", 1).passage, hit("h2", 1).passage])
    _, found, rest = text.partition("[1] A title\n<h1> word\n\n[2] A title\n<h2> word\n\n")
    assert found
    assert "Why?" in rest
    assert with_passages("Why?", []) == "Why?"


@pytest.mark.parametrize(
    ("dropped", "text"),
    [
        (Dropped(), ""),
        (Dropped(turns=1), "left out to fit the context: 1 oldest turn"),
        (Dropped(turns=2, passages=1), "left out to fit the context: 2 oldest turns, 1 weakest passage"),
        (
            Dropped(examples=2, characters=9),
            "left out to fit the context: 2 example messages, 9 characters of your message",
        ),
    ],
)
def test_what_was_dropped_in_words(dropped: Dropped, text: str) -> None:
    assert str(dropped) == text
