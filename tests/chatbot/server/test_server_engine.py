"""The transformers engine behind the server: answers that are made at once are those that are made one by one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import bot_of, running, wait_until

from chatbot.engines import open_engine

pytest.importorskip("uvicorn", reason="needs the `server` extra")

WORDS = ("river", "hill", "moor", "ford", "bridge", "lane", "gate", "well")


@pytest.fixture(scope="module")
def model(tiny_chat_model):
    return open_engine("transformers", str(tiny_chat_model))


def test_concurrent_answers_equal_single_ones(model):
    with running(bot_of(model), concurrent=4) as server:

        def ask(number):
            settings = {"max_tokens": 12, "temperature": 0 if number % 2 else 0.8, "seed": number}
            text = f"Say something about the {WORDS[number % 8]} " * (1 + number % 3)
            status, body, _ = server.chat(text, **settings)
            assert status == 200
            return body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"]

        alone = [ask(number) for number in range(12)]
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(ask, range(12)))
    assert together == alone
    assert len(set(alone)) > 6


def test_log_probabilities_come_from_the_engine(model):
    with running(bot_of(model)) as server:
        settings = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6, "temperature": 0}
        _, whole, _ = server.chat("hello", **settings)
        content = whole["choices"][0]["logprobs"]["content"]
        assert len(content) == whole["usage"]["completion_tokens"]
        assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 3 for each in content)
        assert all(each["logprob"] == each["top_logprobs"][0]["logprob"] for each in content), "greedy takes the first"
        _, stream, _ = server.chat("hello", stream=True, **settings)
        chunks = [json.loads(line[6:]) for line in stream.split("\n\n")[:-2]]
        told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        assert [each["token"] for part in told if part for each in part["content"]] == [
            each["token"] for each in content
        ]


def test_a_prompt_that_was_read_before_is_told_as_cached(model):
    with running(bot_of(model)) as server:
        said = "A rather long question about the river and the hill and the moor"
        first, again = (server.chat(said, max_tokens=3)[1]["usage"] for _ in range(2))
        assert again["prompt_tokens"] == first["prompt_tokens"]
        assert again["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_client_that_leaves_stops_the_engine(model):
    with running(bot_of(model), concurrent=1) as server:
        connection = server.open(
            "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 400}
        )
        wait_until(lambda: server.state.lanes["generation"].running == 1)
        connection.close()
        assert wait_until(lambda: server.state.lanes["generation"].running == 0) < 1
        assert server.chat("hello", max_tokens=2)[0] == 200
