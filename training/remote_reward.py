"""Scores from a reward model behind HTTP, as tools/serve_reward.py serves one.

    rewards = RemoteReward("http://127.0.0.1:8010")
    rewards.score(["Hi"], [["Hello!", "What?"]])  # [[1.3, -0.4]]

POST /reward takes {"items": [{"prompt": text, messages or null, "responses": [text, ...]}, ...]} and gives
{"rewards": [[number, ...], ...], "model": name}: a number for each response, higher is better. Where one cannot be
scored it is null, and "problems" says why: [{"item": 0, "response": 1, "message": text}].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chatbot.conversation import Conversation
from training.json_service import JsonService

KEY_VARIABLE = "PARLEY_API_KEY"
_PATH = "/reward"
_ITEMS_A_REQUEST, _CHARACTERS_A_REQUEST = 64, 200_000  # below what a server takes at once

Prompt = str | Conversation | Sequence[Mapping[str, str]] | None


class RemoteReward:
    """A reward model at an http(s) address. `api_key_env` names the environment variable that holds its key, if it
    wants one. May be used from several threads at once."""

    def __init__(self, url: str, api_key_env: str = KEY_VARIABLE, timeout: float = 300.0) -> None:
        self._service = JsonService(
            url.rstrip("/").removesuffix(_PATH), "a reward server", "scores", api_key_env, timeout
        )
        self.url = self._service.url + _PATH

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        """A list for each prompt, with a score for each of its responses. A prompt is the user's text, a conversation,
        messages, or None where the responses are whole texts.

        Raises ValueError, in one line, where the server cannot be reached, refuses, or cannot score a response.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} lists of responses; there must be as many")
        items = [
            {"prompt": each.to_dicts() if isinstance(each, Conversation) else each, "responses": list(given)}
            for each, given in zip(prompts, responses, strict=True)
        ]
        found: list[list[float]] = []
        for some in _requests(items):
            found += self._rewards(some, len(found))
        return found

    def _rewards(self, items: list[dict[str, Any]], first: int) -> list[list[float]]:
        answer = self._service.ask(_PATH, {"items": items})
        answer = answer if isinstance(answer, dict) else {}
        for problem in answer.get("problems") or ():
            place = f"response {problem['response']} to prompt {first + problem['item']} (counted from 0)"
            raise ValueError(f"{self.url} cannot score {place}: {problem['message']}")
        rewards = answer.get("rewards")
        wanted = [len(each["responses"]) for each in items]
        rewards = rewards if isinstance(rewards, list) else []
        if [len(each) if isinstance(each, list) else None for each in rewards] != wanted:
            raise ValueError(
                f"{self.url} gave {str(answer)[:200]}, not a score for each response; is it such a server?"
            )
        if bad := [value for each in rewards for value in each if not _is_score(value)]:
            raise ValueError(f"{self.url} gave the score {bad[0]!r}, which is no finite number; check its model")
        return [[float(value) for value in each] for each in rewards]


def _requests(items: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Items in requests that a server takes; a large one goes alone."""
    some: list[dict[str, Any]] = []
    size = 0
    for item in items:
        own = len(str(item["prompt"])) + sum(map(len, item["responses"]))
        if some and (len(some) >= _ITEMS_A_REQUEST or size + own > _CHARACTERS_A_REQUEST):
            yield some
            some, size = [], 0
        some.append(item)
        size += own
    if some:
        yield some


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
