"""Requests that are made and damaged at random, as `tools/torture/requests.py` sends them by the hundred thousand."""

from __future__ import annotations

import json

import pytest
from running import bot_of, running

from chatbot.api.service import Collection, Service
from retrieval.retriever import Retriever
from retrieval.writing.building import build_index
from tools.torture.messages import Messages
from tools.torture.requests import torture, wrong_with

pytest.importorskip("uvicorn", reason="needs the `server` extra")


def test_nothing_that_comes_over_the_net_breaks_it(tmp_path, caplog):
    (tmp_path / "harbour.md").write_text("# The harbour\n\nThe harbour bridge was opened in 1932.\n")
    build_index([tmp_path / "harbour.md"], tmp_path / "index", "hash")
    retriever = Retriever.open(tmp_path / "index")
    collections = {"default": Collection("default", retriever, retriever.encoder)}
    service = Service(bot_of(), collections, feedback=tmp_path / "feedback.jsonl")
    with running(service) as server:
        schema = server.ask("GET", "/openapi.json")[1]
        outcome = torture(server.port, 1200, 5, 4, schema)
        assert outcome.wrong == []
        assert sum(outcome.statuses.values()) == 1200
        assert {"200", "400", "404", "405"} <= set(outcome.statuses)
        assert outcome.statuses["200"] > 200, "right requests are among them"
        assert server.chat()[1]["choices"][0]["message"]["content"] == "hello"
        assert server.state.jobs == set()
    assert "Traceback" not in caplog.text


def test_the_document_describes_every_endpoint():
    with running(bot_of()) as server:
        schema = server.ask("GET", "/openapi.json")[1]
        names = set(schema["paths"])
        assert {f"/v1/{name}" for name in ("chat/completions", "completions", "embeddings", "models")} <= names
        assert {"/v1/moderations", "/v1/rerank", "/v1/retrieval/search", "/v1/feedback", "/health", "/metrics"} <= names
        text = json.dumps(schema)
        assert "HTTPValidationError" not in text
        for operations in schema["paths"].values():
            for operation in operations.values():
                assert "422" not in operation["responses"]
                assert {"200", "400", "401", "429", "500"} <= set(operation["responses"])
        parley = schema["components"]["schemas"]["ParleyOptions"]["properties"]
        assert set(parley) == {"retrieval", "index", "k", "floor", "where", "moderation"}
        # Every reference leads somewhere.
        for part in text.split('"$ref": "#/components/schemas/')[1:]:
            assert part.split('"')[0] in schema["components"]["schemas"]


def test_the_same_seed_gives_the_same_requests():
    with running(bot_of()) as server:
        schema = server.ask("GET", "/openapi.json")[1]
    first, second = (Messages(schema, 7) for _ in range(2))
    assert [first.next() for _ in range(300)] == [second.next() for _ in range(300)]


def test_the_judge_of_answers_sees_what_is_wrong():
    good = json.dumps({"error": {"message": "m", "type": "t", "param": None, "code": None}}).encode()
    assert wrong_with(400, "application/json", good, "POST") is None
    assert wrong_with(404, "text/plain", b"", "HEAD") is None
    assert "status 500" in wrong_with(500, "application/json", good, "POST")
    assert "another shape" in wrong_with(400, "text/plain", b"no", "POST")
    assert "other fields" in wrong_with(400, "application/json", b'{"error": {"message": "m"}}', "POST")
    assert "traceback" in wrong_with(200, "text/plain", b"Traceback (most recent", "GET")
    assert "without an end" in wrong_with(200, "text/event-stream", b"data: {}\n\n", "POST")
