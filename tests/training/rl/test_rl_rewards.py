"""Rewards: functions, servers, models with a tokenizer of their own, and several weighted."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation import Conversation
from training.rl.rewards import open_rewards

PROMPTS = [Conversation().add("user", "Hi"), Conversation().add("user", "Add 1 and 1.")]
ANSWERS = [["Hello!", "What?"], ["2", "two", "Three."]]


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of rules that can be imported."""
    (tmp_path / "rules_of_rewards.py").write_text(
        "def length(messages, answers):\n"
        "    assert messages[-1]['role'] == 'user'\n"
        "    return [len(answer) for answer in answers]\n"
        "def nan(messages, answers):\n"
        "    return [float('nan')] * len(answers)\n"
        "def short(messages, answers):\n"
        "    return [1.0]\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rules_of_rewards", raising=False)
    return "rules_of_rewards"


@pytest.fixture
def server() -> Iterator[str]:
    """A reward server on loopback: a response's score is the number of its vowels."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            rewards = [[sum(text.count(v) for v in "aeiou") for text in item["responses"]] for item in body["items"]]
            answer = json.dumps({"rewards": rewards}).encode()
            self.send_response(200 if self.path == "/reward" else 404)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_a_function_gets_messages_and_answers(rules: str) -> None:
    assert open_rewards(f"{rules}:length")(PROMPTS, ANSWERS) == [[6, 5], [1, 3, 6]]


def test_several_are_weighted_and_added(rules: str, server: str) -> None:
    both = open_rewards([f"{rules}:length", server], [0.5, -2.0])
    assert both(PROMPTS, ANSWERS) == [[3 - 4, 2.5 - 2], [0.5, 1.5 - 2, 3 - 4]]
    assert open_rewards([f"{rules}:length", server])(PROMPTS, ANSWERS) == [[8, 6], [1, 4, 8]]


def test_a_reward_model_scores_as_it_does_alone_whatever_the_batch(tmp_path: Path, tiny_chat_model: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from training.scoring import open_reward_model

    directory = tmp_path / "reward"
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_model)
    torch.manual_seed(0)
    made: Any = AutoModelForSequenceClassification.from_pretrained(tiny_chat_model, num_labels=1)
    made.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    model = open_reward_model(str(directory), "cpu")
    found = open_rewards(str(directory), device="cpu")(PROMPTS, ANSWERS)
    for prompt, answers, scores in zip(PROMPTS, ANSWERS, found, strict=True):
        alone = [model.scores(prompt, [answer])[0] for answer in answers]
        assert scores == pytest.approx(alone, abs=1e-5)


def test_what_is_wrong_is_said_in_a_line(rules: str) -> None:
    wrong = {
        "is missing": lambda: open_rewards(None),
        "give as many": lambda: open_rewards([f"{rules}:length"], [1.0, 2.0]),
        "a server has its own: tools/serve_reward.py --max-length": lambda: open_rewards(
            ["http://127.0.0.1:1", f"{rules}:length"], max_length=50
        ),
        "PYTHONPATH": lambda: open_rewards("no_such_module_at_all:f"),
        "no_such": lambda: open_rewards(f"{rules}:no_such"),
        "is no function": lambda: open_rewards(f"{rules}:number"),
        "a score is finite": lambda: open_rewards(f"{rules}:nan")(PROMPTS, ANSWERS),
        r"gave \[1, 1\] scores for \[2, 3\]": lambda: open_rewards(f"{rules}:short")(PROMPTS, ANSWERS),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
