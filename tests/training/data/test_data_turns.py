"""Dialogues as text, and the rules that conversations must meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.conversation import Conversation, Message
from retrieval.types import Passage
from training.data.rows import ChatRow, PreferenceRow, PromptRow, TextRow
from training.data.turns import JOINED, NOT_ANSWERED, NOT_ASKED_FOR, dialogue, from_dicts, is_dialogue, tidied


def talk(*turns: str) -> Conversation:
    """`u: text`, `a: text`, `s: text` -> a conversation."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return Conversation(tuple(Message(roles[turn[0]], turn[2:].strip()) for turn in turns))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<human>: Hi\n<bot>: Hello!\nHow are you?\n<human>: Fine", ["u: Hi", "a: Hello!\nHow are you?", "u: Fine"]),
        ("<human>: Hi\n<bot>:", ["u: Hi"]),
        ("Known facts.\n\n<human>: Hi\n<bot>: Yo", ["s: Known facts.", "u: Hi", "a: Yo"]),
        ("<human>: say <bot>: to me\n<bot>: no", ["u: say <bot>: to me", "a: no"]),
        ("\n\nHuman: Hi\n\nAssistant: Hello\n\nbye", ["u: Hi", "a: Hello\n\nbye"]),
        ("Human: Hi\nAssistant: in a line\n\nAssistant: Yes", ["u: Hi\nAssistant: in a line", "a: Yes"]),
        ("## Human:\nHi\n\n## Assistant:\nYes [1]", ["u: Hi", "a: Yes [1]"]),
        ("Human: Tell\n<bot>: what?\n\nAssistant: Yes", ["u: Tell\n<bot>: what?", "a: Yes"]),
        ("Human: Hi\n\n##\n\nAssistant: Yes\n\n##\n\n", ["u: Hi", "a: Yes"]),
    ],
)
def test_dialogues_as_text(text, expected):
    assert dialogue(text) == talk(*expected)


def test_what_is_no_dialogue():
    for text in ("Hi", "The Human: a study", "see <human>: there", ""):
        assert not is_dialogue(text)
    with pytest.raises(ValueError, match="no turns: neither <human>: and <bot>:, nor Human: and Assistant:"):
        dialogue("Hi")


WORDS = st.lists(st.sampled_from(["ab", "c\nd", "e\n\nf", "Human", "<bot>", "assistant:", "##", "1"]), min_size=1).map(
    " ".join
)


@given(st.lists(WORDS, min_size=1))
def test_a_dialogue_comes_back_from_both_styles(contents):
    roles = ["user", "assistant"] * len(contents)
    said = Conversation(tuple(Message(role, text) for role, text in zip(roles, contents, strict=False)))
    names = {"user": "Human", "assistant": "Assistant"}
    assert dialogue("".join(f"\n\n{names[each.role]}: {each.content}" for each in said)) == said
    marks = {"user": "human", "assistant": "bot"}
    assert dialogue("\n".join(f"<{marks[each.role]}>: {each.content}" for each in said)) == said


def test_roles_by_other_names():
    turns = [{"from": "System", "value": "s"}, {"from": "human", "value": "u"}, {"from": "bing", "value": "a"}]
    assert from_dicts(turns, "from", "value") == talk("s: s", "u: u", "a: a")
    with pytest.raises(ValueError, match="turn 1: unknown role 'tool'; known: assistant, gpt"):
        from_dicts([{"role": "tool", "content": "x"}])
    with pytest.raises(ValueError, match="turn 2 is not an object with 'role' and 'content'"):
        from_dicts([{"role": "user", "content": "x"}, {"role": "user"}])


@pytest.mark.parametrize(
    ("turns", "expected", "changes"),
    [
        (["u: a", "a: b"], ["u: a", "a: b"], []),
        (["s: x", "u: a", "u: b", "a: c", "a: d"], ["s: x", "u: a\n\nb", "a: c\n\nd"], [JOINED]),
        (["a: hi", "u: a", "a: b"], ["u: a", "a: b"], [NOT_ASKED_FOR]),
        (["s: x", "a: hi", "a: you", "u: a", "a: b"], ["s: x", "u: a", "a: b"], [NOT_ASKED_FOR]),
        (["u: a", "a: b", "u: c"], ["u: a", "a: b"], [NOT_ANSWERED]),
        (["a: hi", "u: a", "a: b", "u: c", "u: d"], ["u: a", "a: b"], [NOT_ASKED_FOR, JOINED, NOT_ANSWERED]),
    ],
)
def test_rules_for_conversations(turns, expected, changes):
    row, changed = tidied(ChatRow(talk(*turns), 2.0))
    assert row == ChatRow(talk(*expected), 2.0)
    assert changed == changes
    assert tidied(row) == (row, [])  # a tidy row stays as it is


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "the conversation is empty"),
        (["u: a"], "no turn of the assistant"),
        (["s: x", "a: b"], "no turn of the assistant that answers something"),
        (["a: b"], "no turn of the user"),
        (["u: a", "a:  "], r"turn 2 \(assistant\) is empty"),
        (["u: a", "s: x", "a: b"], "turn 2 is the system's; only the first can be"),
    ],
)
def test_conversations_that_cannot_be_used(turns, reason):
    with pytest.raises(ValueError, match=reason):
        tidied(ChatRow(talk(*turns)))


def test_rules_for_prompts():
    row, changes = tidied(PreferenceRow(talk("u: a", "u: b"), "c", "d"))
    assert (row, changes) == (PreferenceRow(talk("u: a\n\nb"), "c", "d"), [JOINED])
    with pytest.raises(ValueError, match="the prompt does not end with the user's turn"):
        tidied(PromptRow(talk("u: a", "a: b")))
    for row in (TextRow("a"), PreferenceRow(None, "c", "d")):
        assert tidied(row) == (row, [])


def test_joined_turns_keep_their_passages():
    first, second = (Passage(f"d#{i}", "text", "title", "d.txt", i, i) for i in (1, 2))
    said = Conversation().add("user", "a", [first]).add("user", "b", [second]).add("assistant", "c")
    row, _ = tidied(ChatRow(said))
    assert row.conversation.messages[0].passages == (first, second)
