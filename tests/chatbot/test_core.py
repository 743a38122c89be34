"""The bot: what is checked, looked up and said, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from chatbot.conversation import Conversation
from chatbot.core import NOT_IN_DOCUMENTS, WITHHELD, Bot, Done, Event, Notice, Text
from chatbot.engines.base import Delta, Generation, Usage
from chatbot.engines.echo import EchoModel
from chatbot.prompting import PromptAssembler
from moderation.types import Verdict
from retrieval.passages import embedding_text
from retrieval.types import Hit, Passage


def passage_hit(number: int, score: float, num_words: int = 3, confidence: float = 0.9) -> Hit:
    return Hit(
        Passage(
            f"p{number}",
            f"Text number {number}{' word' * (num_words - 3)}.",
            f"Title {number}",
            f"doc{number}.txt",
            1,
            2,
        ),
        score,
        confidence,
    )


@dataclass
class FakeSearcher:
    """Finds the same hits for everything and remembers what it was asked."""

    hits: list[Hit] = field(default_factory=lambda: [passage_hit(1, 0.9), passage_hit(2, 0.5), passage_hit(3, 0.4)])
    floor: float = 0.3
    asked: list[tuple[str, int, str]] = field(default_factory=list)

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        self.asked += [(query, k, context) for query, context in zip(queries, contexts or [""], strict=True)]
        return [self.hits[:k] for _ in queries]


@dataclass
class FakeModerator:
    """Judges by a word: `bad` gets `action`. Writes each check into `log`."""

    action: Any = "block"
    directions: tuple[str, ...] = ("input", "output")
    refusal: str = "No."
    log: list[Any] = field(default_factory=list)

    def can_block(self, direction: str) -> bool:
        return self.action == "block" and direction in self.directions

    def can_flag(self, direction: str) -> bool:
        return direction in self.directions

    def judge(self, scores: Mapping[str, float | None], direction: str) -> Verdict:
        score = scores["prompt_injection"] or 0
        flagged = direction in self.directions and score >= 0.5
        labels = ("prompt_injection",) if flagged else ()
        return Verdict(flagged, self.action if flagged else "allow", dict(scores), labels)

    def check(self, texts: Sequence[str], direction: str = "input", vectors: Any = None) -> list[Verdict]:
        self.log += [(direction, text) for text in texts]
        return [self._judge(text, direction) for text in texts]

    def _judge(self, text: str, direction: str) -> Verdict:
        if "bad" in text and direction in self.directions:
            return Verdict(True, self.action, {"toxic": 0.875}, ("toxic",))
        return Verdict(False, "allow", {"toxic": 0.125})


class Script(EchoModel):
    """Says its lines, whatever it is asked. `running` is False once its iterator was closed or ran out."""

    def __init__(self, *lines: str) -> None:
        super().__init__()
        self.lines = lines
        self.calls = 0
        self.running = False

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        self.calls += 1
        self.running = True
        try:
            for line in self.lines:
                yield Delta(line)
            yield Delta("", "length", Usage(7, len(self.lines)))
        finally:
            self.running = False


def make_bot(model: Any = None, **parts: Any) -> Bot:
    model = model or EchoModel()
    return Bot(model, PromptAssembler(model.count_tokens, model.context_length), **parts)


def ask(text: str) -> Conversation:
    return Conversation().add("user", text)


def run(bot: Bot, conversation: Conversation) -> list[Event]:
    return list(bot.stream(bot.prepare(conversation)))


def texts(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Text)]


def notices(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


# Answers ------------------------------------------------------------------------------------------------------------

MODERATORS = [None, FakeModerator(), FakeModerator("warn"), FakeModerator(directions=("output",))]


@pytest.mark.parametrize("retriever", [None, FakeSearcher(), FakeSearcher(hits=[])])
@pytest.mark.parametrize("moderator", MODERATORS)
@pytest.mark.parametrize("text", ["Where is the bridge?", "hello", "A bad one. Is it not? It is. " * 4])
def test_the_joined_stream_is_the_reply(text: str, moderator: Any, retriever: Any) -> None:
    bot = make_bot(retriever=retriever, moderator=moderator)
    events = run(bot, ask(text))
    reply = bot.reply(ask(text))
    assert "".join(texts(events)) == reply.text
    assert events[-1] == Done(reply)
    assert sum(isinstance(event, Done) for event in events) == 1


def test_usage_and_finish_reason_are_the_models() -> None:
    reply = make_bot(Script("One ", "two")).reply(ask("Count"))
    assert (reply.text, reply.usage, reply.finish_reason) == ("One two", Usage(7, 2), "length")


def test_white_space_before_an_answer_is_left_out() -> None:
    assert texts(run(make_bot(Script("\n", " ", " One", " two ")), ask("Count"))) == ["One", " two "]


def test_an_answer_of_nothing_is_an_empty_reply() -> None:
    assert make_bot(Script("", " ")).reply(ask("Count")).text == ""


def test_prepare_runs_no_model_and_changes_no_conversation() -> None:
    model, conversation = Script("One"), ask("Count the bridges")
    turn = make_bot(model, retriever=FakeSearcher()).prepare(conversation)
    assert model.calls == 0
    assert conversation == ask("Count the bridges")
    assert turn.conversation.last.content == "Count the bridges"


def test_the_newest_message_must_be_the_users() -> None:
    with pytest.raises(ValueError, match="newest message must be the user's"):
        make_bot().prepare(ask("hi").add("assistant", "ho"))


def test_an_empty_conversation_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="the conversation is empty"):
        make_bot().prepare(Conversation())


def test_what_was_left_out_is_noticed_before_the_answer() -> None:
    bot = make_bot(EchoModel(context_length=40), generation=Generation(max_tokens=10))
    events = run(bot, Conversation().add("user", "old " * 30).add("assistant", "old").add("user", "new"))
    assert events[0] == Notice("left out to fit the context: 1 oldest turn")


def test_closing_the_stream_closes_the_model() -> None:
    model = Script("One ", "two ", "three")
    stream = make_bot(model).stream(make_bot(model).prepare(ask("Count")))
    assert next(stream) == Text("One ")
    assert model.running
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert not model.running


# Documents ----------------------------------------------------------------------------------------------------------


def test_sources_are_numbered_as_in_the_prompt() -> None:
    searcher = FakeSearcher()
    turn = make_bot(retriever=searcher).prepare(ask("Where is the bridge?"))
    assert turn.sources == tuple(searcher.hits)
    prompt = turn.prompt.conversation.last.content if turn.prompt else ""
    for number, hit in enumerate(turn.sources, start=1):
        assert f"[{number}] {hit.passage.title}\n{hit.passage.text}" in prompt


def test_the_passages_used_stay_with_the_question() -> None:
    searcher = FakeSearcher()
    bot = make_bot(retriever=searcher)
    turn = bot.prepare(ask("Where is the bridge?"))
    assert turn.conversation.last.passages == tuple(hit.passage for hit in searcher.hits)
    assert bot.reply(ask("Where is the bridge?")).sources == tuple(searcher.hits)


def test_passages_that_do_not_fit_are_no_sources() -> None:
    searcher = FakeSearcher([passage_hit(n, 0.9, num_words=100) for n in range(3)])
    bot = make_bot(EchoModel(context_length=512), retriever=searcher, generation=Generation(max_tokens=12))
    turn = bot.prepare(ask("Where is the bridge?"))
    assert turn.sources == tuple(searcher.hits[:2])
    assert turn.prompt
    assert turn.prompt.dropped.passages == 1
    assert turn.conversation.last.passages == tuple(hit.passage for hit in searcher.hits[:2])


def test_without_a_hit_the_documents_do_not_say_and_no_model_runs() -> None:
    model = Script("I made this up.")
    reply = make_bot(model, retriever=FakeSearcher(hits=[])).reply(ask("Where is the bridge?"))
    assert (reply.text, reply.sources, reply.blocked) == (NOT_IN_DOCUMENTS, (), False)
    assert model.calls == 0


@pytest.mark.parametrize(("floor", "num_hits"), [(None, 3), (0.0, 3), (0.4, 3), (0.9, 3), (0.95, 0)], ids=str)
def test_a_search_below_the_floor_counts_as_nothing_found(floor: float | None, num_hits: int) -> None:
    turn = make_bot(retriever=FakeSearcher(), floor=floor).prepare(ask("Where is the bridge?"))
    assert len(turn.sources) == num_hits
    assert (turn.answer == NOT_IN_DOCUMENTS) == (num_hits == 0)


def test_the_index_has_a_floor_of_its_own() -> None:
    turn = make_bot(retriever=FakeSearcher(floor=0.95)).prepare(ask("Where is the bridge?"))
    assert turn.answer == NOT_IN_DOCUMENTS
    assert len(make_bot(retriever=FakeSearcher(floor=0.9)).prepare(ask("Where is the bridge?")).sources) == 3


def test_k_passages_are_looked_for() -> None:
    searcher = FakeSearcher()
    assert len(make_bot(retriever=searcher, k=2).prepare(ask("Where is the bridge?")).sources) == 2
    assert searcher.asked[0][1] == 2


def test_a_follow_up_is_searched_with_the_users_earlier_messages() -> None:
    searcher = FakeSearcher()
    make_bot(retriever=searcher).prepare(ask("Where is Zürich?").add("assistant", "Far.").add("user", "How far is it?"))
    ((query, _, context),) = searcher.asked
    assert query == "How far is it?"
    assert "Where is Zürich?" in context
    assert "How far" not in context


@pytest.mark.parametrize("text", ["hello", "Hi there!", "Thanks, bye.", "OK", "How are you?", "good morning :"])
def test_small_talk_asks_no_documents(text: str) -> None:
    searcher = FakeSearcher()
    reply = make_bot(retriever=searcher).reply(ask(text))
    assert searcher.asked == []
    assert reply.text == text.strip()


# Moderation ---------------------------------------------------------------------------------------------------------


def test_a_blocked_message_reaches_neither_documents_nor_model() -> None:
    model, searcher = Script("never"), FakeSearcher()
    bot = make_bot(model, retriever=searcher, moderator=FakeModerator(refusal="I will not."))
    reply = bot.reply(ask("something bad"))
    assert (reply.text, reply.blocked) == ("I will not.", True)
    assert reply.verdicts["input"].action == "block"
    assert (model.calls, searcher.asked) == (0, [])


def test_a_blocked_message_is_told_with_its_score() -> None:
    assert notices(run(make_bot(moderator=FakeModerator()), ask("bad"))) == [
        "moderation: your message: block (toxic 0.88)"
    ]


def test_each_sentence_is_checked_with_all_before_it_before_it_is_shown() -> None:
    first, second = "The bridge was opened in 1932, long ago. ", "It carries eight lanes of traffic today."
    moderator = FakeModerator(directions=("output",))
    bot = make_bot(Script(*(f"{word} " for word in (first + second).split(" ")[:-1]), "today."), moderator=moderator)
    for event in bot.stream(bot.prepare(ask("Tell me"))):
        moderator.log.append(event)
    assert moderator.log[:5] == [
        ("input", "Tell me"),
        ("output", first),
        Text(first),
        ("output", first + second),
        Text(second),
    ]


def test_nothing_of_an_offending_sentence_is_shown_nor_anything_after_it() -> None:
    good, bad = "The bridge was opened in 1932, long ago. ", "It was a bad day for the boats in the bay. "
    model = Script(good, bad[:10], bad[10:], "And then it was over. " * 5)
    events = run(make_bot(model, moderator=FakeModerator(directions=("output",))), ask("Tell me"))
    done = events[-1]
    assert texts(events) == [good, "\n\nNo."]
    assert isinstance(done, Done)
    assert done.reply.blocked
    assert done.reply.verdicts["output"].action == "block"
    assert not model.running


def test_an_answer_blocked_from_its_start_is_only_the_refusal() -> None:
    events = run(make_bot(Script("bad"), moderator=FakeModerator(directions=("output",))), ask("Tell me"))
    assert texts(events) == ["No."]


def test_an_offence_that_straddles_sentences_is_seen() -> None:
    model = Script("x" * 50 + ". ba", "d. " + "y" * 50)
    moderator = FakeModerator(directions=("output",))
    assert "bad" not in "".join(texts(run(make_bot(model, moderator=moderator), ask("Tell me"))))


def test_warnings_let_everything_stream_and_are_told() -> None:
    moderator = FakeModerator("warn")
    events = run(make_bot(Script("some ", "bad ", "words"), moderator=moderator), ask("a bad question"))
    assert texts(events) == ["some ", "bad ", "words"]
    assert notices(events) == [
        "moderation: your message: warn (toxic 0.88)",
        "moderation: the answer: warn (toxic 0.88)",
    ]
    assert moderator.log == [("input", "a bad question"), ("output", "some bad words")]


def test_harmless_talk_is_not_commented_on() -> None:
    bot = make_bot(moderator=FakeModerator())
    assert notices(run(bot, ask("Where?"))) == []
    assert {name: verdict.action for name, verdict in bot.reply(ask("Where?")).verdicts.items()} == {
        "input": "allow",
        "output": "allow",
    }


def test_a_failed_check_is_told() -> None:
    class Broken(FakeModerator):
        def check(self, texts: Sequence[str], direction: str = "input", vectors: Any = None) -> list[Verdict]:
            return [Verdict(False, "allow", error="out of memory") for _ in texts]

    events = run(make_bot(moderator=Broken()), ask("Where?"))
    assert notices(events) == [
        "moderation of your message failed: out of memory",
        "moderation of the answer failed: out of memory",
    ]
    assert texts(events)[0] == "Where?"


def test_a_fixed_answer_needs_no_check() -> None:
    moderator = FakeModerator()
    reply = make_bot(retriever=FakeSearcher(hits=[]), moderator=moderator).reply(ask("Where is it?"))
    assert set(reply.verdicts) == {"input"}
    assert moderator.log == [("input", "Where is it?")]


# What a caller brings along, and plain continuation -----------------------------------------------------------------


def test_earlier_messages_are_moderated_where_they_were_not_moderated_here() -> None:
    brought = Conversation().add("user", "something bad").add("assistant", "?").add("user", "answer my first message")
    bot = make_bot(moderator=FakeModerator())
    assert not bot.prepare(brought).blocked
    assert bot.prepare(brought, moderate_all=True).blocked


def test_plain_continuation_is_moderated_in_both_directions() -> None:
    blocked = make_bot(moderator=FakeModerator()).prepare_plain("a bad text")
    assert blocked.blocked
    assert blocked.plain is None
    bot = make_bot(moderator=FakeModerator(directions=("output",)))
    assert texts(list(bot.stream(bot.prepare_plain("bad words")))) == ["No."]


def test_a_floor_of_zero_keeps_every_hit() -> None:
    searcher = FakeSearcher([passage_hit(1, -0.2, confidence=-0.2)], floor=0.4)
    assert make_bot(retriever=searcher).prepare(ask("a long question about things")).answer == NOT_IN_DOCUMENTS
    assert len(make_bot(retriever=searcher, floor=0).prepare(ask("a long question about things")).sources) == 1


def test_passages_that_do_not_fit_are_not_passed_over_in_silence() -> None:
    model = EchoModel(context_length=40)
    bot = make_bot(
        model, retriever=FakeSearcher([passage_hit(1, 0.9, num_words=60)]), generation=Generation(max_tokens=10)
    )
    turn = bot.prepare(ask("a long question about things"))
    assert turn.prompt is None
    assert "do not fit" in (turn.answer or "")


@pytest.mark.parametrize(
    ("text", "leans"),
    [
        ("When did it join the Confederation?", True),
        ("And where was he born?", True),
        ("Why?", True),
        ("Who won the 2018 football world cup?", False),
        ("Which countries border Switzerland to the north?", False),
    ],
)
def test_follow_up_questions_are_searched_with_the_conversation(text: str, leans: bool) -> None:
    searcher = FakeSearcher()
    make_bot(retriever=searcher).prepare(
        Conversation().add("user", "Zurich?").add("assistant", "Yes.").add("user", text)
    )
    assert searcher.asked[-1][2] == ("Zurich?" if leans else "")


# Passages that give orders -------------------------------------------------------------------------------------------


def scored(hit: Hit, injection: float | None, text: str | None = None) -> Hit:
    passage = replace(hit.passage, injection=injection, text=text or hit.passage.text)
    return replace(hit, passage=passage)


def test_a_blocked_passage_is_told_of_and_kept_from_the_model() -> None:
    hits = [scored(passage_hit(1, 0.9), 0.1), scored(passage_hit(2, 0.8), 0.75), scored(passage_hit(3, 0.7), 0.0)]
    moderator = FakeModerator(directions=("document",))
    bot = make_bot(retriever=FakeSearcher(hits), moderator=moderator)
    turn = bot.prepare(ask("Where is the bridge?"))
    assert turn.sources == (hits[0], hits[2])
    assert turn.withheld == (hits[1],)
    assert turn.prompt is not None
    assert "number 2" not in turn.prompt.conversation.last.content
    assert [each.id for each in turn.conversation.last.passages] == ["p1", "p3"]  # nor do later turns show it
    events = list(bot.stream(turn))
    assert notices(events) == ["moderation: passage doc2.txt:1: block (prompt_injection 0.75)"]
    reply = bot.reply(ask("Where is the bridge?"))
    assert reply.withheld == (hits[1],)
    assert reply.verdicts["document"].action == "block"
    assert not reply.blocked
    assert [what for what, _ in moderator.log if what == "document"] == []  # all were judged when they were indexed


def test_where_all_passages_are_blocked_the_model_is_not_asked() -> None:
    model = Script("never said")
    hits = [scored(passage_hit(1, 0.9), 0.9)]
    bot = make_bot(model, retriever=FakeSearcher(hits), moderator=FakeModerator(directions=("document",)))
    reply = bot.reply(ask("Where is the bridge?"))
    assert (reply.text, reply.sources, reply.withheld, model.calls) == (WITHHELD, (), tuple(hits), 0)


def test_a_warning_lets_the_passage_pass() -> None:
    hits = [scored(passage_hit(1, 0.9), 0.9)]
    bot = make_bot(retriever=FakeSearcher(hits), moderator=FakeModerator("warn", directions=("document",)))
    reply = bot.reply(ask("Where is the bridge?"))
    assert (reply.sources, reply.withheld) == (tuple(hits), ())
    assert reply.verdicts["document"].action == "warn"


def test_a_passage_that_nobody_has_judged_is_judged_now() -> None:
    hits = [scored(passage_hit(1, 0.9), None, "A bad text."), scored(passage_hit(2, 0.8), 0.0)]
    moderator = FakeModerator(directions=("document",))
    reply = make_bot(retriever=FakeSearcher(hits), moderator=moderator).reply(ask("Where is the bridge?"))
    assert (reply.sources, reply.withheld) == ((hits[1],), (hits[0],))
    assert [text for what, text in moderator.log if what == "document"] == [embedding_text(hits[0].passage)]


def test_without_a_rule_for_documents_no_passage_is_judged_anew() -> None:
    hits = [scored(passage_hit(1, 0.9), 0.9), scored(passage_hit(2, 0.8), None)]
    moderator = FakeModerator()
    for each in (None, moderator):
        reply = make_bot(retriever=FakeSearcher(hits), moderator=each).reply(ask("Where is the bridge?"))
        assert (reply.sources, reply.withheld) == (tuple(hits), ())
    assert {what for what, _ in moderator.log} == {"input", "output"}
