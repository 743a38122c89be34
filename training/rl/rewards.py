"""Who scores answers: reward models, servers, Python functions, or several of them, weighted.

    reward = open_rewards(["runs/reward", "http://127.0.0.1:8010", "my.rules:short"], [1.0, 0.5, 0.1])
    reward([conversation], [["An answer.", "Another."]])  # [[1.3, -0.4]]

All read text, so that each may have a tokenizer of its own. A function gets messages and answers and gives a score for
each: `def short(messages: list[dict], answers: list[str]) -> list[float]`. To name one is to run its module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from chatbot.conversation import Conversation

Scores = list[list[float]]
Reward = Callable[[Sequence[Conversation], Sequence[Sequence[str]]], Scores]

_HTTP = ("http://", "https://")
_FUNCTION = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


def open_rewards(
    names: Any, weights: Sequence[float] = (), device: str | None = None, max_length: int | None = None
) -> Reward:
    """(prompts, answers to each) -> the weighted sum of scores for each answer; higher is better. `max_length`: tokens
    that reward models read, where it is not what they were trained with.

    Raises ValueError for one that cannot be opened, and, when called, for a score that is no finite number.
    """
    listed = [names] if isinstance(names, str) else list(names or ())
    if not listed:
        raise ValueError("method.reward is missing; give a reward model, an http:// address or module:function")
    if weights and len(weights) != len(listed):
        raise ValueError(f"method.weights has {len(weights)} numbers for {len(listed)} rewards; give as many")
    if max_length is not None and not any(map(_is_model, map(str, listed))):
        raise ValueError(
            f"a length of {max_length} tokens is for reward models, and {listed[0]} is none; a server has its own: "
            "tools/serve_reward.py --max-length"
        )
    parts = [(str(name), open_reward(str(name), device, max_length)) for name in listed]
    factors = list(weights) or [1.0] * len(parts)

    def scores(prompts: Sequence[Conversation], answers: Sequence[Sequence[str]]) -> Scores:
        totals = [[0.0] * len(each) for each in answers]
        for (name, reward), factor in zip(parts, factors, strict=True):
            for number, found in enumerate(_checked(name, reward(prompts, answers), answers)):
                totals[number] = [total + factor * score for total, score in zip(totals[number], found, strict=True)]
        return totals

    return scores


def open_reward(name: str, device: str | None = None, max_length: int | None = None) -> Reward:
    """One of them: an address, `module:function`, or a reward model's name or directory."""
    if name.startswith(_HTTP):
        from training.remote_reward import RemoteReward

        return RemoteReward(name).score
    if found := _FUNCTION.fullmatch(name):
        return _of_function(name, found[1], found[2])
    return _of_model(name, device, max_length)


def _is_model(name: str) -> bool:
    return not (name.startswith(_HTTP) or _FUNCTION.fullmatch(name))


def _of_function(name: str, module: str, attribute: str) -> Reward:
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"method.reward={name}: {error}; is its folder on PYTHONPATH?") from None
    if not callable(function):
        raise ValueError(f"method.reward={name} is no function but a {type(function).__name__}")
    return lambda prompts, answers: [
        list(function(prompt.to_dicts(), list(given))) for prompt, given in zip(prompts, answers, strict=True)
    ]


def _of_model(name: str, device: str | None, max_length: int | None) -> Reward:
    from training.scoring import open_reward_model

    model = open_reward_model(name, device, max_length)

    def scores(prompts: Sequence[Conversation], answers: Sequence[Sequence[str]]) -> Scores:
        """All in batches of like length."""
        rows = zip(prompts, answers, strict=True)
        examples = [example for prompt, given in rows for example in model.examples(prompt, given)]
        order = sorted(range(len(examples)), key=lambda place: len(examples[place].ids))
        found = dict(zip(order, model.scores_of([examples[place] for place in order]), strict=True))
        flat = iter([found[place] for place in range(len(examples))])
        return [[next(flat) for _ in given] for given in answers]

    return scores


def _checked(name: str, found: Scores, answers: Sequence[Sequence[str]]) -> Scores:
    """Finite numbers, one for each answer."""
    if [len(each) for each in found] != [len(each) for each in answers]:
        raise ValueError(f"{name} gave {[len(each) for each in found]} scores for {[len(each) for each in answers]}")
    for scores, given in zip(found, answers, strict=True):
        for score, text in zip(scores, given, strict=True):
            if not math.isfinite(float(score)):
                raise ValueError(f"{name} gave the score {score} for the answer {text[:80]!r}; a score is finite")
    return [[float(score) for score in each] for each in found]
