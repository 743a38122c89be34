"""The kinds of row that methods train on. Every format of data becomes one of these; see docs/training-data.md.

A prompt is a conversation that ends with the user's turn. Where it is None the row's texts are whole: they hold their
prompt, or need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chatbot.conversation import Conversation

Label = str | int | float | tuple[str | int | float, ...]


@dataclass(frozen=True)
class TextRow:
    """Plain text, as it is: next-token training."""

    text: str


@dataclass(frozen=True)
class ChatRow:
    """A conversation, of which the assistant's turns are learned: supervised finetuning. `weight` multiplies its loss,
    in methods that weigh rows."""

    conversation: Conversation
    weight: float = 1.0


@dataclass(frozen=True)
class PairRow:
    """A prompt and its completion, verbatim: no chat template is put around them. The completion is learned."""

    prompt: str
    completion: str
    weight: float = 1.0


@dataclass(frozen=True)
class PreferenceRow:
    """Two answers to one prompt, of which `chosen` is better, by `margin` where that is known: reward models, DPO."""

    prompt: Conversation | None
    chosen: str
    rejected: str
    margin: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class RankedRow:
    """Answers to one prompt with a score each, higher is better, None where nobody has scored it: reward models, RRHF,
    rejection sampling, weighted learning, offline PPO. At least one answer; as many scores as answers."""

    prompt: Conversation | None
    responses: tuple[str, ...]
    scores: tuple[float | None, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class RatedRow:
    """One answer, `good` or not, with none beside it to compare: KTO."""

    prompt: Conversation
    response: str
    good: bool


@dataclass(frozen=True)
class LabelledRow:
    """A text and its labels by task: classification. A column `label` is a task of that name, a list of labels a tuple
    (several hold at once); a task that is not there is unknown, which differs from 0."""

    text: str
    labels: Mapping[str, Label]


@dataclass(frozen=True)
class PromptRow:
    """A prompt alone; the model's own answers are trained on: PPO, GRPO, generation."""

    prompt: Conversation


Row = TextRow | ChatRow | PairRow | PreferenceRow | RankedRow | RatedRow | LabelledRow | PromptRow

KIND_NAMES: dict[type[Row], str] = {
    TextRow: "text",
    ChatRow: "chat",
    PairRow: "pair",
    PreferenceRow: "preference",
    RankedRow: "ranked",
    RatedRow: "rated",
    LabelledRow: "labelled",
    PromptRow: "prompt",
}
