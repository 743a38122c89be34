"""Formats: rows of each are found out and become the right typed row; bad rows say why."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.conversation import Conversation, Message
from training.data.converting import LeftOut
from training.data.decoding import Raw
from training.data.detection import detect_format
from training.data.formats import FORMATS, find_format
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
from training.data.values import fields_of

ALL = (TextRow, ChatRow, PairRow, PreferenceRow, RankedRow, RatedRow, LabelledRow, PromptRow)
PAGE = Path(__file__).parents[3] / "docs" / "training-data.md"


def talk(*contents: str) -> Conversation:
    """User and assistant in turn."""
    return Conversation(
        tuple(Message(role, text) for role, text in zip(["user", "assistant"] * len(contents), contents, strict=False))
    )


def turns(*contents: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    return [{role: each.role, content: each.content} for each in talk(*contents)]


def detected(*rows: Any, wanted: Sequence[type[Row]] = ALL, columns: Mapping[str, str] | None = None) -> str | None:
    found = detect_format([Raw("", row) for row in rows], wanted, columns)
    return found.name if found else None


def parsed(row: Any, name: str | None = None) -> Row:
    return FORMATS[name or detected(row) or ""].parse(fields_of(row))


HUMAN = "\n\nHuman: q\n\nAssistant: r\n\nHuman: s\n\nAssistant:"

EXAMPLES: list[tuple[str, Any, Row]] = [
    ("text", {"text": "some words", "meta": {"a": 1}}, TextRow("some words")),
    ("text", "some words", TextRow("some words")),
    ("oig", {"text": "<human>: q\n<bot>: r"}, ChatRow(talk("q", "r"))),
    ("messages", {"messages": turns("q", "r"), "weight": -0.5}, ChatRow(talk("q", "r"), -0.5)),
    ("messages", {"conversations": turns("q", "r")}, ChatRow(talk("q", "r"))),
    ("messages", {"messages": json.dumps(turns("q", "r"))}, ChatRow(talk("q", "r"))),
    ("messages", turns("q", "r"), ChatRow(talk("q", "r"))),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, ChatRow(talk("q"))),
    ("sharegpt", {"id": "1", "conversations": turns("q", "r", role="from", content="value")}, ChatRow(talk("q", "r"))),
    ("prompt-completion", {"prompt": "The sky is", "completion": " blue"}, PairRow("The sky is", " blue")),
    ("prompt-completion", {"prompt": None, "completion": "blue", "weight": "2"}, PairRow("", "blue", 2.0)),
    (
        "prompt-completion",
        {"prompt": turns("q"), "completion": [{"role": "assistant", "content": "r"}]},
        ChatRow(talk("q", "r")),
    ),
    ("prompt-completion", {"prompt": '[{"a": 1}]', "completion": "[{}]"}, PairRow('[{"a": 1}]', "[{}]")),
    ("pairs", ["USER: q ASSISTANT:", "r</s>"], PairRow("USER: q ASSISTANT:", "r</s>")),
    ("pairs", {"prompt": "q", "response": "r"}, PairRow("q", "r")),
    ("prompt-answer", {"prompt": "q", "answer": "r"}, PairRow("q", "r")),
    ("chatllama", {"user_input": "q", "completion": "r"}, ChatRow(talk("q", "r"))),
    (
        "chatllama",
        {"user_input": "Human: q\n\n##\n\n", "completion": "Assistant: r", "score": "4.0"},
        RankedRow(talk("q"), ("r",), (4.0,)),
    ),
    ("chatllama", {"user_input": "q", "completion": "r", "score": None}, RankedRow(talk("q"), ("r",), (None,))),
    ("alpaca", {"instruction": "q", "input": "i", "output": "r"}, ChatRow(talk("q\n\ni", "r"))),
    ("alpaca", {"instruction": "q", "input": "", "output": "r"}, ChatRow(talk("q", "r"))),
    ("alpaca", {"instruction": "q", "output": "r"}, ChatRow(talk("q", "r"))),
    (
        "self-instruct",
        {"id": "s", "instruction": "q", "instances": [{"input": "", "output": "r"}], "is_classification": False},
        ChatRow(talk("q", "r")),
    ),
    ("preference", {"prompt": "q", "chosen": "r", "rejected": "s"}, PreferenceRow(talk("q"), "r", "s")),
    (
        "preference",
        {"prompt": turns("q"), "chosen": turns("q", "r")[1:], "rejected": turns("q", "s")[1:], "margin": 2},
        PreferenceRow(talk("q"), "r", "s", 2.0),
    ),
    ("preference", {"chosen": turns("q", "r"), "rejected": turns("q", "s")}, PreferenceRow(talk("q"), "r", "s")),
    (
        "preference",
        {"prompt": "q", "prompt_id": "1", "chosen": turns("q", "r"), "rejected": turns("q", "s")},
        PreferenceRow(talk("q"), "r", "s"),
    ),
    ("preference", {"chosen": f"{HUMAN} t", "rejected": f"{HUMAN} u"}, PreferenceRow(talk("q", "r", "s"), "t", "u")),
    ("preference", {"chosen": "whole text", "rejected": "another"}, PreferenceRow(None, "whole text", "another")),
    (
        "scored",
        {"text": [f"{HUMAN} t", f"{HUMAN} u"], "score": [1, "0.5"]},
        RankedRow(talk("q", "r", "s"), ("t", "u"), (1.0, 0.5)),
    ),
    ("scored", {"texts": ["q<sep>r", "q<sep>s"], "scores": [-1, None]}, RankedRow(talk("q"), ("r", "s"), (-1.0, None))),
    ("scored", {"text": ["a b", "a c"], "score": [2, 1]}, RankedRow(None, ("a b", "a c"), (2.0, 1.0))),
    (
        "ranked",
        {"prompt": "q", "responses": ["r", "s"], "scores": [1, 2]},
        RankedRow(talk("q"), ("r", "s"), (1.0, 2.0)),
    ),
    ("ranked", {"responses": ["r"], "scores": [1]}, RankedRow(None, ("r",), (1.0,))),
    ("kto", {"prompt": "q", "completion": "r", "label": True}, RatedRow(talk("q"), "r", True)),
    (
        "kto",
        {"prompt": turns("q"), "completion": [{"role": "assistant", "content": "r"}], "label": "False"},
        RatedRow(talk("q"), "r", False),
    ),
    ("labelled", {"text": "t", "label": "spam"}, LabelledRow("t", {"label": "spam"})),
    ("labelled", {"text": "t", "label": False}, LabelledRow("t", {"label": 0})),
    ("labelled", {"text": "t", "labels": ["a", "b"]}, LabelledRow("t", {"labels": ("a", "b")})),
    (
        "labelled",
        {"text": "t", "labels": {"rude": 1, "spam": None, "topic": "x"}},
        LabelledRow("t", {"rude": 1, "topic": "x"}),
    ),
    ("labelled", {"text": "t", "labels": '{"rude": 1}'}, LabelledRow("t", {"rude": 1})),
    ("prompt", {"prompt": "q"}, PromptRow(talk("q"))),
    ("prompt", {"prompt": turns("q", "r", "s")}, PromptRow(talk("q", "r", "s"))),
    ("prompt", {"user_input": "q"}, PromptRow(talk("q"))),
]


@pytest.mark.parametrize(("name", "raw", "expected"), EXAMPLES)
def test_each_format_is_found_out_and_read(name, raw, expected):
    assert detected(raw) == name
    assert parsed(raw) == expected
    assert type(expected) in FORMATS[name].kinds


def test_formats_that_are_only_chosen():
    expected = ChatRow(talk("q", "r"))
    for row in (["q", "r"], {"prompt": "q", "completion": "r"}, {"prompt": "q", "answer": "r"}):
        assert parsed(row, "chat-pairs") == expected
    with pytest.raises(ValueError, match="unknown format 'chat'; choose one of: text, lines, paragraphs, oig"):
        find_format("chat")


FEEDBACK = {"id": "1", "reason": "", "messages": turns("q"), "passages": [], "answer": "r", "edit": None, "prompt": "p"}


def test_ratings_of_the_bot():
    assert detected(FEEDBACK | {"rating": "good"}, wanted=(ChatRow,)) == "feedback"
    for rating, edit, expected in (
        ("good", None, RatedRow(talk("q"), "r", True)),
        ("bad", None, RatedRow(talk("q"), "r", False)),
        ("edit", "s", PreferenceRow(talk("q"), "s", "r")),
        ("edit", "r", RatedRow(talk("q"), "r", True)),
    ):
        assert parsed(FEEDBACK | {"rating": rating, "edit": edit}) == expected
    with pytest.raises(ValueError, match="'rating' must be good, bad, edit, regenerate or drop, not 'meh'"):
        parsed(FEEDBACK | {"rating": "meh"})


def test_answers_asked_for_anew_and_lines_of_a_review():
    assert parsed(FEEDBACK | {"rating": "regenerate", "replaced": "s"}) == PreferenceRow(talk("q"), "r", "s")
    asked = {"prompt_messages": turns("the passages, and q")}
    assert parsed(FEEDBACK | {"rating": "good"} | asked) == RatedRow(talk("the passages, and q"), "r", True)
    with pytest.raises(LeftOut, match="dropped in review"):
        parsed(FEEDBACK | {"rating": "drop"})


def test_what_is_wanted_decides_between_formats():
    rows = {"prompt": "q", "chosen": turns("q", "r"), "rejected": turns("q", "s"), "messages": turns("q", "r")}
    assert detected(rows, wanted=(ChatRow, PairRow)) == "messages"
    assert detected(rows, wanted=(PreferenceRow,)) == "preference"
    assert detected({"prompt": "q", "messages": turns("q", "r")}, wanted=(PromptRow,)) == "prompt"
    alpaca_with_text = {"instruction": "q", "input": "", "output": "r", "text": "Below is ..."}
    assert detected(alpaca_with_text, wanted=(ChatRow, PairRow)) == "alpaca"
    assert detected(alpaca_with_text, wanted=(TextRow, ChatRow)) == "text"
    assert detected({"text": "t", "label": 1}, wanted=(TextRow,)) == "labelled"


def test_columns_by_other_names():
    row = {"question": "q", "reply": "r", "n": 1}
    columns = {"question": "instruction", "reply": "output"}
    assert detected(row, columns=columns) == "alpaca"
    assert FORMATS["alpaca"].parse(fields_of(row, columns)) == ChatRow(talk("q", "r"))
    for both in ({"text": "no", "answers": "yes"}, {"answers": "yes", "text": "no"}):
        assert fields_of(both, {"answers": "text"}) == {"text": "yes"}


def test_most_rows_decide():
    assert detected(*[{"prompt": "q", "completion": "r"}] * 3, {"prompt": "q"}, 7) == "prompt-completion"
    assert detected(7, ["a", "b", "c"]) is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1, "b": 2}], r"of no known format \(columns: a, b\); choose one with format=: text, lines"),
        (
            [{"text": "a", "prompt": "q", "completion": "r"}],
            r"of several formats: .*text.*prompt-completion.* \(columns: text, prompt, completion\)",
        ),
        ([{"text": "a"}, {"text": "<human>: q"}], r"the first rows are of several formats: 1 text, 1 oig"),
        ([{str(i): i for i in range(30)}], r"18, 19, \.\.\.\)"),
    ],
)
def test_what_cannot_be_found_out_is_said(rows, message):
    with pytest.raises(ValueError, match=message):
        detected(*rows, wanted=(PreferenceRow,))


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("text", {"text": " \n"}, "'text' is empty"),
        ("text", {"text": None}, "'text' is missing"),
        ("text", {"text": 5}, "'text' must be text, not int"),
        ("text", {"text": "\ud83d"}, "'text' holds half a character"),
        ("oig", {"text": "no marks"}, "no turns"),
        ("messages", {"messages": "[{broken"}, "'messages' looks like JSON and is not"),
        ("messages", {"messages": {"role": "user"}}, "'messages' must be a list, not dict"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "content must be text, not NoneType"),
        ("messages", {"messages": turns("q", "r"), "weight": float("nan")}, "'weight' must be a number, not nan"),
        ("prompt-completion", {"prompt": "q"}, "'completion' is missing"),
        ("alpaca", {"instruction": "q", "input": 3, "output": "r"}, "'input' must be text, not int"),
        ("self-instruct", {"instruction": "q", "instances": []}, "'instances' must hold one object, not 0"),
        ("preference", {"prompt": "q", "chosen": "r", "rejected": "r"}, "are the same"),
        ("preference", {"chosen": f"{HUMAN} t", "rejected": "\n\nHuman: x\n\nAssistant: t"}, "differ before"),
        ("preference", {"chosen": HUMAN, "rejected": f"{HUMAN} t"}, "an answer is missing"),
        (
            "preference",
            {"prompt": "other", "chosen": turns("q", "r"), "rejected": turns("q", "s")},
            "'prompt' is not what 'chosen' and 'rejected' begin with",
        ),
        ("preference", {"prompt": "q", "chosen": "r", "rejected": None}, "'rejected' is missing"),
        ("scored", {"text": ["a"], "score": [1, 2]}, "1 answers and 2 scores"),
        ("scored", {"text": [], "score": []}, "0 answers and 0 scores"),
        ("scored", {"text": ["a", "b"], "score": [1, "x"]}, "a score must be a number, not 'x'"),
        ("scored", {"text": ["a<sep>r", "b<sep>r"], "score": [1, 2]}, "differ before their <sep>"),
        ("ranked", {"prompt": "q", "responses": ["r", ""], "scores": [1, 2]}, "a response is empty"),
        ("kto", {"prompt": "q", "completion": "r", "label": "yes"}, "'label' must be true or false, not 'yes'"),
        ("labelled", {"text": "t", "label": None}, "'label' is missing"),
        ("labelled", {"text": "t", "labels": {"a": None}}, "'labels' holds no label"),
    ],
)
def test_bad_rows_say_why(name, row, reason):
    with pytest.raises(ValueError, match=reason):
        parsed(row, name)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
SCORE = st.floats(allow_nan=False, allow_infinity=False) | st.none()


@given(TEXT, TEXT, TEXT, st.lists(st.tuples(TEXT, SCORE), min_size=1), st.booleans())
def test_what_is_written_in_a_format_is_read(a, b, c, answers, good):
    """Values that are plain text arrive unchanged in every format that holds them as they are."""
    if a.lstrip().startswith(("Human:", "Assistant:", "##", "<")):
        a = "." + a
    texts, scores = [text for text, _ in answers], [score for _, score in answers]
    said = Conversation().add("user", a)
    written: list[tuple[dict[str, Any], Row]] = [
        ({"text": a}, TextRow(a)),
        ({"messages": said.add("assistant", b).to_dicts()}, ChatRow(said.add("assistant", b))),
        ({"prompt": a, "completion": b}, PairRow(a, b)),
        ({"instruction": a, "input": None, "output": b}, ChatRow(said.add("assistant", b))),
        ({"user_input": a, "completion": "." + b}, ChatRow(said.add("assistant", "." + b))),
        ({"prompt": a, "chosen": b, "rejected": b + c}, PreferenceRow(said, b, b + c)),
        ({"prompt": a, "responses": texts, "scores": scores}, RankedRow(said, tuple(texts), tuple(scores))),
        ({"prompt": a, "completion": b, "label": good}, RatedRow(said, b, good)),
        ({"text": a, "label": b}, LabelledRow(a, {"label": b})),
        ({"prompt": a}, PromptRow(said)),
    ]
    for raw, expected in written:
        assert parsed(json.loads(json.dumps(raw))) == expected


COLUMNS = " ".join(" ".join(keys) for each in FORMATS.values() for keys in each.keys).split()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["<human>: a", "[{", "[]"]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*COLUMNS, "role", "content", "from", "value"]), inner)
    ),
)


@given(VALUES)
def test_whatever_a_row_holds_it_is_read_or_refused(raw):
    """Nothing but ValueError comes of a row that is not right."""
    for each in FORMATS.values():
        with contextlib.suppress(ValueError):
            assert type(each.parse(fields_of(raw))) in each.kinds
    with contextlib.suppress(ValueError):
        detected(raw)


def test_the_page_shows_a_row_of_every_format():
    shown = re.findall(r"^\| `([\w-]+)` \| `(.+?)` \| (\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _, _ in shown} == set(FORMATS)
    for name, row, kind in shown:
        if not FORMATS[name].by_name:
            assert detected(json.loads(row)) == name
        kinds = {"TextRow": "text", "ChatRow": "chat", "PairRow": "pair"}
        given = type(parsed(json.loads(row), name)).__name__
        assert kinds.get(given, given.removesuffix("Row").lower()) == kind
