"""What is a turn: dialogues written as text -> messages, and the rules that every conversation must meet.

The rules, for conversations that are trained on and for prompts. Turns of one role in a row are joined with a blank
line. An assistant's turn that nothing went before is left out, and so are turns after the last assistant's, in a
conversation that is trained on: nobody answers them. These are counted. A conversation that has an empty turn, a
system turn after the first place, or then no turn of the assistant, and a prompt that does not end with the user's
turn, cannot be used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from chatbot.conversation import Conversation, Message
from training.data.rows import ChatRow, PreferenceRow, PromptRow, RankedRow, RatedRow, Row

JOINED = "turns of one role in a row joined"
NOT_ASKED_FOR = "an assistant's turn at the beginning left out"
NOT_ANSWERED = "turns after the assistant's last left out"

# What data calls the roles. Tools are not among them.
_ROLES = {
    "assistant": ("assistant", "gpt", "bot", "bing", "chatgpt", "bard", "claude", "model"),
    "user": ("user", "human", "person", "prompter"),
    "system": ("system", "developer"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}

# `<human>:` and `<bot>:` at the beginning of a line (OIG), or `Human:` and `Assistant:` after a blank line (HH-RLHF;
# with `##` before them, llm_codebase and ChatLLaMA's templates).
_ANGLE = re.compile(r"^[ \t]*<(?P<role>human|bot)>:", re.MULTILINE)
_NAMED = re.compile(r"(?:\A\s*|\n\n)(?:##\s*)?(?P<role>Human|Assistant):")
_STYLES = (_ANGLE, _NAMED)


def is_dialogue(text: str) -> bool:
    """Whether the text begins with a turn in one of the styles above."""
    return any(style.match(text.lstrip()) for style in _STYLES)


def dialogue(text: str) -> Conversation:
    """The turns of a dialogue written as text; what stands before the first is the system's. An assistant's turn
    without words at the end, which only asks for the answer, is no turn. Raises ValueError for text without turns."""
    # The style of the first mark: what looks like the other's is then part of what was said.
    found = [marks for style in _STYLES if (marks := list(style.finditer(text)))]
    if not found:
        raise ValueError("no turns: neither <human>: and <bot>:, nor Human: and Assistant:")
    marks = min(found, key=lambda each: each[0].start())
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = [
        Message(_ROLE_OF[mark["role"].lower()], re.sub(r"\n\n##\s*\Z", "", text[mark.end() : end]).strip())
        for mark, end in zip(marks, ends, strict=True)
    ]
    before = text[: marks[0].start()].strip()
    turns = [Message("system", before), *turns] if before else turns
    if turns[-1].role == "assistant" and not turns[-1].content:
        del turns[-1]
    return Conversation(tuple(turns))


def from_dicts(turns: Sequence[Mapping[str, Any]], role: str = "role", content: str = "content") -> Conversation:
    """A conversation of turns as objects whose role and content have these keys; roles by any name that is used for
    them. Raises ValueError, which names the turn."""
    known = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or not {role, content} <= turn.keys():
            raise ValueError(f"turn {number} is not an object with '{role}' and '{content}'")
        name = turn[role]
        if not isinstance(name, str) or name.lower() not in _ROLE_OF:
            raise ValueError(f"turn {number}: unknown role '{name}'; known: {', '.join(_ROLE_OF)}")
        # A column that some turns lack is there as None in a table.
        rest = {key: turn[key] for key in ("passages", "verdicts") if turn.get(key)}
        known.append({"role": _ROLE_OF[name.lower()], "content": turn[content], **rest})
    return Conversation.from_dicts(known)


def tidied(row: Row) -> tuple[Row, list[str]]:
    """The row with its conversation according to the rules, and what was changed. Raises ValueError for a row that
    cannot be used."""
    if isinstance(row, ChatRow):
        conversation, changes = _whole(row.conversation)
        return (replace(row, conversation=conversation) if changes else row), changes
    if isinstance(row, PreferenceRow | RankedRow | RatedRow | PromptRow) and row.prompt is not None:
        prompt, changes = _alternating(row.prompt)
        if prompt.last.role != "user":
            raise ValueError("the prompt does not end with the user's turn")
        return (replace(row, prompt=prompt) if changes else row), changes
    return row, []


def _whole(conversation: Conversation) -> tuple[Conversation, list[str]]:
    tidy, changes = _alternating(conversation)
    last = tidy.last_index("assistant")
    if last is None:
        raise ValueError("no turn of the assistant that answers something, so there is nothing to learn")
    if last + 1 < len(tidy):
        tidy, changes = tidy.upto(last + 1), [*changes, NOT_ANSWERED]
    return tidy, changes


def _alternating(conversation: Conversation) -> tuple[Conversation, list[str]]:
    """System, user, assistant, user, ...; raises ValueError where that cannot be had."""
    if not conversation.messages:
        raise ValueError("the conversation is empty")
    turns: list[Message] = []
    changes: dict[str, None] = {}
    for number, message in enumerate(conversation, start=1):
        if not message.content.strip():
            raise ValueError(f"turn {number} ({message.role}) is empty")
        if message.role == "system" and number > 1:
            raise ValueError(f"turn {number} is the system's; only the first can be")
        if turns and turns[-1].role == message.role:
            turns[-1] = _joined(turns[-1], message)
            changes[JOINED] = None
        elif message.role == "assistant" and not any(turn.role == "user" for turn in turns):
            changes[NOT_ASKED_FOR] = None
        else:
            turns.append(message)
    if not turns:
        raise ValueError("no turn of the user")
    return Conversation(tuple(turns)), list(changes)


def _joined(first: Message, second: Message) -> Message:
    return Message(
        first.role,
        f"{first.content}\n\n{second.content}",
        first.passages + second.passages,
        first.verdicts + second.verdicts,
    )
