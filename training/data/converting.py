"""Rows of one kind as rows of another, where a method wants those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chatbot.conversation import Conversation
from training.data.rows import (
    KIND_NAMES,
    ChatRow,
    LabelledRow,
    PairRow,
    PreferenceRow,
    PromptRow,
    RankedRow,
    RatedRow,
    Row,
    TextRow,
)


class LeftOut(Exception):  # noqa: N818  # no error: the row is right, and there is nothing in it to learn from
    """A row that a rule leaves out, with the rule as its message."""


def converted(row: Row, wanted: Sequence[type[Row]]) -> list[Row]:
    """The row itself if it is of a wanted kind, else what it becomes in the first wanted kind that it can become.

    Raises ValueError where it can become none, and LeftOut where it holds nothing of it.
    """
    if type(row) in wanted:
        return [row]
    for kind in wanted:
        if convert := _CONVERSIONS.get((type(row), kind)):
            return convert(row)
    names = " or ".join(KIND_NAMES[kind] for kind in wanted)
    raise ValueError(f"{KIND_NAMES[type(row)]} rows cannot be used where {names} rows are needed")


def best(row: RankedRow) -> str:
    """The response with the highest score, the first of several; a single one needs no score."""
    if len(row.responses) == 1:
        return row.responses[0]
    scored = [(score, -i) for i, score in enumerate(row.scores) if score is not None]
    if not scored:
        raise ValueError("no answer has a score, so none is the best")
    return row.responses[-max(scored)[1]]


def _chosen(row: PreferenceRow) -> list[Row]:
    return [ChatRow(_prompt_of(row).add("assistant", row.chosen), row.weight)]


def _both_rated(row: PreferenceRow) -> list[Row]:
    prompt = _prompt_of(row)
    return [RatedRow(prompt, row.chosen, True), RatedRow(prompt, row.rejected, False)]


def _both_ranked(row: PreferenceRow) -> list[Row]:
    return [RankedRow(row.prompt, (row.chosen, row.rejected), (1.0, 0.0), row.weight)]


def _good(row: RatedRow) -> list[Row]:
    if not row.good:
        raise LeftOut("answers rated bad are no examples")
    return [ChatRow(row.prompt.add("assistant", row.response))]


def _up_to_last_answer(row: ChatRow) -> list[Row]:
    """The prompt that the last answer was given to; a conversation that nobody answered is one whole."""
    conversation = row.conversation
    last = conversation.last_index("assistant")
    answered = last is not None and last + 1 == len(conversation)
    return [PromptRow(conversation.upto(len(conversation) - 1) if answered else conversation)]


def _best_chat(row: RankedRow) -> list[Row]:
    return [ChatRow(_prompt_of(row).add("assistant", best(row)), row.weight)]


def _prompt_of(row: PreferenceRow | RankedRow) -> Conversation:
    if row.prompt is None:
        raise ValueError("its texts are whole: which part is the prompt is not known")
    return row.prompt


def _whole(row: PreferenceRow | RankedRow, text: str) -> str:
    if row.prompt is not None:
        raise ValueError(f"{KIND_NAMES[type(row)]} rows with a prompt are no plain text")
    return text


_CONVERSIONS: dict[tuple[type[Row], type[Row]], Callable[[Any], list[Row]]] = {
    (PreferenceRow, ChatRow): _chosen,
    (PreferenceRow, RatedRow): _both_rated,
    (PreferenceRow, RankedRow): _both_ranked,
    (PreferenceRow, PromptRow): lambda row: [PromptRow(_prompt_of(row))],
    (RankedRow, ChatRow): _best_chat,
    (RankedRow, PromptRow): lambda row: [PromptRow(_prompt_of(row))],
    (RatedRow, ChatRow): _good,
    (RatedRow, PromptRow): lambda row: [PromptRow(row.prompt)],
    (ChatRow, PromptRow): _up_to_last_answer,
    (TextRow, PromptRow): lambda row: [PromptRow(Conversation().add("user", row.text))],
    (LabelledRow, TextRow): lambda row: [TextRow(row.text)],
    (PairRow, TextRow): lambda row: [TextRow(row.prompt + row.completion)],
}
