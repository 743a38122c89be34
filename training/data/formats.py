"""The formats of data: what a row of each looks like, and how it becomes a typed row.

A format is a function and its line in FORMATS. Functions raise ValueError with the reason for a row that is not right.
docs/training-data.md shows a row of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chatbot.conversation import Conversation
from training.data.converting import LeftOut
from training.data.rows import (
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
from training.data.turns import dialogue, from_dicts, is_dialogue
from training.data.values import (
    Fields,
    checked_number,
    checked_text,
    is_list,
    label_of,
    list_of,
    optional_number,
    parse_cell,
    text_of,
    weight_of,
)


def _prompt(row: Fields, key: str) -> Conversation:
    """From messages, a dialogue as text, or text that is the user's turn."""
    if is_list(row.get(key)):
        return from_dicts(list_of(row, key))
    text = text_of(row, key)
    return dialogue(text) if is_dialogue(text) else Conversation().add("user", text)


def _answered(row: Fields, key: str, prompt: Conversation | None) -> Conversation:
    """The conversation that ends with the answer of this column, which is its text, or messages with or without the
    prompt before them."""
    if not is_list(row.get(key)):
        text = text_of(row, key)
        return dialogue(text) if prompt is None else prompt.add("assistant", text)
    messages = from_dicts(list_of(row, key))
    if prompt is None or (messages and messages.messages[0].role != "assistant"):
        return messages
    return Conversation(prompt.messages + messages.messages)


def _text(row: Fields) -> Row:
    return TextRow(text_of(row, "text"))


def _oig(row: Fields) -> Row:
    return ChatRow(dialogue(text_of(row, "text")), weight_of(row))


def _messages(row: Fields) -> Row:
    return ChatRow(from_dicts(list_of(row, "messages" if "messages" in row else "conversations")), weight_of(row))


def _sharegpt(row: Fields) -> Row:
    return ChatRow(from_dicts(list_of(row, "conversations"), "from", "value"), weight_of(row))


def _prompt_completion(row: Fields) -> Row:
    if is_list(row.get("prompt")) or is_list(row.get("completion")):
        return ChatRow(_answered(row, "completion", _prompt(row, "prompt")), weight_of(row))
    return _pair("completion")(row)


def _pair(answer: str) -> Callable[[Fields], Row]:
    def parse(row: Fields) -> Row:
        return PairRow(text_of(row, "prompt", may_be_empty=True), text_of(row, answer), weight_of(row))

    return parse


def _chat_pair(row: Fields) -> Row:
    answer = next((key for key in ("completion", "response", "answer") if key in row), "completion")
    return ChatRow(_prompt(row, "prompt").add("assistant", text_of(row, answer)), weight_of(row))


def _chatllama(row: Fields) -> Row:
    prompt, completion = _prompt(row, "user_input"), text_of(row, "completion")
    if is_dialogue(completion):
        completion = dialogue(completion).last.content
    if "score" in row:
        return RankedRow(prompt, (completion,), (optional_number(row, "score"),))
    return ChatRow(prompt.add("assistant", completion))


def _alpaca(row: Fields) -> Row:
    asked, given = text_of(row, "instruction"), row.get("input")
    if given is not None and (given := checked_text(given, "'input'", may_be_empty=True)).strip():
        asked = f"{asked}\n\n{given}"
    return ChatRow(Conversation().add("user", asked).add("assistant", text_of(row, "output")), weight_of(row))


def _self_instruct(row: Fields) -> Row:
    instances = list_of(row, "instances")
    if len(instances) != 1 or not isinstance(instances[0], Mapping):
        raise ValueError(f"'instances' must hold one object, not {len(instances)}")
    return _alpaca({**instances[0], "instruction": row.get("instruction")})


def _preference(row: Fields) -> Row:
    prompt = _prompt(row, "prompt") if row.get("prompt") is not None else None
    margin = optional_number(row, "margin")
    if prompt is None and not any(
        is_list(row.get(key)) or is_dialogue(text_of(row, key)) for key in ("chosen", "rejected")
    ):
        chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")  # whole texts
    else:
        both = [_answered(row, key, prompt) for key in ("chosen", "rejected")]
        known, (chosen, rejected) = _parted(both)
        if prompt is not None and known.messages[-len(prompt) :] != prompt.messages:
            raise ValueError("'prompt' is not what 'chosen' and 'rejected' begin with")
        prompt = known
    if chosen == rejected:
        raise ValueError("'chosen' and 'rejected' are the same")
    return PreferenceRow(prompt, chosen, rejected, margin, weight_of(row))


def _shp(row: Fields) -> Row:
    """Stanford Human Preferences: a post with two comments; `labels` is 1 where A has more votes, else 0."""
    a, b = text_of(row, "human_ref_A"), text_of(row, "human_ref_B")
    label = checked_number(row.get("labels"), "'labels'")
    if label not in (0, 1):
        raise ValueError(f"'labels' must be 1 (A is better) or 0, not {label:g}")
    if a == b:
        raise ValueError("'human_ref_A' and 'human_ref_B' are the same")
    prompt = Conversation().add("user", text_of(row, "history"))
    return PreferenceRow(prompt, *((a, b) if label else (b, a)))


def _parted(conversations: list[Conversation]) -> tuple[Conversation, list[str]]:
    """The prompt that all begin with, and each one's answer. Raises ValueError where they differ before it."""
    prompt = conversations[0].upto(max(0, len(conversations[0]) - 1))
    for each in conversations:
        if len(each) < 2 or each.last.role != "assistant":
            raise ValueError("an answer is missing: each must end with the assistant's turn, after the user's")
        if each.messages[:-1] != prompt.messages:
            raise ValueError("the answers are not to the same prompt: they differ before their last turn")
    return prompt, [checked_text(each.last.content, "an answer") for each in conversations]


def _scored(row: Fields) -> Row:
    """llm_codebase's: whole texts, dialogues with one beginning, or prompt and answer with `<sep>` between."""
    texts, scores = ("texts", "scores") if "texts" in row else ("text", "score")
    responses = tuple(checked_text(text, f"a text of '{texts}'") for text in list_of(row, texts))
    prompt = None
    if responses and all("<sep>" in text for text in responses):
        halves = [text.split("<sep>", 1) for text in responses]
        if len({before for before, _ in halves}) > 1:
            raise ValueError("the texts differ before their <sep>")
        prompt = _prompt({texts: halves[0][0]}, texts)
        responses = tuple(after for _, after in halves)
    elif responses and all(map(is_dialogue, responses)):
        prompt, answers = _parted([dialogue(text) for text in responses])
        responses = tuple(answers)
    return _ranked_row(row, prompt, responses, list_of(row, scores))


def _ranked(row: Fields) -> Row:
    responses = tuple(checked_text(each, "a response") for each in list_of(row, "responses"))
    prompt = None if row.get("prompt") is None else _prompt(row, "prompt")
    return _ranked_row(row, prompt, responses, list_of(row, "scores"))


def _ranked_row(row: Fields, prompt: Conversation | None, responses: tuple[str, ...], scores: list[Any]) -> RankedRow:
    if len(responses) != len(scores) or not responses:
        raise ValueError(f"{len(responses)} answers and {len(scores)} scores; there must be one score for each")
    return RankedRow(
        prompt,
        responses,
        tuple(None if each is None else checked_number(each, "a score") for each in scores),
        weight_of(row),
    )


def _kto(row: Fields) -> Row:
    said = _answered(row, "completion", _prompt(row, "prompt"))
    prompt, (response,) = _parted([said])
    label = row.get("label")
    good = {"true": True, "false": False, "1": True, "0": False}.get(str(label).lower())
    if good is None:
        raise ValueError(f"'label' must be true or false, not {label!r}")
    return RatedRow(prompt, response, good)


def _labelled(row: Fields) -> Row:
    key = "label" if "label" in row else "labels"
    given = row.get(key)
    if key == "labels" and isinstance(given, str) and given.startswith("{"):  # in a CSV file
        given = parse_cell(given, key)
    if isinstance(given, Mapping):  # by task; a task that other rows have is None in a table
        labels = {task: label_of(value, f"label '{task}'") for task, value in given.items() if value is not None}
    else:
        labels = {key: label_of(given, f"'{key}'")}
    if not labels:
        raise ValueError(f"'{key}' holds no label")
    return LabelledRow(text_of(row, "text"), labels)


def _prompt_alone(row: Fields) -> Row:
    # A bare text among objects is a prompt too: ChatLLaMA appended such.
    return PromptRow(_prompt(row, next((key for key in ("prompt", "user_input", "text") if key in row), "prompt")))


def _feedback(row: Fields) -> Row:
    """An edit is better than the answer that it replaced, and so is an answer that was asked for in another's place;
    without either an answer is good or bad."""
    # As the model was asked, passages included, where that is known.
    said = "prompt_messages" if row.get("prompt_messages") else "messages"
    prompt, answer = from_dicts(list_of(row, said)), text_of(row, "answer")
    edit, rating = row.get("edit"), row.get("rating")
    if rating == "edit" and text_of(row, "edit") != answer:
        return PreferenceRow(prompt, checked_text(edit, "'edit'"), answer)
    if rating == "regenerate":
        return PreferenceRow(prompt, answer, text_of(row, "replaced"))
    if rating == "drop":
        raise LeftOut("dropped in review")
    if rating not in ("good", "bad", "edit"):
        raise ValueError(f"'rating' must be good, bad, edit, regenerate or drop, not {rating!r}")
    return RatedRow(prompt, answer, rating != "bad")


@dataclass(frozen=True)
class Format:
    """`keys`: columns that a row has, one set of them or another; `kinds`: the rows it gives; `fits`: whether the
    values are of its sort, where columns alone do not say; `by_name`: never found out, only chosen."""

    name: str
    keys: tuple[frozenset[str], ...]
    kinds: tuple[type[Row], ...]
    parse: Callable[[Fields], Row]
    fits: Callable[[Fields], bool] = lambda _: True
    by_name: bool = False

    def matched(self, row: Fields) -> frozenset[str] | None:
        """The columns by which a row may be of this format; None where it is not."""
        return next((keys for keys in self.keys if keys <= row.keys() and self.fits(row)), None)


def _keys(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(each.split()) for each in alternatives)


def _is_oig(text: Any) -> bool:
    return isinstance(text, str) and text.lstrip().lower().startswith("<human>:")


def _has_list(row: Fields, *keys: str) -> bool:
    return any(is_list(row.get(key)) for key in keys)


def _begins(dialogue_wanted: bool) -> Callable[[Fields], bool]:
    return lambda row: not isinstance(row["text"], list) and _is_oig(row["text"]) == dialogue_wanted


def _first_has(key: str) -> Callable[[Fields], bool]:
    def fits(row: Fields) -> bool:
        turns = row.get("messages", row.get("conversations"))
        if not isinstance(turns, list):  # as JSON in a table
            return isinstance(turns, str) and f'"{key}"' in turns
        return not turns or (isinstance(turns[0], Mapping) and key in turns[0])

    return fits


_CHAT, _PAIR, _RANKED, _PREFERENCE = (ChatRow,), (PairRow,), (RankedRow,), (PreferenceRow,)

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("text", _keys("text"), (TextRow,), _text, _begins(False)),
        Format("lines", _keys("text"), (TextRow,), _text, by_name=True),
        Format("paragraphs", _keys("text"), (TextRow,), _text, by_name=True),
        Format("oig", _keys("text"), _CHAT, _oig, _begins(True)),
        Format("messages", _keys("messages", "conversations"), _CHAT, _messages, _first_has("role")),
        Format("sharegpt", _keys("conversations"), _CHAT, _sharegpt, _first_has("from")),
        Format("prompt-completion", _keys("prompt completion"), (PairRow, ChatRow), _prompt_completion),
        Format("pairs", _keys("prompt response"), _PAIR, _pair("response")),
        Format("prompt-answer", _keys("prompt answer"), _PAIR, _pair("answer")),
        Format(
            "chat-pairs",
            _keys("prompt completion", "prompt response", "prompt answer"),
            _CHAT,
            _chat_pair,
            by_name=True,
        ),
        Format("chatllama", _keys("user_input completion"), (ChatRow, RankedRow), _chatllama),
        Format("alpaca", _keys("instruction output"), _CHAT, _alpaca),
        Format("self-instruct", _keys("instruction instances"), _CHAT, _self_instruct),
        Format("preference", _keys("prompt chosen rejected", "chosen rejected"), _PREFERENCE, _preference),
        Format("shp", _keys("history human_ref_A human_ref_B labels"), _PREFERENCE, _shp),
        Format(
            "scored", _keys("text score", "texts scores"), _RANKED, _scored, lambda row: _has_list(row, "text", "texts")
        ),
        Format("ranked", _keys("prompt responses scores", "responses scores"), _RANKED, _ranked),
        Format("kto", _keys("prompt completion label"), (RatedRow,), _kto),
        Format("labelled", _keys("text label", "text labels"), (LabelledRow,), _labelled),
        Format("feedback", _keys("rating messages prompt answer edit"), (PreferenceRow, RatedRow), _feedback),
        Format("prompt", _keys("prompt", "user_input"), (PromptRow,), _prompt_alone),
    )
}


def find_format(name: str) -> Format:
    """The format of this name; ValueError, which lists them, where there is none."""
    if name not in FORMATS:
        raise ValueError(f"unknown format '{name}'; choose one of: {', '.join(FORMATS)}")
    return FORMATS[name]
