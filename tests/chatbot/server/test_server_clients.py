"""The official `openai` client, unmodified, against a real server."""

from __future__ import annotations

import math

import numpy as np
import pytest
from running import SlowModel, bot_of, running, wait_until

from chatbot.api.service import Caller, Collection, Service
from chatbot.engines.echo import EchoModel
from chatbot.server.keys import Key, Keyring
from moderation.moderator import PolicyModerator
from retrieval.encoders import HashEncoder
from retrieval.retriever import Retriever
from retrieval.writing.building import build_index

openai = pytest.importorskip("openai", reason="needs the `dev` extra")
pytest.importorskip("uvicorn", reason="needs the `server` extra")

KEY = "a-key-that-is-long"


class Words:
    """A classifier that finds violence in texts that speak of it, and cannot judge hate."""

    labels = ("violence", "hate")
    name = "words"

    def scores(self, texts):
        return [{"violence": 0.9 if "fight" in text else 0.1, "hate": None} for text in texts]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "harbour.md").write_text("# The harbour\n\nThe harbour bridge was opened in 1932. It has eight lanes.\n")
    build_index([folder / "harbour.md"], folder / "index", "hash")
    retriever = Retriever.open(folder / "index")
    bot = bot_of(EchoModel("parrot"), moderator=PolicyModerator(Words()))
    service = Service(bot, {"default": Collection("default", retriever, retriever.encoder)})
    keyring = Keyring([Key(KEY.encode(), Caller("me", ("default",)))])
    with running(service, keyring) as found:
        yield found


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def test_chat(client):
    answer = client.chat.completions.create(
        model="parrot", messages=[{"role": "user", "content": "When was the harbour bridge opened?"}]
    )
    (choice,) = answer.choices
    assert "The harbour bridge was opened in 1932." in choice.message.content
    assert (choice.finish_reason, choice.message.role, answer.model) == ("stop", "assistant", "parrot")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.sources[0]["title"] == "The harbour"
    assert answer.verdicts["input"]["flagged"] is False


def test_chat_streams(client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello, one two three"}]
    asked = {"model": "x", "messages": messages, "extra_body": {"parley": {"retrieval": False}}}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content == "hello, one two three"
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 4
    # The client's own helper, which checks the order of events.
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == said


def test_settings_and_several_answers(client):
    answer = client.chat.completions.create(
        model="x",
        messages=[{"role": "user", "content": "hello there you"}],
        n=2,
        seed=1,
        stop=[" you"],
        temperature=0.2,
        max_completion_tokens=20,
        extra_body={"parley": {"retrieval": False}},
    )
    assert [choice.message.content for choice in answer.choices] == ["hello there"] * 2


def test_log_probabilities():
    with (
        running(bot_of(SlowModel(tokens=3, logprobs=True))) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        answer = client.chat.completions.create(
            model="x", messages=[{"role": "user", "content": "hello"}], logprobs=True, top_logprobs=2
        )
        content = answer.choices[0].logprobs.content
        assert [(each.token, each.logprob) for each in content] == [("w1 ", -1), ("w2 ", -2), ("w3 ", -3)]
        assert [each.token for each in content[0].top_logprobs] == ["other0", "other1"]
        stream = client.chat.completions.create(
            model="x", messages=[{"role": "user", "content": "hello"}], logprobs=True, stream=True
        )
        told = [chunk.choices[0].logprobs for chunk in stream]
        assert [each.token for part in told if part for each in part.content] == ["w1 ", "w2 ", "w3 "]


def test_plain_completions(client):
    answer = client.completions.create(model="x", prompt=["one two", "three"], echo=True)
    assert [choice.text for choice in answer.choices] == ["one twoone two", "threethree"]
    stream = client.completions.create(model="x", prompt="one two three", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "one two three"


def test_embeddings(client):
    texts = ["the harbour", "a bridge of lanes"]
    expected = HashEncoder().encode(texts)
    asked_as_base64 = client.embeddings.create(model="hash", input=texts)  # what the client asks for by default
    as_floats = client.embeddings.create(model="hash", input=texts, encoding_format="float")
    for answer in (asked_as_base64, as_floats):
        assert [each.index for each in answer.data] == [0, 1]
        np.testing.assert_allclose([each.embedding for each in answer.data], expected, rtol=0, atol=1e-7)
    assert as_floats.usage.prompt_tokens == 6
    (single,) = client.embeddings.create(model="hash", input="the harbour").data
    assert math.isclose(sum(value * value for value in single.embedding), 1, rel_tol=1e-6)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["parrot", "hash"]
    assert client.models.retrieve("parrot").owned_by == "parley"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.models.retrieve("gpt")


def test_moderations(client):
    answer = client.moderations.create(model="x", input=["a lovely day", "let us fight"])
    calm, angry = answer.results
    assert (calm.flagged, angry.flagged) == (False, True)
    assert (angry.categories.violence, angry.category_scores.violence) == (True, 0.9)
    assert (calm.categories.hate, calm.category_scores.hate) == (False, None)  # it cannot be judged
    assert angry.categories.self_harm_intent is False
    parts = client.moderations.create(model="x", input=[{"type": "text", "text": "let us fight"}])
    assert parts.results[0].flagged


def test_errors_are_those_that_the_client_knows(server, client):
    hello = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="x", messages=hello, temperature=-1)
    assert error.value.param == "temperature"
    assert error.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="tools and functions are not supported"):
        client.chat.completions.create(
            model="x", messages=hello, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
        )
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as wrong,
        pytest.raises(openai.AuthenticationError) as error,
    ):
        wrong.models.list()
    assert error.value.code == "invalid_api_key"


def test_a_client_that_is_told_to_wait_comes_back():
    model = SlowModel(seconds=0.1, tokens=3)
    with running(bot_of(model), concurrent=1, queued=0) as server:
        first = server.open("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "first"}]})
        wait_until(lambda: model.running)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3) as client:
            answer = client.chat.completions.create(model="x", messages=[{"role": "user", "content": "second"}])
        assert answer.choices[0].message.content == "w1 w2 w3 "
        assert first.getresponse().status == 200
        assert 'parley_rejected_total{reason="queue"}' in server.ask("GET", "/metrics")[1]
