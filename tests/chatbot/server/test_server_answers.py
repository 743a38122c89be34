"""What comes back is what /openapi.json declares, at every endpoint: judged by the jsonschema library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from running import HELLO, Running, SlowModel, bot_of, running

from chatbot.api.service import Collection, Service
from moderation.types import Verdict
from retrieval.retriever import Retriever
from retrieval.writing.building import build_index

pytest.importorskip("uvicorn", reason="needs the `server` extra")

CHAT = "/v1/chat/completions"
BRIDGE = [{"role": "user", "content": "When was the harbour bridge opened?"}]
INSULT = [{"role": "user", "content": "insult"}]


class Judge:
    """Flags what holds "insult", and withholds passages about piers."""

    refusal = "No."

    def can_block(self, direction: str) -> bool:
        return direction == "document"

    def can_flag(self, direction: str) -> bool:
        return True

    def check(self, texts: Any, direction: str, vectors: Any = None) -> list[Verdict]:
        words = {"document": "pier"}.get(direction, "insult")
        action = {"document": "block"}.get(direction, "warn")
        return [
            Verdict(True, action, {words: 0.9, "toxic": None}, (words,)) if words in text else Verdict(False, "allow")
            for text in texts
        ]

    def judge(self, scores: Any, direction: str) -> Verdict:
        return Verdict(False, "allow", scores)


class Longest:
    """A reranker."""

    name = "longest"

    def score(self, query: str, texts: Any) -> list[float]:
        return [float(len(text)) for text in texts]


class Declared:
    """A server, and what its document says of each answer."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.document = server.ask("GET", "/openapi.json")[1]
        self.seen: set[tuple[str, str]] = set()

    def check(self, value: Any, schema: Any) -> None:
        whole = {**schema, "components": self.document["components"]}
        jsonschema.Draft202012Validator(whole).validate(value)

    def content(self, method: str, path: str, status: int, kind: str) -> Any:
        """What is declared of that body."""
        declared = path if path in self.document["paths"] else "/v1/models/{model}"
        self.seen.add((method, declared))
        return self.document["paths"][declared][method.lower()]["responses"][str(status)]["content"][kind]

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        """The answer, which is as declared."""
        found, answer, headers = self.server.ask(method, path, body)
        assert found == status, answer
        kind = headers["content-type"].partition(";")[0]
        self.check(answer, self.content(method, path, status, kind)["schema"])
        return answer

    def events(self, path: str, body: Any) -> list[Any]:
        """The events of a stream, each as declared."""
        status, text, headers = self.server.ask("POST", path, {**body, "stream": True})
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream"), text
        declared = self.content("POST", path, 200, "text/event-stream")["itemSchema"]
        *events, last = [event.removeprefix("data: ") for event in text.removesuffix("\n\n").split("\n\n")]
        assert last == "[DONE]"
        chunks = [json.loads(event) for event in events]
        for chunk in chunks:
            done, held = declared["properties"]["data"]["anyOf"]
            assert done["const"] == last
            self.check(chunk, held["contentSchema"])
        return chunks


def service_of(folder: Any, **changes: Any) -> Service:
    library = folder / "library"
    library.mkdir()
    (library / "harbour.md").write_text("# The harbour\n\nThe harbour bridge was opened in 1932.\n")
    (library / "pier.jsonl").write_text(json.dumps({"id": "p", "text": "The harbour bridge has a pier.", "year": 1931}))
    build_index([library], folder / "index", "hash", floor=0.01)
    retriever = Retriever.open(folder / "index")
    collections = {"default": Collection("default", retriever, retriever.encoder)}
    return Service(bot_of(**changes), collections, Longest(), folder / "feedback.jsonl")


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Declared]:
    service = service_of(tmp_path_factory.mktemp("declared"), model=SlowModel(logprobs=True), moderator=Judge())
    with running(service) as server:
        yield Declared(server)


def test_chat(declared):
    whole = declared.ask("POST", CHAT, {"messages": BRIDGE, "logprobs": True, "top_logprobs": 2, "n": 2})
    assert whole["sources"][0]["text"].startswith("The harbour bridge was")
    assert whole["withheld"][0]["meta"] == {"year": 1931}
    assert len(whole["choices"][1]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert declared.ask("POST", CHAT, {"messages": INSULT})["verdicts"]["input"]["flagged"]
    assert declared.ask("POST", CHAT, {"messages": HELLO, "max_tokens": 2})["choices"][0]["finish_reason"] == "length"
    without = {"messages": HELLO, "parley": {"retrieval": False, "moderation": False}}
    assert declared.ask("POST", CHAT, without)["verdicts"] == {}


def test_chat_in_pieces(declared):
    body = {"messages": BRIDGE, "logprobs": True, "n": 2, "stream_options": {"include_usage": True}}
    *chunks, last = declared.events(CHAT, body)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 10)
    assert sum("sources" in chunk for chunk in chunks) == 2
    assert "usage" not in declared.events(CHAT, {"messages": HELLO})[0]


def test_plain_completions(declared):
    declared.ask("POST", "/v1/completions", {"prompt": ["a b", "insult"], "n": 2, "echo": True})
    declared.events("/v1/completions", {"prompt": "insult", "stream_options": {"include_usage": True}})


def test_plain_completions_with_log_probabilities(tmp_path):
    class Letters(SlowModel):
        def complete(self, prompt, generation):
            return self.stream(bot_of().prepare_plain(prompt).conversation, generation)

    with running(service_of(tmp_path, model=Letters(logprobs=True))) as server:
        declared = Declared(server)
        whole = declared.ask("POST", "/v1/completions", {"prompt": "a", "logprobs": 1})
        assert whole["choices"][0]["logprobs"]["text_offset"] == [0, 3, 6, 9, 12]
        declared.events("/v1/completions", {"prompt": "a", "logprobs": 0})


def test_an_answer_that_fails_on_its_way(tmp_path, caplog):
    class Failing(SlowModel):
        def stream(self, conversation, generation):
            yield from list(super().stream(conversation, generation))[:2]
            raise RuntimeError("out of memory")

    with running(service_of(tmp_path, model=Failing())) as server:
        *_, last = Declared(server).events(CHAT, {"messages": HELLO})
    assert last["error"]["code"] == "internal_error"
    assert "out of memory" in caplog.text


def test_everything_else(declared):
    for kind in ("float", "base64"):
        declared.ask("POST", "/v1/embeddings", {"input": ["a", "b"], "encoding_format": kind})
    declared.ask("POST", "/v1/moderations", {"input": ["insult", "hello"]})
    declared.ask("POST", "/v1/rerank", {"query": "a", "documents": ["b", "cc"], "return_documents": True})
    declared.ask("POST", "/v1/rerank", {"query": "a", "documents": ["b"]})
    assert len(declared.ask("POST", "/v1/retrieval/search", {"query": "harbour bridge"})["hits"]) == 2
    id_ = declared.ask("POST", CHAT, {"messages": HELLO})["id"]
    declared.ask("POST", "/v1/feedback", {"id": id_, "rating": "bad", "reason": "dull"})
    listed = declared.ask("GET", "/v1/models")
    assert listed["indexes"] == ["default"]
    assert declared.ask("GET", f"/v1/models/{listed['data'][0]['id']}") == listed["data"][0]
    declared.ask("GET", "/health")
    declared.ask("GET", "/metrics")


def test_errors(declared):
    declared.ask("POST", CHAT, {"messages": []}, 400)
    declared.ask("POST", "/v1/feedback", {"id": "x", "rating": "good"}, 404)
    declared.ask("GET", "/v1/models/none", None, 404)
    declared.ask("POST", CHAT, b" " * (1 << 21), 413)


def test_a_server_that_drains(tmp_path):
    with running(service_of(tmp_path)) as server:
        declared = Declared(server)
        server.state.drain()
        assert declared.ask("GET", "/health", None, 503) == {"status": "draining"}
        declared.ask("GET", "/v1/models", None, 503)


def test_that_was_every_endpoint_and_the_judge_is_strict(declared):
    for test in (test_chat, test_chat_in_pieces, test_plain_completions, test_everything_else):
        test(declared)
    every = {(method.upper(), path) for path, operations in declared.document["paths"].items() for method in operations}
    assert declared.seen == every
    health = declared.content("GET", "/health", 200, "application/json")["schema"]
    for wrong in ({"status": "fine"}, {}, {"status": "ok", "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            declared.check(wrong, health)
    # No answer may be declared as "anything".
    for operations in declared.document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                assert all(content.get("schema") or content["itemSchema"] for content in response["content"].values())
