"""Rows -> examples: token ids, and which of them have a loss; through the same rendering as chat.

What does not fit `max_length` loses its oldest turns first. Every row that was changed or left out is counted by what
happened to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chatbot.conversation import Conversation
from chatbot.rendering import Rendered
from training.data.rows import ChatRow, PairRow, Row, TextRow

if TYPE_CHECKING:
    from chatbot.rendering import Renderer

SHORTENED = "oldest turns dropped to fit"
CUT = "cut at data.max_length"
TOO_LONG = "left out: too long, even the last exchange"
NO_LOSS = "left out: no token has a loss"


@dataclass(frozen=True)
class Example:
    """`ids` (n) int32, `mask` (n) bool: true where the token has a loss; `weight` multiplies that loss.

    `values` is what else a method knows of it, as its score: as many numbers as all its others have. `joined` examples
    stay in one row with the one before: the answers to one prompt.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    weight: float = 1.0
    values: tuple[float, ...] = ()
    joined: bool = False


@dataclass
class ExampleMaker:
    """Makes examples of rows.

    `train_on` says which tokens have a loss: `replies`, all of a conversation, `last`, its last reply alone, or `all`
    tokens. `cut` cuts what is too long, where it is otherwise left out;
    `encoder_decoder` makes only the last reply the target (true in `mask`), and all before it the encoder's input.
    `counts` says how often each thing happened.
    """

    renderer: Renderer
    max_length: int
    train_on: str = "replies"
    cut: bool = True
    encoder_decoder: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def examples(self, row: Row) -> Iterator[Example]:
        """One example of a conversation or a pair; of a text as many as it is long."""
        if isinstance(row, TextRow):
            yield from self._of_text(row.text)
            return
        if isinstance(row, ChatRow):
            rendered = self._of_chat(row.conversation)
        elif isinstance(row, PairRow):
            rendered = self._of_pair(row.prompt, row.completion)
        else:
            raise TypeError(f"no example can be made of a {type(row).__name__}")
        if rendered is None:
            return
        ids, mask = rendered[0][: self.max_length], rendered[1][: self.max_length]
        if not any(mask[1:]):  # the first token is nobody's prediction
            self.counts[TOO_LONG if any(rendered[1][1:]) else NO_LOSS] += 1
            return
        if len(rendered[0]) > self.max_length:
            self.counts[CUT] += 1
        yield _example(ids, mask, row.weight)

    def _of_text(self, text: str) -> Iterator[Example]:
        ids = [*self.renderer.plain_ids(text), *self._end()]
        for start in range(0, len(ids), self.max_length):
            piece = ids[start : start + self.max_length]
            if len(piece) > 1:
                yield _example(piece, [True] * len(piece), 1.0)

    def _of_chat(self, conversation: Conversation) -> tuple[list[int], list[bool]] | None:
        last_reply = conversation.last_index("assistant")
        if last_reply is None:
            self.counts[NO_LOSS] += 1
            return None
        fits = self._newest_that_fit(conversation.upto(last_reply + 1))
        if fits is None:
            return None
        kept, rendered = fits
        if self.encoder_decoder:
            reply = kept.last
            source = self.renderer.ids(kept.upto(len(kept) - 1))
            target = [*self.renderer.harmless_ids(reply.content), *self._end()]
            return source + target, [False] * len(source) + [True] * len(target)
        ids, mask = rendered.ids, list(rendered.loss_mask)
        if not (mask and mask[-1] and ids[-1] in self._ends()):
            # A template without an end of turn: the model would never learn to stop.
            last = max((place for place, on in enumerate(mask) if on), default=len(mask) - 1)
            if ids[last] not in self._ends():
                ids, mask = ids[: last + 1] + self._end(), mask[: last + 1] + [True] * len(self._end())
        if self.train_on == "last" and any(mask):
            start, stop = last_run(mask)
            mask = [start <= place < stop for place in range(len(mask))]
        return ids, [True] * len(ids) if self.train_on == "all" else mask

    def _newest_that_fit(self, conversation: Conversation) -> tuple[Conversation, Rendered] | None:
        """As much of the conversation's end as fits, rendered; None where even the last exchange does not, and nothing
        is to be cut."""
        kept, rendered = conversation, self._rendered(conversation)
        while len(rendered.ids) > self.max_length and (shorter := without_oldest(kept)) is not None:
            kept, rendered = shorter, self._rendered(shorter)
        if len(rendered.ids) > self.max_length and not self.cut:
            self.counts[TOO_LONG] += 1
            return None
        if kept is not conversation:
            self.counts[SHORTENED] += 1
        return kept, rendered

    def _rendered(self, conversation: Conversation) -> Rendered:
        return self.renderer.encode(conversation, add_generation_prompt=False)

    def _of_pair(self, prompt: str, completion: str) -> tuple[list[int], list[bool]] | None:
        """Verbatim text. The prompt loses its beginning, not its end, where both do not fit."""
        target = [*self.renderer.plain_ids(completion, beginning=False)]
        if not target or target[-1] not in self._ends():
            target += self._end()
        source = self.renderer.prompt_ids(prompt)
        over = len(source) + len(target) - self.max_length
        if over > 0:
            if not self.cut:
                self.counts[TOO_LONG] += 1
                return None
            if over < len(source):
                self.counts["beginning of the prompt cut to fit"] += 1
                source = source[over:]
        mask = [self.train_on == "all" and not self.encoder_decoder] * len(source) + [True] * len(target)
        return source + target, mask

    def _end(self) -> list[int]:
        end = self.renderer.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    def _ends(self) -> frozenset[int]:
        return self.renderer.special_ids.union(self._end())


def without_oldest(conversation: Conversation) -> Conversation | None:
    """The conversation without its oldest exchange; None where no later turn of the user could begin it. A system
    message stays."""
    turns = list(conversation)
    system = turns[:1] if turns[0].role == "system" else []
    later = [place for place, turn in enumerate(turns) if turn.role == "user" and place > len(system)]
    return Conversation(tuple(system + turns[later[0] :])) if later else None


def last_run(mask: Sequence[bool]) -> tuple[int, int]:
    """(start, stop) of the last true places in a row: of a conversation's mask its last reply. There must be one."""
    edges = np.flatnonzero(np.diff(np.asarray(mask, np.int8), prepend=0, append=0))
    return int(edges[-2]), int(edges[-1])


def _example(ids: list[int], mask: list[bool], weight: float) -> Example:
    return Example(np.asarray(ids, np.int32), np.asarray(mask, np.bool_), weight)


MakeExamples = Callable[[Row], Iterator[Example]]
