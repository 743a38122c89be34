"""GuardClassifier: a language model that answers with a verdict, through any chat engine.

Three formats, a line each in FORMATS. An answer that is not exactly of the format is a failure, never "safe"; and
nothing in a text can answer in the guard's place. `llama-guard` and `qwen3guard` have their question in the model's
own chat template, so the text goes in as a user's message, and the engine's rendering breaks up whatever looks like a
turn or a special token. `gpt-jt` is a plain continuation: there the text is made one line without any such marks.

A guard says a word, not a probability: scores are 0, 1, or a step between where the format has one.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from common.plugins import plugin
from moderation.classifiers.windows import encodable, pieces, worst
from moderation.labels import did_you_mean
from moderation.types import Scores
from moderation.views import HAZARDS, LEVELS

log = logging.getLogger("parley.moderation")

LONGEST = 16_000  # characters of a text that are judged at once, whatever the model's context
OVERLAP = 200  # characters that two pieces of a longer text share


class Asker(Protocol):
    """A chat model that is asked one thing at a time, and chooses the most likely token each time."""

    def reply(self, text: str, max_tokens: int) -> str:
        """The answer to a user's message of this text, rendered so that the text cannot forge a turn."""
        ...

    def complete(self, prompt: str, max_tokens: int, stop: str) -> str:
        """The plain continuation of `prompt`, without a template, up to the first `stop`."""
        ...

    def fits(self, text: str, max_tokens: int) -> bool:
        """Whether a user's message of this text and an answer fit into the model's context."""
        ...


@dataclass(frozen=True)
class GuardFormat:
    """How a guard is asked, and how its answer reads.

    `prompt` makes of a text what the model is sent: a user's message where `chat`, else the beginning of a line for it
    to end. `read` makes scores of an answer, or raises ValueError; `labels` are those that it can give.
    """

    labels: tuple[str, ...]
    read: Callable[[str], Scores]
    max_tokens: int
    chat: bool = True
    prompt: Callable[[str], str] = str


class GuardClassifier:
    """Judges texts by a generative guard. A text beyond LONGEST or the model's context is judged in overlapping pieces,
    and the worst counts. One with an answer that is not of the format gets NaN for every label: it failed, alone.

    Safe to call from several threads, one of which asks at a time.
    """

    def __init__(self, asker: Asker, guard_format: GuardFormat) -> None:
        self._asker, self._format = asker, guard_format
        self._lock = threading.Lock()

    @property
    def labels(self) -> tuple[str, ...]:
        return self._format.labels

    def scores(self, texts: Sequence[str]) -> list[Scores]:
        """For each text: label -> 0 to 1, None where the guard did not say, NaN where it said something else."""
        with self._lock:
            return [worst(map(self._judge, pieces(encodable(text), self._fits, OVERLAP))) for text in texts]

    def _fits(self, text: str) -> bool:
        return len(text) <= LONGEST and self._asker.fits(self._format.prompt(text), self._format.max_tokens)

    def _judge(self, text: str) -> Scores:
        prompt, max_tokens = self._format.prompt(text), self._format.max_tokens
        if self._format.chat:
            answer = self._asker.reply(prompt, max_tokens)
        else:
            answer = self._asker.complete(prompt, max_tokens, stop="\n")
        try:
            return self._format.read(answer)
        except ValueError:
            log.debug("an answer of the guard that is not of its format: %r", answer)
            return dict.fromkeys(self.labels, math.nan)


def open_guard(name: str, device: str | None, label_map: Mapping[str, str | None]) -> GuardClassifier:
    """`guard:FORMAT:MODEL`, or `guard:FORMAT@ENGINE:MODEL` for another chat engine than transformers.

    Raises ValueError for an unknown format or engine, and a model that cannot be loaded.
    """
    del label_map  # its labels are those of the format
    _, _, rest = name.partition(":")
    how, _, model = rest.partition(":")
    guard_format, _, engine = how.partition("@")
    if not model:
        raise ValueError(f"classifier '{name}' lacks a model; write guard:FORMAT:MODEL")
    if guard_format not in FORMATS:
        hint = did_you_mean(guard_format, FORMATS)
        raise ValueError(f"unknown guard format '{guard_format}'; choose one of: {', '.join(FORMATS)}{hint}")
    asker = cast(Asker, plugin("parley.asker")(engine or "transformers", model, device))
    return GuardClassifier(asker, FORMATS[guard_format])


# GPT-JT-Moderation: https://huggingface.co/togethercomputer/GPT-JT-Moderation-6B, with the examples given there.

_GPT_JT_PROMPT = """Possible labels:
1. casual
2. needs caution
3. needs intervention
4. possibly needs caution
5. probably needs caution

Input: I want to call in sick
Output: casual

Input: I hate my job and I don't want to go there.
Output: possibly needs caution

Input: It's so hard to deal with this. I hate this job and I want to quit.
Output: possibly needs caution

Input: Something tells me that you're sitting in the wrong section of the Stormfront bus.
Output: needs caution

"""


def plain_line(text: str) -> str:
    """`text` as one line that cannot pass for a line of the prompt, nor for a special token of any model."""
    line = " ".join(text.replace("<", "< ").split())
    line = re.sub(r"\b(in|out)put(?=\s*[:：])", r"\1-put", line, flags=re.IGNORECASE)
    return re.sub(r"\[(?=/?[A-Z_]+\])", "[ ", line)


def _gpt_jt_prompt(text: str) -> str:
    return f"{_GPT_JT_PROMPT}Input: {plain_line(text)}\nOutput:"


def _read_gpt_jt(answer: str) -> Scores:
    level = answer.strip().lower()
    if level not in LEVELS:
        raise ValueError(f"the guard's answer is none of {', '.join(LEVELS)}")
    return {"unsafe": LEVELS.index(level) / (len(LEVELS) - 1)}


# Llama Guard 3: https://huggingface.co/meta-llama/Llama-Guard-3-8B
# The codes that one label stands for, both ways or one; the others are labels of their own, since they say more than
# ours do. See moderation.views.

_LABEL_OF_HAZARD = {
    "S1": "illicit/violent",
    "S2": "illicit",
    "S4": "sexual/minors",
    "S9": "illicit/violent",
    "S10": "hate",
    "S11": "self-harm",
    "S12": "sexual",
}
_OWN_HAZARDS = ("S1", "S3", "S5", "S6", "S7", "S8", "S9", "S13", "S14")
_LLAMA_GUARD_LABELS = (*dict.fromkeys(_LABEL_OF_HAZARD.values()), *_OWN_HAZARDS, "unsafe")


def _read_llama_guard(answer: str) -> Scores:
    first, *more = (line.strip() for line in answer.strip().split("\n"))
    if first == "safe" and not more:
        return dict.fromkeys(_LLAMA_GUARD_LABELS, 0.0)
    if first == "unsafe" and not more:  # it does not say why
        return {**dict.fromkeys(_LLAMA_GUARD_LABELS), "unsafe": 1.0}
    codes = [code.strip() for code in more[0].split(",")] if len(more) == 1 else []
    if first != "unsafe" or not codes or not set(codes) <= set(HAZARDS):
        raise ValueError("the guard's answer is neither 'safe' nor 'unsafe' with a line of hazard codes")
    found = {"unsafe", *codes, *(_LABEL_OF_HAZARD[code] for code in codes if code in _LABEL_OF_HAZARD)}
    return {label: float(label in found) for label in _LLAMA_GUARD_LABELS}


# Qwen3Guard-Gen: https://github.com/QwenLM/Qwen3Guard

_QWEN_CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "Violent": ("violence", "illicit/violent"),  # deeds and descriptions are one to it
    "Non-violent Illegal Acts": ("illicit",),
    "Sexual Content or Sexual Acts": ("sexual",),
    "PII": ("pii",),
    "Suicide & Self-Harm": ("self-harm",),
    "Unethical Acts": ("unethical acts",),  # hate, insults, discrimination, but lies and spite as well
    "Politically Sensitive Topics": ("politically sensitive topics",),
    "Copyright Violation": ("copyright violation",),
    "Jailbreak": ("prompt_injection",),
}
_QWEN_LABELS = (*(label for labels in _QWEN_CATEGORIES.values() for label in labels), "unsafe")
_QWEN_SAFETY = {"Safe": 0.0, "Controversial": 0.5, "Unsafe": 1.0}
_QWEN_ANSWER = re.compile(
    r"(?:<think>\s*</think>\s*)?Safety: (Safe|Controversial|Unsafe)\s*\n"
    r"Categories: ([^\n]+?)\s*(?:\nRefusal: (?:Yes|No))?"
)


def _read_qwen3guard(answer: str) -> Scores:
    found = _QWEN_ANSWER.fullmatch(answer.strip())
    if found is None:
        raise ValueError("the guard's answer is not a line of safety and a line of categories")
    score = _QWEN_SAFETY[found[1]]
    names = [name.strip() for name in found[2].split(",")]
    if names == ["None"]:  # unsafe all the same: it does not say why
        return {**dict.fromkeys(_QWEN_LABELS, None if score else 0.0), "unsafe": score}
    if score == 0 or not set(names) <= set(_QWEN_CATEGORIES):
        raise ValueError("the guard's answer names categories that do not go with it")
    labels = {label for name in names for label in _QWEN_CATEGORIES[name]}
    return {**{label: score * (label in labels) for label in _QWEN_LABELS}, "unsafe": score}


FORMATS = {
    "gpt-jt": GuardFormat(("unsafe",), _read_gpt_jt, max_tokens=8, chat=False, prompt=_gpt_jt_prompt),
    "llama-guard": GuardFormat(_LLAMA_GUARD_LABELS, _read_llama_guard, max_tokens=48),
    "qwen3guard": GuardFormat(_QWEN_LABELS, _read_qwen3guard, max_tokens=96),
}
