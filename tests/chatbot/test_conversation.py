"""Conversations: what goes to disk comes back, nothing changes in place, a bad row is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot.conversation import Conversation, Message, load_conversations, save_conversations
from retrieval.types import Passage

# Every example overwrites the file in tmp_path.
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
AWKWARD = ("\u2028", "\u2029", "\x85", "\x00", "\r\n", "\x1c", '"\\', "👩‍👩‍👧", "é", "\ufeff", "<|im_end|>")
pieces = st.one_of(st.characters(codec="utf-8"), st.sampled_from(AWKWARD))
texts = st.lists(pieces, max_size=20).map("".join)
passages = st.builds(Passage, texts, texts, texts, texts, st.integers(1, 9999), st.integers(1, 9999))
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant"]), texts, st.lists(passages, max_size=2).map(tuple)
)
conversations = st.lists(messages, max_size=5).map(lambda each: Conversation(tuple(each)))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # every example overwrites the file
@given(st.lists(conversations, max_size=4))
def test_saved_conversations_come_back_with_their_passages(tmp_path: Path, saved: list[Conversation]) -> None:
    save_conversations(tmp_path / "chat.jsonl", saved)
    assert load_conversations(tmp_path / "chat.jsonl") == saved


@FEW
@given(st.lists(conversations, min_size=1, max_size=4))
def test_a_saved_file_is_one_json_object_a_line_to_any_other_reader(tmp_path: Path, saved: list[Conversation]) -> None:
    save_conversations(tmp_path / "chat.jsonl", saved)
    lines = (tmp_path / "chat.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    roles_and_texts = [[(m["role"], m["content"]) for m in json.loads(line)["messages"]] for line in lines]
    assert roles_and_texts == [[(m.role, m.content) for m in each] for each in saved]


@FEW
@given(conversations)
def test_openai_messages_come_back_without_passages(conversation: Conversation) -> None:
    bare = Conversation(tuple(Message(m.role, m.content) for m in conversation))
    assert Conversation.from_dicts(conversation.to_dicts()) == bare


def test_openai_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Where is "}, {"type": "text", "text": "Zürich?"}]
    assert Conversation.from_dicts([{"role": "user", "content": parts}]).last.content == "Where is Zürich?"


def test_foreign_keys_of_a_message_are_ignored() -> None:
    message = {"role": "user", "content": "hi", "name": "Ann", "tool_calls": None}
    assert Conversation.from_dicts([message]) == Conversation().add("user", "hi")


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "tool", "content": "x"}, r"message 2: unknown role 'tool'; choose one of: system, user, assistant"),
        ({"role": ["user"], "content": "x"}, "message 2: unknown role"),
        ({"role": "user"}, "message 2 lacks content"),
        ({"content": "x"}, "message 2 lacks role"),
        ({}, "message 2 lacks role and content"),
        ({"role": "user", "content": None}, "message 2: .*must be text, not NoneType"),
        ({"role": "user", "content": 7}, "message 2: .*must be text, not int"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "message 2: only text parts"),
        ({"role": "user", "content": [{"type": "text", "text": 7}]}, "message 2: only text parts"),
        ({"role": "user", "content": ["bare"]}, "message 2: only text parts"),
        ({"role": "user", "content": "x", "passages": [{"id": "1"}]}, "message 2: .*missing"),
        ({"role": "user", "content": "x", "passages": ["text"]}, "message 2: "),
        ({"role": "user", "content": "x", "passages": None}, "message 2: "),
        ({"role": "user", "content": "half an emoji \ud83d"}, "message 2: .*surrogate"),
        ("hello", "message 2 must be an object with role and content, not str"),
    ],
)
def test_a_bad_message_is_named_by_number_and_in_a_file_by_line(message: Any, complaint: str, tmp_path: Path) -> None:
    pair = [{"role": "user", "content": "fine"}, message]
    with pytest.raises(ValueError, match=complaint):
        Conversation.from_dicts(pair)
    file = tmp_path / "chat.jsonl"
    file.write_text('{"messages": []}\n\n' + json.dumps({"messages": pair}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"chat\.jsonl:3: {complaint}"):
        load_conversations(file)


@pytest.mark.parametrize(
    "row",
    [b"{", b"\xff\xfe", b"[]", b"7", b'{"messages": {}}', b'{"messages": null}', b'{"chats": []}', b"[" * 100_000],
    ids=["half", "not-utf8", "list", "number", "object", "null", "other-key", "bottomless"],
)
def test_a_row_that_is_no_conversation_is_named_by_file_and_line(row: bytes, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_bytes(b'{"messages": []}\r\n' + row + b"\n")
    with pytest.raises(ValueError, match=r"chat\.jsonl:2: "):
        load_conversations(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: No such file"):
        load_conversations(tmp_path / "none.jsonl")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    old = [Conversation().add("user", "old")]
    save_conversations(file, old)

    def fails() -> Any:
        yield Conversation().add("user", "new")
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        save_conversations(file, fails())
    assert load_conversations(file) == old


def test_add_and_with_last_leave_the_original_alone() -> None:
    original = Conversation().add("user", "one")
    longer = original.add("assistant", "two")
    changed = longer.with_last(content="three")
    assert [[m.content for m in each] for each in (original, longer, changed)] == [
        ["one"],
        ["one", "two"],
        ["one", "three"],
    ]


@pytest.mark.parametrize("frozen", [Conversation(), Message("user", "x")])
def test_fields_cannot_be_assigned(frozen: Any) -> None:
    for field in dataclasses.fields(frozen):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field.name, ())


def test_the_newest_message_of_a_role_is_found() -> None:
    conversation = Conversation().add("user", "1").add("assistant", "2").add("user", "3")
    assert [conversation.last_index(role) for role in ("user", "assistant", "system")] == [2, 1, None]


def test_an_empty_conversation_has_no_last_message() -> None:
    with pytest.raises(ValueError, match="the conversation is empty"):
        _ = Conversation().last
