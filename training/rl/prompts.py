"""Prompts of a run, in memory: conversations that end with the user's turn, and their ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chatbot.conversation import Conversation
from training.data.mixture import Source, parse_mixture
from training.data.reading import Report, read_rows
from training.data.rows import PromptRow
from training.examples.making import SHORTENED, without_oldest
from training.examples.order import Mixture
from training.examples.preparing import Prepared

if TYPE_CHECKING:
    from chatbot.rendering import Renderer
    from training.config.schema import Config
    from training.models import Loaded

NO_ROOM = "prompts left out: too long"


class Prompt(NamedTuple):
    """`ids`: the conversation as the model reads it, up to where its answer begins."""

    conversation: Conversation
    ids: list[int]


class PromptList:
    """A layout (training/examples/layout.py) of one prompt a row."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def row(self, epoch: int, number: int) -> Any:  # noqa: ARG002  # the same in every epoch
        """The prompt, in a list."""
        return [self._prompts[number]]


@dataclass
class Prompts(Prepared):
    """What a run learns on; its examples are written by the model."""

    first: str = ""

    def shown(self, tokenizer: Any) -> str:  # noqa: ARG002  # it is text already
        """The first prompt, as the model reads it."""
        return f"the first prompt; what the model answers is learned:\n{self.first}"


def read_prompts(config: Config, loaded: Loaded) -> tuple[Prompts, Mixture, Mixture | None]:
    """(what was read, prompts to learn on, prompts to evaluate on). Raises ValueError where none is left."""
    data, seed = config.data, config.trainer.seed
    limit = data.max_length - config.method.new_tokens
    strict = data.on_bad_row.value == "error"
    sources = parse_mixture(data.train, data.format, data.columns)
    about: list[dict[str, Any]] = []
    lists = [_read(source, loaded.renderer, limit, strict, about) for source in sources]
    first = loaded.tokenizer.decode(lists[0][0].ids)
    held: list[list[Prompt]] = []
    if data.eval:
        held = [
            _read(each, loaded.renderer, limit, strict, about)
            for each in parse_mixture(data.eval, data.format, data.columns)
        ]
    elif data.eval_fraction:
        for number, prompts in enumerate(lists):
            order = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, 1])).permutation(len(prompts))
            cut = round(len(prompts) * data.eval_fraction)
            held.append([prompts[place] for place in sorted(order[:cut])])
            lists[number] = [prompts[place] for place in sorted(order[cut:])]
        if not any(held):
            raise ValueError(f"data.eval_fraction={data.eval_fraction} of the prompts is none; raise it")
    weights = [source.weight for source in sources] if any(source.weight != 1 for source in sources) else None
    train = Mixture([PromptList(each) for each in lists], seed, weights)
    evaluation = Mixture([PromptList(each) for each in held], seed) if held else None
    return Prompts(train, evaluation, about, first=first), train, evaluation


def _read(source: Source, renderer: Renderer, limit: int, strict: bool, about: list[dict[str, Any]]) -> list[Prompt]:
    """The prompts of a source, each with at most `limit` tokens; adds what happened to them to `about`."""
    report, counts = Report(), Counter[str]()
    report.fingerprint(source)
    prompts: list[Prompt] = []
    rows: Any = read_rows(source, (PromptRow,), report, strict)
    for place, row in rows:
        try:
            prompt = _fitting(row.prompt, renderer, limit, counts)
        except ValueError as error:  # the chat template refuses it, or it would forge a token
            if strict:
                raise ValueError(f"{place}: {error}; mend it, or set data.on_bad_row=skip") from None
            report.skip(str(error), place)
            continue
        if prompt is not None:
            prompts.append(prompt)
    if not prompts:
        told = ", ".join(f"{count} x {what}" for what, count in counts.items())
        raise ValueError(
            f"{source.location}: no prompt of at most {limit} tokens is left ({told}); raise data.max_length"
        )
    about.append(
        {
            "source": source.location,
            "counts": dict(counts),
            "read": report.to_dict(),
            "told": list(report.lines()),
            "num_examples": len(prompts),
            "num_tokens": sum(len(prompt.ids) for prompt in prompts),
        }
    )
    return prompts


def _fitting(conversation: Conversation, renderer: Renderer, limit: int, counts: Counter[str]) -> Prompt | None:
    """A prompt without its oldest turns, as many as it takes; None where even its last one does not fit."""
    kept: Conversation | None = conversation
    while kept is not None:
        ids = renderer.ids(kept)
        if len(ids) <= limit:
            counts[SHORTENED] += kept is not conversation
            return Prompt(kept, ids)
        kept = without_oldest(kept)
    counts[NO_ROOM] += 1
    return None
