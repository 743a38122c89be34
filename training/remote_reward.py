"""Scores from a reward model behind HTTP, as tools/serve_reward.py serves one.

    rewards = RemoteReward("http://127.0.0.1:8010")
    rewards.score(["Hi"], [["Hello!", "What?"]])  # [[1.3, -0.4]]

POST /reward takes {"items": [{"prompt": text, messages or null, "responses": [text, ...]}, ...]} and gives
{"rewards": [[number, ...], ...], "model": name}: a number for each response, higher is better. Where one cannot be
scored it is null, and "problems" says why: [{"item": 0, "response": 1, "message": text}].
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from chatbot.conversation import Conversation

KEY_VARIABLE = "PARLEY_API_KEY"
_TRIES, _FIRST_WAIT, _LONGEST_WAIT = 5, 0.5, 60.0  # seconds, doubled each time
_AGAIN = (408, 429, 500, 502, 503, 504)
_ITEMS_A_REQUEST, _CHARACTERS_A_REQUEST = 64, 200_000  # below what a server takes at once

Prompt = str | Conversation | Sequence[Mapping[str, str]] | None


class RemoteReward:
    """A reward model at an http(s) address. `api_key_env` names the environment variable that holds its key, if it
    wants one. May be used from several threads at once."""

    def __init__(self, url: str, api_key_env: str = KEY_VARIABLE, timeout: float = 300.0) -> None:
        import httpx

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is no address of a reward server; such as http://127.0.0.1:8010")
        self.url = url.rstrip("/").removesuffix("/reward") + "/reward"
        self._key_variable, key = api_key_env, os.environ.get(api_key_env)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError(f"{api_key_env} holds characters that no key has (a line break?); set it anew")
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=10.0, pool=None),
            trust_env=not local,  # no proxy between this machine and itself
        )
        weakref.finalize(self, self._client.close)

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
        answer = self._post({"items": items})
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

    def _post(self, body: Mapping[str, Any]) -> Any:
        import httpx

        reason = ""
        for number in range(_TRIES):
            wait = min(_FIRST_WAIT * 2**number, _LONGEST_WAIT)
            try:
                response = self._client.post(self.url, json=body)
            except httpx.RequestError as error:
                reason = str(error) or type(error).__name__
            else:
                if response.status_code == 200:
                    return _json(response)
                reason = self._refusal(response)
                if response.status_code not in _AGAIN:
                    break
                wait = min(max(wait, _seconds(response.headers.get("retry-after"))), _LONGEST_WAIT)
            if number + 1 < _TRIES:
                time.sleep(wait)
        raise ValueError(f"no scores from {self.url}: {reason}; check the address, and that the server is up")

    def _refusal(self, response: Any) -> str:
        answer = _json(response)
        error = answer.get("error") if isinstance(answer, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        remedy = f" (its key is read from {self._key_variable})" if response.status_code in (401, 403) else ""
        return f"it answered {response.status_code}{f': {said}' if said else ''}{remedy}"


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


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _seconds(retry_after: str | None) -> float:
    """What Retry-After asks for, 0 where it is none in seconds."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
