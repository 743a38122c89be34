"""Chat and plain completions without HTTP: what is asked for happens, what cannot be done is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.api import chat, completions
from chatbot.api.errors import ApiError, Cancelled
from chatbot.api.service import Caller, Collection, Service
from chatbot.api.watch import Watch
from chatbot.conversation import Conversation
from chatbot.core import Bot
from chatbot.engines.base import Delta, TokenLogprob, Usage
from chatbot.engines.echo import EchoModel
from chatbot.prompting import PromptAssembler
from moderation.types import Verdict
from retrieval.encoders import HashEncoder
from retrieval.types import Hit, Passage

pydantic = pytest.importorskip("pydantic", reason="needs the `server` extra")
from chatbot.api.schema import ChatRequest, CompletionRequest, read  # noqa: E402

HELLO = [{"role": "user", "content": "hello there"}]
ALICE = Caller("alice", ("hills", "rivers"))
BOB = Caller("bob", ("rivers",))


class Letters(EchoModel):
    """Answers "a b c " with log-probabilities -1, -2, -3; the last is impossible. Keeps what it was asked with."""

    def __init__(self) -> None:
        super().__init__("letters")
        self.asked: list[Any] = []

    def stream(self, conversation, generation):
        self.asked.append(generation)
        for number, logprob in enumerate((-1.0, -2.0, float("-inf"))):
            text = "abc"[number] + " "
            top = ((text, logprob), ("é", -9.0))[: generation.logprobs or 0]
            told = (TokenLogprob(text, logprob, top),) if generation.logprobs is not None else ()
            yield Delta(text, logprobs=told)
        yield Delta("", "stop", Usage(7, 3, 5))

    def complete(self, prompt, generation):
        return self.stream(None, generation)


@dataclass
class Judge:
    """Blocks what holds one of `bad`; may block answers where `blocks`."""

    bad: tuple[str, ...] = ()
    blocks: bool = True
    refusal: str = "No."
    seen: list[str] = field(default_factory=list)

    def can_block(self, direction):
        return self.blocks

    def can_flag(self, direction):
        return True

    def judge(self, scores, direction):
        return Verdict(False, "allow")

    def check(self, texts, direction="input", vectors=None):
        self.seen += texts
        found = [any(word in text for word in self.bad) for text in texts]
        return [Verdict(bad, "block" if bad else "allow", {"x": float(bad)}, ("x",) if bad else ()) for bad in found]


class Shelf:
    """A searcher with one passage, which knows conditions."""

    floor = 0.5

    def __init__(self, name: str, where: tuple[Any, ...] = ()) -> None:
        self.name, self.where, self.encoder = name, where, HashEncoder()

    def limited(self, where):
        return Shelf(self.name, (*self.where, *where.conditions))

    def search(self, queries, k, contexts=None):
        told = " ".join(f"{each.field}{each.operator}{each.value}" for each in self.where)
        passage = Passage(f"{self.name}#0", f"Passage of {self.name} {told} k={k}", self.name, f"{self.name}.txt", 1, 2)
        return [[Hit(passage, 0.9, 0.6)] for _ in queries]


def bot_of(model=None, **more):
    model = model or EchoModel("parrot")
    return Bot(model, PromptAssembler(model.count_tokens, model.context_length), **more)


def service_of(bot=None, **more):
    shelves = [Shelf("hills"), Shelf("rivers")]
    collections = {shelf.name: Collection(shelf.name, shelf, shelf.encoder) for shelf in shelves}
    return Service(bot or bot_of(), collections, **more)


QUESTION = [{"role": "user", "content": "How high are the hills of the north?"}]


def ask(service=None, caller=ALICE, stream=False, watch=None, **body):
    body.setdefault("messages", HELLO)
    request = read(ChatRequest, body)
    prepared = chat.prepare(service or service_of(), caller, request, watch or Watch())
    return list(chat.stream(prepared)) if stream else chat.complete(prepared)


def plain(service=None, stream=False, **body):
    request = read(CompletionRequest, body)
    prepared = completions.prepare(service or service_of(), ALICE, request, Watch())
    return list(completions.stream(prepared)) if stream else completions.complete(prepared)


def text_of(chunks, index=0):
    said = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(each["delta"].get("content", "") for each in said if each["index"] == index)


# Settings -----------------------------------------------------------------------------------------------------------


def test_each_setting_reaches_the_engine():
    model = Letters()
    ask(service_of(bot_of(model)), messages=HELLO, temperature=0.5, top_p=0.9, seed=7, stop=["x", "y"], max_tokens=9)
    (asked,) = model.asked
    assert (asked.sample, asked.temperature, asked.top_p, asked.seed) == (True, 0.5, 0.9, 7)
    assert (asked.stop, asked.max_tokens, asked.logprobs) == (("x", "y"), 9, None)
    ask(service_of(bot_of(model)), temperature=0, max_completion_tokens=3, max_tokens=9)
    assert (model.asked[-1].sample, model.asked[-1].max_tokens) == (False, 3)


def test_several_answers_differ_in_their_seed_and_count_the_prompt_once():
    model = Letters()
    body = ask(service_of(bot_of(model)), n=3, seed=40, temperature=1)
    assert [asked.seed for asked in model.asked] == [40, 41, 42]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 5},
    }
    chunks = ask(service_of(bot_of(model)), n=3, stream=True, stream_options={"include_usage": True})
    assert [text_of(chunks, index) for index in range(3)] == ["a b c "] * 3
    assert chunks[-1]["usage"] == body["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    ends = [each["choices"][0]["finish_reason"] for each in chunks[:-1]]
    assert ends.count("stop") == 3


def test_cached_tokens_are_told_to_one_key_only():
    usage = ask(service_of(bot_of(Letters()), tell_cached=False))["usage"]
    assert usage == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), st.booleans())
def test_the_stream_joins_to_the_whole(text, parts):
    content = [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}] if parts else text
    body = {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": content}]}
    body["parley"] = {"retrieval": False}
    whole = ask(**body)["choices"][0]["message"]["content"]
    assert text_of(ask(stream=True, **body)) == whole
    assert json.loads(json.dumps(whole)) == whole


# Log-probabilities --------------------------------------------------------------------------------------------------


def test_log_probabilities_of_each_token():
    service = service_of(bot_of(Letters()))
    (choice,) = ask(service, logprobs=True, top_logprobs=2)["choices"]
    content = choice["logprobs"]["content"]
    assert [each["token"] for each in content] == ["a ", "b ", "c "]
    assert [each["logprob"] for each in content] == [-1.0, -2.0, -9999.0]
    assert content[0]["bytes"] == [97, 32]
    assert content[0]["top_logprobs"][1] == {"token": "é", "logprob": -9.0, "bytes": [195, 169]}
    chunks = ask(service, logprobs=True, stream=True)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [each["token"] for part in told if part for each in part["content"]] == ["a ", "b ", "c "]
    assert all(each["top_logprobs"] == [] for part in told if part for each in part["content"])
    assert ask(service)["choices"][0]["logprobs"] is None


def test_tokens_of_what_is_withheld_do_not_come_before_it_is_checked():
    # The tokens of a sentence that waits for its verdict would tell what it says.
    service = service_of(bot_of(Letters(), moderator=Judge(bad=("c",))))
    for chunks in (ask(service, logprobs=True, stream=True), [ask(service, logprobs=True)]):
        assert {chunk["choices"][0]["logprobs"] is None for chunk in chunks} == {True}
        assert '"c ' not in json.dumps(chunks)
        assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    service = service_of(bot_of(Letters(), moderator=Judge()))
    chunks = ask(service, logprobs=True, stream=True)
    assert [chunk["choices"][0]["logprobs"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert len(chunks[-1]["choices"][0]["logprobs"]["content"]) == 3


def test_an_engine_without_log_probabilities_says_so():
    with pytest.raises(ApiError, match="no log-probabilities"):
        ask(logprobs=True)


# Retrieval and moderation, for one request ---------------------------------------------------------------------------


def test_a_request_says_where_to_look():
    def found(**more):
        return [source["text"] for source in ask(messages=QUESTION, **more)["sources"]]

    assert found() == ["Passage of hills  k=3"]
    assert found(caller=BOB) == ["Passage of rivers  k=3"]
    asked = {"index": "rivers", "k": 5, "where": ["year>=1990", "source=docs/*"]}
    assert found(parley=asked) == ["Passage of rivers year>=1990 source=docs/* k=5"]
    assert found(parley={"retrieval": False}) == []
    assert found(parley={"floor": 0.7}) == []
    assert found(parley={"floor": 0.6}) == ["Passage of hills  k=3"]
    refused = ask(messages=QUESTION, parley={"floor": 0.7})["choices"][0]["message"]["content"]
    assert refused.startswith("The documents do not say.")


def test_anothers_index_looks_as_if_it_did_not_exist():
    def refused(name):
        with pytest.raises(ApiError) as error:
            ask(caller=BOB, parley={"index": name})
        return error.value.status, str(error.value).replace(name, "...")

    assert refused("hills") == refused("nothing") == (404, "there is no index '...' (there are: rivers)")


@pytest.mark.parametrize(
    ("parley", "status", "named"),
    [
        ({"k": 51}, 400, "limit of 50"),
        ({"where": ["nonsense"]}, 400, "no condition"),
        ({"retrieval": False, "k": 2}, 400, "leave parley.k out"),
        ({"moderation": True}, 404, "moderation is off"),
        ({"speed": 3}, 400, "parley.speed"),
        ({"k": 0}, 400, "parley.k=0"),
        ({"floor": 1.5}, 400, "parley.floor=1.5"),
    ],
)
def test_what_a_request_cannot_have(parley, status, named):
    with pytest.raises(ValueError, match=named) as error:
        ask(parley=parley)
    assert getattr(error.value, "status", 400) == status


def test_without_an_index_retrieval_cannot_be_asked_for():
    service = Service(bot_of())
    assert ask(service, Caller("x"))["sources"] == []
    for parley in ({"retrieval": True}, {"k": 2}, {"index": "hills"}):
        with pytest.raises(ApiError) as error:
            ask(service, Caller("x"), parley=parley)
        assert error.value.status == 404


def test_moderation_can_be_turned_off_unless_it_is_locked():
    service = service_of(bot_of(moderator=Judge(bad=("hello",))))
    assert ask(service)["choices"][0]["finish_reason"] == "content_filter"
    assert ask(service, parley={"moderation": True})["choices"][0]["message"]["content"] == "No."
    assert ask(service, parley={"moderation": False})["verdicts"] == {}
    locked = service_of(bot_of(moderator=Judge(bad=("hello",))), lock_moderation=True)
    with pytest.raises(ApiError, match="does not let") as error:
        ask(locked, parley={"moderation": False})
    assert error.value.code == "moderation_locked"
    with pytest.raises(ApiError, match="does not let"):
        plain(locked, prompt="x", parley={"moderation": False})


def test_every_message_is_judged_not_only_the_last():
    judge = Judge()
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, *HELLO]
    ask(service_of(bot_of(moderator=judge)), messages=messages, parley={"retrieval": False})
    assert judge.seen[:3] == ["one", "two", "hello there"]


# Ending early -------------------------------------------------------------------------------------------------------


def test_a_cancelled_request_stops_after_the_token_at_work():
    class Endless(EchoModel):
        closed = False

        def stream(self, conversation, generation):
            try:
                while True:
                    yield Delta("x ")
            finally:
                Endless.closed = True

    watch = Watch()
    prepared = chat.prepare(service_of(bot_of(Endless())), ALICE, read(ChatRequest, {"messages": HELLO}), watch)
    chunks = chat.stream(prepared)
    for _ in range(5):
        next(chunks)
    watch.cancel()
    with pytest.raises(Cancelled):
        next(chunks)
    assert Endless.closed


def test_a_prompt_above_the_limit_is_refused():
    service = service_of(max_prompt_tokens=4)
    assert ask(service)["usage"]["completion_tokens"] > 0  # user: hello there assistant: are 4 words
    with pytest.raises(ApiError, match="has 5 tokens, and this server takes 4") as error:
        ask(service, messages=[{"role": "user", "content": "hello there you"}])
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(ApiError, match="this server takes 4"):
        plain(service, prompt=["a", "a b c d e"])


# Plain completions --------------------------------------------------------------------------------------------------


def test_texts_are_continued_each_n_times():
    body = plain(prompt=["one two", "three"], n=2, echo=True)
    assert [choice["text"] for choice in body["choices"]] == ["one twoone two"] * 2 + ["threethree"] * 2
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert (body["object"], body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (
        "text_completion",
        3,
        6,
    )
    chunks = plain(stream=True, prompt=["one two", "three"], n=2, echo=True, stream_options={"include_usage": True})
    texts = ["", "", "", ""]
    for chunk in chunks[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [choice["text"] for choice in body["choices"]]
    assert chunks[-1]["usage"] == body["usage"]
    assert plain(prompt="one two three", stop=" three")["choices"][0]["text"] == "one two"
    cut = plain(prompt="one two three", max_tokens=2)["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == ("one two", "length")


def test_log_probabilities_of_a_plain_completion():
    service = service_of(bot_of(Letters()))
    (choice,) = plain(service, prompt="x", logprobs=1)["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a ", "b ", "c "],
        "token_logprobs": [-1.0, -2.0, -9999.0],
        "top_logprobs": [{"a ": -1.0}, {"b ": -2.0}, {"c ": -9999.0}],
        "text_offset": [0, 2, 4],
    }
    chunks = plain(service, stream=True, prompt="x", logprobs=1)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [offset for each in told for offset in each["text_offset"]] == [0, 2, 4]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "prompt is missing"),
        ({"prompt": ""}, "prompt='': string should have at least 1 character"),
        ({"prompt": ["x", ""]}, "prompt.1='': string should have at least 1 character"),
        ({"prompt": []}, "prompt="),
        ({"prompt": [1, 2]}, "prompt.0=1"),
        ({"prompt": ["a"] * 5, "n": 8}, "40 completions are asked for, of at most 32"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "leave echo out"),
        ({"prompt": "x", "suffix": "y"}, "suffix='y' is not supported"),
        ({"prompt": "x", "best_of": 2}, "best_of=2"),
        ({"prompt": "x", "parley": {"retrieval": True}}, "parley.retrieval"),
    ],
)
def test_a_plain_completion_that_cannot_be(body, named):
    with pytest.raises(ApiError, match=named):
        plain(**body)


def test_a_saved_chat_can_be_sent_as_it_is():
    passage = Passage("a#0", "The hill is high.", "Hills", "hills.txt", 3, 4, "page", {"year": 1990}, 0.1)
    saved = Conversation().add("user", "How high is it?", [passage]).add("assistant", "High.")
    saved = saved.with_last(verdicts=(("input", Verdict(False, "allow", {"x": 0.1})),)).add("user", "hello there")
    messages = json.loads(json.dumps(saved.to_record()))["messages"]
    assembler = replace(bot_of().assembler, layout="kept")
    service = Service(replace(bot_of(), assembler=assembler))
    prepared = chat.prepare(service, Caller("x"), read(ChatRequest, {"messages": messages}), Watch())
    assert "The hill is high." in prepared.turn.prompt.conversation.messages[0].content
    source = ask(messages=QUESTION)["sources"][0]
    sent = [QUESTION[0] | {"passages": [source]}, {"role": "assistant", "content": "x", "refusal": None}, *HELLO]
    prepared = chat.prepare(service, Caller("x"), read(ChatRequest, {"messages": sent}), Watch())
    assert "Passage of hills" in prepared.turn.prompt.conversation.messages[0].content


# What is refused ----------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "hello"}
BAD = [
    ({"messages": []}, "messages="),
    ({"messages": "hello"}, "messages='hello'"),
    ({"messages": ["hello"]}, r"messages\.0='hello'"),
    ({"messages": [{"role": "robot", "content": "hello"}]}, r"messages\.0\.role='robot'.*'user' or 'assistant'"),
    ({"messages": [USER, {"role": "assistant"}]}, r"messages\.1\.content is missing"),
    ({"messages": [{"role": "user", "content": None}]}, r"messages\.0\.content=None"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url.*'text'"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, r"messages\.0\.content: it holds half a character"),
    ({"messages": [{"role": "user", "content": "x", "passages": [1]}]}, r"messages\.0\.passages\.0=1"),
    ({"messages": [{"role": "user", "content": "x", "passages": [{"id": 3}]}]}, r"messages\.0\.passages\.0"),
    ({"messages": [USER, {"role": "assistant", "content": "Hello."}]}, "the last message must be the user's"),
    ({"messages": [USER | {"tool_calls": [{}]}]}, "tool_calls"),
    ({"n": 9}, "n=9"),
    ({"n": True}, "n=True"),
    ({"temperature": -1}, "temperature=-1"),
    ({"temperature": "warm"}, "temperature='warm'"),
    ({"temperature": True}, "temperature=True"),
    ({"temperature": float("nan")}, "temperature=nan"),
    ({"top_p": 0}, "top_p=0"),
    ({"max_tokens": 0}, "max_tokens=0"),
    ({"max_tokens": 1.5}, "max_tokens=1.5"),
    ({"max_tokens": 9000}, "max_tokens=9000"),
    ({"seed": 2**70}, "seed="),
    ({"seed": 2**63 - 1, "n": 2}, "seed="),
    ({"stop": 3}, "stop=3"),
    ({"stop": ""}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"tools": [{"type": "function"}]}, "tools and functions are not supported"),
    ({"functions": [{}]}, "tools and functions are not supported"),
    ({"tool_choice": "required"}, "tool_choice='required' is not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format.*'json_object'.*'text'"),
    ({"frequency_penalty": 0.5}, "frequency_penalty=0.5 is not supported"),
    ({"top_k": 5}, "top_k=5 is not supported"),
    ({"logit_bias": {"1": 2}}, "logit_bias"),
    ({"top_logprobs": 3}, "needs logprobs=true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs=21"),
    ({"stream_options": "all"}, "stream_options='all'"),
    ({"stream": "false"}, "stream='false'"),
]


@pytest.mark.parametrize(("body", "named"), BAD, ids=lambda value: repr(value)[:60])
def test_a_bad_request_is_refused_with_a_reason(body, named):
    with pytest.raises(ValueError, match=named) as error:
        chat.prepare(service_of(), ALICE, read(ChatRequest, {"messages": HELLO} | body), Watch())
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_fields_that_ask_for_nothing_are_accepted():
    plain_fields = {"temperature": 0, "top_p": 1, "seed": 3, "n": 1, "user": "ada", "metadata": {"a": "b"}}
    nothing = {"tools": [], "functions": None, "frequency_penalty": 0, "logit_bias": {}, "tool_choice": "auto"}
    labels = {"store": True, "prompt_cache_key": "x", "response_format": {"type": "text"}, "modalities": ["text"]}
    assert ask(**plain_fields, **nothing, **labels, parallel_tool_calls=True, audio=None)["choices"]
