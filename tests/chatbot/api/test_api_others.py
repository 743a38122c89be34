"""Embeddings, rerank, search, moderations, models and feedback without HTTP; and that nothing crosses between keys."""

from __future__ import annotations

import base64
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.api import chat, embeddings, feedback, models, moderations, rerank, retrieval
from chatbot.api.errors import ApiError
from chatbot.api.exchanges import Exchange, Exchanges
from chatbot.api.service import Caller, Collection, Service
from chatbot.api.watch import Watch
from chatbot.conversation import Conversation
from chatbot.core import Bot, Reply, Turn
from chatbot.engines.base import Generation
from chatbot.engines.echo import EchoModel
from chatbot.prompting import PromptAssembler
from chatbot.session import Files, Session
from retrieval.retriever import Retriever
from retrieval.several import SeveralIndexes
from retrieval.writing.building import build_index

pytest.importorskip("pydantic", reason="needs the `server` extra")
from chatbot.api import schema

ALICE, BOB = Caller("alice", ("hills", "rivers")), Caller("bob", ("rivers",))
HILLS = [
    {"id": f"h{year}", "title": "Hills", "text": f"The hill of {name} rises over the moor.", "year": year}
    for year, name in ((1990, "Arden"), (2000, "Barrow"), (2010, "Cair"))
]


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collections")
    (folder / "hills.jsonl").write_text("\n".join(map(json.dumps, HILLS)))
    (folder / "rivers.txt").write_text("The river Teme runs to the sea. Its secret ford lies at Ludlow.")
    found = {}
    for name, file in (("hills", "hills.jsonl"), ("rivers", "rivers.txt")):
        build_index([folder / file], folder / name, "hash", floor=0.05)
        retriever = Retriever.open(folder / name)
        found[name] = Collection(name, retriever, retriever.encoder)
    return found


@pytest.fixture
def service(collections, tmp_path):
    model = EchoModel("parrot")
    bot = Bot(model, PromptAssembler(model.count_tokens, model.context_length, "Be brief."))
    return Service(bot, collections, feedback=tmp_path / "feedback.jsonl")


def read(kind, **body):
    return schema.read(kind, body)


def search(service, caller=ALICE, **body):
    return retrieval.search(service, caller, read(schema.SearchRequest, **body), Watch())


# Search -------------------------------------------------------------------------------------------------------------


def test_search_gives_what_the_index_gives(service, collections):
    found = search(service, query="the hill of Barrow", k=2)
    expected = collections["hills"].searcher.search(["the hill of Barrow"], 2)[0]
    assert [hit["id"] for hit in found["hits"]] == [hit.passage.id for hit in expected]
    hit = found["hits"][0]
    assert (hit["text"], hit["title"]) == ("The hill of Barrow rises over the moor.", "Hills")
    assert {"source", "start", "end", "score", "confidence", "location", "meta"} <= set(hit)
    assert (found["index"], found["answered"]) == ("hills", True)
    assert search(service, query="rivers", index="rivers")["index"] == "rivers"
    assert search(service, query="nothing of the kind", k=1)["answered"] in (True, False)


def test_search_within_conditions(service):
    years = [hit["meta"]["year"] for hit in search(service, query="hill", k=3, where=["year>=2000"])["hits"]]
    assert sorted(years) == [2000, 2010]
    assert search(service, query="hill", where=["year>2010"])["hits"] == []
    assert len(search(service, query="hill", k=3)["hits"]) == 3, "the next search sees all again"
    with pytest.raises(ValueError, match="no condition"):
        search(service, query="hill", where=["year"])


def test_conditions_narrow_what_the_operator_allows(collections):
    both = SeveralIndexes([collections["hills"].searcher, collections["rivers"].searcher])
    from retrieval.search.filters import Filter

    narrowed = both.limited(Filter.parse(["year<2010"])).limited(Filter.parse(["year>1990"]))
    assert [hit.passage.meta["year"] for hit in narrowed.search(["hill"], 5)[0]] == [2000]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"query": ""}, "query"),
        ({"query": "  "}, "blank"),
        ({"query": "x", "k": 0}, "k=0"),
        ({"query": "x", "k": 51}, "k=51 is above this server's limit of 50"),
        ({"query": "x", "top_k": 3}, "top_k"),
        ({"query": "x", "where": ["a=b"] * 17}, "where"),
    ],
)
def test_a_search_that_cannot_be(service, body, named):
    with pytest.raises(ApiError, match=named):
        search(service, **body)


# One tenant and another -----------------------------------------------------------------------------------------------


def test_nobody_sees_anothers_index(service):
    def attempts(name):
        yield lambda: search(service, BOB, query="Barrow", index=name)
        body = {"input": "x", "parley": {"index": name}}
        yield lambda: embeddings.embed(service, BOB, read(schema.EmbeddingRequest, **body), Watch())
        body = {"query": "x", "documents": ["y"], "parley": {"index": name}}
        yield lambda: rerank.rerank(service, BOB, read(schema.RerankRequest, **body), Watch())
        body = {"messages": [{"role": "user", "content": "Where is Barrow?"}], "parley": {"index": name}}
        yield lambda: chat.prepare(service, BOB, read(schema.ChatRequest, **body), Watch())

    def refusals(name):
        for attempt in attempts(name):
            with pytest.raises(ApiError) as error:
                attempt()
            yield error.value.status, error.value.code, str(error.value).replace(name, "...")

    hidden, missing = list(refusals("hills")), list(refusals("other"))
    assert hidden == missing
    assert {status for status, _, _ in hidden} == {404}
    everything = json.dumps([hit["text"] for hit in search(service, BOB, query="the hill of Barrow", k=50)["hits"]])
    assert "Barrow" not in everything


def test_without_an_index_there_is_no_encoder(service):
    nobody = Caller("nobody")
    for attempt in (
        lambda: search(service, nobody, query="x"),
        lambda: embeddings.embed(service, nobody, read(schema.EmbeddingRequest, input="x"), Watch()),
        lambda: rerank.rerank(service, nobody, read(schema.RerankRequest, query="x", documents=["y"]), Watch()),
    ):
        with pytest.raises(ApiError, match="no index here") as error:
            attempt()
        assert (error.value.status, error.value.code) == (404, "not_enabled")
    assert [model["id"] for model in models.list_models(service, nobody)["data"]] == ["parrot"]
    told = [models.list_models(service, each)["indexes"] for each in (ALICE, BOB, nobody)]
    assert told == [["hills", "rivers"], ["rivers"], []]


# Embeddings and rerank ------------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_embeddings_are_the_encoders(collections, texts):
    model = EchoModel()
    service = Service(Bot(model, PromptAssembler(model.count_tokens, 100)), collections)
    expected = collections["hills"].encoder.encode(texts)
    for kind in ("float", "base64"):
        body = embeddings.embed(
            service, ALICE, read(schema.EmbeddingRequest, input=texts, encoding_format=kind), Watch()
        )
        found = [each["embedding"] for each in body["data"]]
        if kind == "base64":
            found = [np.frombuffer(base64.b64decode(each), "<f4") for each in found]
        np.testing.assert_array_equal(np.array(found, dtype=np.float32), expected)


def test_an_embedding_that_cannot_be(service):
    for body, named in (
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": "x", "dimensions": 3}, "this encoder gives 256"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ):
        with pytest.raises(ApiError, match=named):
            embeddings.embed(service, ALICE, read(schema.EmbeddingRequest, **body), Watch())
    request = read(schema.EmbeddingRequest, input="x", dimensions=256)
    assert len(embeddings.embed(service, ALICE, request, Watch())["data"][0]["embedding"]) == 256


def test_what_an_encoder_does_not_read_is_said(service, collections):
    class Short:
        name, fingerprint, dim, max_length = "short", "short", 256, 3
        encode = staticmethod(collections["hills"].encoder.encode)
        count_tokens = staticmethod(lambda texts: [len(text.split()) for text in texts])

    short = Service(service.bot, {"hills": Collection("hills", collections["hills"].searcher, Short())})
    request = read(schema.EmbeddingRequest, input=["a b c", "a b c d"])
    notices = embeddings.embed(short, ALICE, request, Watch())["notices"]
    assert notices == ["input 1 has about 4 tokens, of which the encoder reads 3"]


def test_rerank_by_cosine(service):
    documents = ["a river", {"text": "the hill of Barrow"}, "hill", "the hill of Barrow"]
    request = read(schema.RerankRequest, query="the hill of Barrow", documents=documents, return_documents=True)
    results = rerank.rerank(service, ALICE, request, Watch())["results"]
    assert [each["index"] for each in results] == [1, 3, 2, 0]  # of equals the first comes first
    assert results[0]["relevance_score"] == pytest.approx(1)
    assert results[2]["relevance_score"] == pytest.approx(0.5)  # 1 word of 4: 1 / (sqrt 1 * sqrt 4)
    assert results[0]["document"] == {"text": "the hill of Barrow"}
    request = read(schema.RerankRequest, query="hill", documents=documents, top_n=2)
    assert len(rerank.rerank(service, ALICE, request, Watch())["results"]) == 2


def test_rerank_by_a_cross_encoder(service):
    class Longest:
        name = "longest"

        def score(self, query, texts):
            return np.array([len(text) / 100 for text in texts], dtype=np.float32)

    service = Service(service.bot, service.collections, Longest())
    request = read(schema.RerankRequest, query="x", documents=["aa", "aaaa", "a"])
    body = rerank.rerank(service, Caller("no index"), request, Watch())
    assert body["model"] == "longest"
    assert [(each["index"], each["relevance_score"]) for each in body["results"]] == [(1, 0.04), (0, 0.02), (2, 0.01)]


def test_moderation_that_is_off(service):
    with pytest.raises(ApiError, match="start it with --moderation") as error:
        moderations.moderate(service, read(schema.ModerationRequest, input="x"), Watch())
    assert error.value.code == "not_enabled"


# Feedback -----------------------------------------------------------------------------------------------------------


def answered(service, text="Where does the river Teme run to?", caller=BOB, **more):
    body = {"messages": [{"role": "user", "content": text}], **more}
    return chat.complete(chat.prepare(service, caller, read(schema.ChatRequest, **body), Watch()))


def rate(service, caller=BOB, **body):
    return feedback.rate(service, caller, read(schema.FeedbackRequest, **body), Watch())


def test_a_rating_is_kept_as_the_shell_keeps_it(service, collections, tmp_path):
    question = "Where does the river Teme run to?"
    rate(service, id=answered(service, question)["id"], rating="good", reason="yes")
    session = Session(
        Bot(service.bot.model, service.bot.assembler),
        Files(feedback=tmp_path / "shell.jsonl"),
    )
    session.set_retriever(collections["rivers"].searcher)
    list(session.ask(question))
    session.rate("good", "yes")
    ours, shells = (json.loads(path.read_text()) for path in (service.feedback, tmp_path / "shell.jsonl"))
    assert ours.pop("time")[:10] == shells.pop("time")[:10]
    assert (ours.pop("id")[:9], shells.pop("id")[:7]) == ("chatcmpl-", "answer-")
    assert ours == shells
    assert ours["passages"][0]["text"].startswith("The river Teme")


def test_each_rating_and_each_choice(service):
    body = answered(service, "hello", n=2)
    rate(service, id=body["id"], rating="bad", choice=1)
    rate(service, id=body["id"], rating="edit", edit="Better.", reason="dull")
    bad, edit = (json.loads(line) for line in service.feedback.read_text().splitlines())
    assert (bad["rating"], bad["reason"], bad["edit"], bad["answer"]) == ("bad", "", None, "hello")
    assert (edit["rating"], edit["edit"], edit["reason"]) == ("edit", "Better.", "dull")
    for wrong in ({"rating": "edit"}, {"rating": "good", "edit": "x"}, {"rating": "edit", "edit": " "}):
        with pytest.raises(ApiError, match="rating=edit"):
            rate(service, id=body["id"], **wrong)
    with pytest.raises(ApiError, match="no answer"):
        rate(service, id=body["id"], rating="good", choice=2)
    with pytest.raises(ApiError, match="rating='great'"):
        rate(service, id=body["id"], rating="great")


def test_a_thumb_and_its_reason_have_one_id_and_the_last_holds(service):
    one, two = answered(service, "hello", n=2)["id"], answered(service, "hello")["id"]
    rate(service, id=one, rating="bad")
    rate(service, id=two, rating="good")
    rate(service, id=one, rating="bad", reason="dull")
    rate(service, id=one, rating="good", choice=1)
    rate(service, id=two, rating="edit", edit="Better.")
    lines = [json.loads(line) for line in service.feedback.read_text().splitlines()]
    assert [line["id"] for line in lines] == [one, two, one, f"{one}#1", two]
    found = {line["id"]: (line["rating"], line["reason"], line["edit"]) for line in lines}
    assert found == {one: ("bad", "dull", None), two: ("edit", "", "Better."), f"{one}#1": ("good", "", None)}


def test_an_answer_in_anothers_place_says_so_in_all_its_lines(service):
    one, two = (answered(service, "hello")["id"] for _ in range(2))
    rate(service, id=two, rating="regenerate", replaces=one)
    rate(service, id=two, rating="good")
    rate(service, id=one, rating="bad")
    lines = [json.loads(line) for line in service.feedback.read_text().splitlines()]
    kept = [(line["id"], line["rating"], line["replaced"]) for line in lines]
    assert kept == [(two, "regenerate", "hello"), (two, "good", "hello"), (one, "bad", None)]


def test_what_an_answer_cannot_replace(service):
    one, two, other = (answered(service, text, n=2)["id"] for text in ("hello", "hello", "hi"))
    alices = answered(service, "hello", ALICE)["id"]
    for wrong, problem in (
        ({"rating": "regenerate"}, "it goes with rating=regenerate"),
        ({"rating": "good", "replaces": one}, "it goes with rating=regenerate"),
        ({"rating": "regenerate", "replaces": one, "choice": 1}, "with no choice"),
        ({"rating": "regenerate", "replaces": other}, "an answer to something else"),
        ({"rating": "regenerate", "replaces": alices}, "there is no answer"),
        ({"rating": "regenerate", "replaces": "chatcmpl-nothing"}, "there is no answer"),
    ):
        with pytest.raises(ApiError, match=problem) as error:
            rate(service, id=two, **wrong)
        assert error.value.param == "replaces"
    assert not service.feedback.exists()


def test_nobody_rates_anothers_answer(service):
    mine = answered(service, "hello")["id"]
    with pytest.raises(ApiError) as anothers:
        rate(service, ALICE, id=mine, rating="good")
    with pytest.raises(ApiError) as unknown:
        rate(service, BOB, id="chatcmpl-nothing", rating="good")
    assert (anothers.value.status, anothers.value.code) == (unknown.value.status, unknown.value.code)
    assert (unknown.value.status, unknown.value.code) == (404, "answer_not_found")
    assert not service.feedback.exists()
    rate(service, BOB, id=mine, rating="good")


def test_without_a_file_nothing_is_remembered(service):
    service = Service(service.bot, service.collections)
    id_ = answered(service)["id"]
    assert len(service.exchanges) == 0
    with pytest.raises(ApiError, match="--feedback FILE"):
        rate(service, id=id_, rating="good")


def exchange(size, caller="x"):
    turn = Turn(Conversation().add("user", "a" * size), Generation())
    return Exchange(caller, turn, {}, {0: Reply("")})


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40), st.booleans()), max_size=60))
def test_what_is_remembered_is_bounded_and_the_least_used_goes_first(steps):
    known = Exchanges(num=4, num_characters=100)
    model: list[tuple[str, int]] = []  # least recently used first
    for number, (name, size, use) in enumerate(steps):
        if use:
            found = known.get(f"id{name}", "x")
            assert (found is not None) == any(each == f"id{name}" for each, _ in model)
            model.sort(key=lambda each, name=name: each[0] == f"id{name}")
        else:
            name = f"id{name}" if not any(each == f"id{name}" for each, _ in model) else f"new{number}"
            known.put(name, exchange(size))
            model.append((name, size))
            while len(model) > 4 or sum(size for _, size in model) > 100:
                model.pop(0)
    assert len(known) == len(model)
    assert all(known.get(name, "x") for name, _ in model)
    assert all(known.get(name, "y") is None for name, _ in model)


def test_many_rate_at_once(service):
    alone = {"parley": {"retrieval": False}}
    ids = [answered(service, f"hello {number}", **alone)["id"] for number in range(16)]
    workers = [threading.Thread(target=rate, args=(service,), kwargs={"id": i, "rating": "good"}) for i in ids]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    lines = service.feedback.read_text().splitlines()
    assert sorted(json.loads(line)["answer"] for line in lines) == sorted(f"hello {number}" for number in range(16))
