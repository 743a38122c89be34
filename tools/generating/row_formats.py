"""Typed rows back into the formats of training/data: what a row of each format looks like as an object.

A row that its format cannot hold (a conversation of several turns as `alpaca`, a turn that holds a turn's mark as
`oig`) is refused: what is written is read again, and must be the same row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from chatbot.conversation import Conversation
from training.data.formats import find_format
from training.data.rows import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferenceRow,
    RankedRow,
    RatedRow,
    Row,
)
from training.data.turns import is_dialogue, tidied
from training.data.values import fields_of, is_list

Fields = dict[str, Any]

_PARTS = {"lines": "\n", "paragraphs": "\n\n"}  # what ends such a text


def written(row: Row, format_: str) -> list[Fields]:
    """The row as one of this format, or as several, where a row of the format holds but one answer.

    Raises ValueError for an unknown format, and for a row that it cannot hold.
    """
    find_format(format_)
    found = []
    for each in _parts(row, format_):
        fields = _WRITERS[format_](each)
        if (weight := getattr(each, "weight", 1.0)) != 1.0:
            fields["weight"] = weight
        if _read(fields, format_) != _bare(each):
            raise ValueError(f"format '{format_}' cannot hold it as it is")
        found.append(fields)
    return found


def prompt_value(prompt: Conversation) -> str | list[dict[str, str]]:
    """The user's text where that is all, and does not look like a dialogue; else messages."""
    text = prompt.last.content
    plain = len(prompt) == 1 and prompt.last.role == "user" and not is_dialogue(text) and not is_list(text)
    return text if plain else prompt.to_dicts()


def _parts(row: Row, format_: str) -> list[Row]:
    if format_ == "chatllama" and isinstance(row, RankedRow):
        pairs = zip(row.responses, row.scores, strict=True)
        return [replace(row, responses=(response,), scores=(score,)) for response, score in pairs]
    return [row]


def _read(fields: Fields, format_: str) -> Row | None:
    """The row that a reader finds; None where it finds none."""
    if format_ in _PARTS and _PARTS[format_] in fields["text"]:
        return None
    try:
        return _bare(tidied(find_format(format_).parse(fields_of(fields)))[0])
    except ValueError:
        return None


def _bare(row: Row) -> Row:
    """Without what was found for messages, which most formats have no place for."""
    for name in ("conversation", "prompt"):
        if isinstance(given := getattr(row, name, None), Conversation):
            return replace(row, **{name: Conversation.from_dicts(given.to_dicts())})  # type: ignore[arg-type]
    return row


def _exchange(row: ChatRow) -> tuple[Conversation, str]:
    """(all before, the last answer)."""
    conversation = row.conversation
    return conversation.upto(len(conversation) - 1), conversation.last.content


def _marked(conversation: Conversation, marks: Mapping[str, str], between: str) -> str:
    return between.join(f"{marks[message.role]}{message.content}" for message in conversation)


def _dialogue(conversation: Conversation) -> str:
    return _marked(conversation, {"system": "", "user": "Human: ", "assistant": "Assistant: "}, "\n\n")


def _oig(row: ChatRow) -> Fields:
    return {"text": _marked(row.conversation, {"system": "", "user": "<human>: ", "assistant": "<bot>: "}, "\n")}


def _sharegpt(row: ChatRow) -> Fields:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[each.role], "value": each.content} for each in row.conversation]}


def _alpaca(row: ChatRow) -> Fields:
    prompt, answer = _exchange(row)
    return {"instruction": prompt.last.content, "input": "", "output": answer}


def _self_instruct(row: ChatRow) -> Fields:
    prompt, answer = _exchange(row)
    return {"instruction": prompt.last.content, "instances": [{"input": "", "output": answer}]}


def _prompt_completion(row: PairRow | ChatRow) -> Fields:
    if isinstance(row, PairRow):
        return {"prompt": row.prompt, "completion": row.completion}
    prompt, answer = _exchange(row)
    return {"prompt": prompt.to_dicts(), "completion": [{"role": "assistant", "content": answer}]}


def _chat_pair(row: ChatRow) -> Fields:
    prompt, answer = _exchange(row)
    return {"prompt": prompt_value(prompt), "completion": answer}


def _chatllama(row: ChatRow | RankedRow) -> Fields:
    if isinstance(row, ChatRow):
        prompt, answer = _exchange(row)
        return {"user_input": prompt_value(prompt), "completion": answer}
    if row.prompt is None:
        raise ValueError("format 'chatllama' has a prompt, and these texts are whole")
    return {"user_input": prompt_value(row.prompt), "completion": row.responses[0], "score": row.scores[0]}


def _preference(row: PreferenceRow) -> Fields:
    prompt = {} if row.prompt is None else {"prompt": prompt_value(row.prompt)}
    margin = {} if row.margin is None else {"margin": row.margin}
    answers: Fields = {"chosen": row.chosen, "rejected": row.rejected}
    if row.prompt is not None and any(map(is_list, answers.values())):  # text that would be read as messages
        answers = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    return {**prompt, **answers, **margin}


def _shp(row: PreferenceRow) -> Fields:
    history = "" if row.prompt is None else row.prompt.last.content
    return {"history": history, "human_ref_A": row.chosen, "human_ref_B": row.rejected, "labels": 1}


def _scored(row: RankedRow) -> Fields:
    texts = list(row.responses)
    if row.prompt is not None:
        texts = [_dialogue(row.prompt.add("assistant", each)) for each in texts]
    return {"text": texts, "score": list(row.scores)}


def _ranked(row: RankedRow) -> Fields:
    prompt = {} if row.prompt is None else {"prompt": prompt_value(row.prompt)}
    return {**prompt, "responses": list(row.responses), "scores": list(row.scores)}


def _labelled(row: LabelledRow) -> Fields:
    labels = {task: list(label) if isinstance(label, tuple) else label for task, label in row.labels.items()}
    alone = next(iter(labels)) if len(labels) == 1 else ""
    return {"text": row.text, **(labels if alone in ("label", "labels") else {"labels": labels})}


def _feedback(row: PreferenceRow | RatedRow) -> Fields:
    if row.prompt is None:
        raise ValueError("format 'feedback' has a prompt, and these texts are whole")
    before = {"messages": row.prompt.to_dicts(), "prompt": None}
    if isinstance(row, RatedRow):
        return {"rating": "good" if row.good else "bad", **before, "answer": row.response, "edit": None}
    return {"rating": "edit", **before, "answer": row.rejected, "edit": row.chosen}


_WRITERS: dict[str, Callable[[Any], Fields]] = {
    **dict.fromkeys(("text", "lines", "paragraphs"), lambda row: {"text": row.text}),
    "oig": _oig,
    "messages": lambda row: dict(row.conversation.to_record()),
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "self-instruct": _self_instruct,
    "prompt-completion": _prompt_completion,
    "pairs": lambda row: {"prompt": row.prompt, "response": row.completion},
    "prompt-answer": lambda row: {"prompt": row.prompt, "answer": row.completion},
    "chat-pairs": _chat_pair,
    "chatllama": _chatllama,
    "preference": _preference,
    "shp": _shp,
    "scored": _scored,
    "ranked": _ranked,
    "kto": lambda row: {"prompt": prompt_value(row.prompt), "completion": row.response, "label": row.good},
    "labelled": _labelled,
    "feedback": _feedback,
    "prompt": lambda row: {"prompt": prompt_value(row.prompt)},
}
